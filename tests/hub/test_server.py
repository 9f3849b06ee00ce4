"""The real clients against the loopback Hub, each in a process of its own, as `HF_ENDPOINT` is read at import."""

import base64
import hashlib
import json
import re
import textwrap
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .clients import request, run_client
from .server import HubServer


def commit_lines(*operations: tuple[str, dict], **header: str) -> bytes:
    """A commit's NDJSON."""
    lines = [("header", {"summary": "A commit", **header}), *operations]
    return b"\n".join(json.dumps({"key": key, "value": value}).encode() for key, value in lines)


def small_file(path: str, content: bytes = b"text") -> tuple[str, dict]:
    return "file", {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}


def test_push_and_download(hub_server, tmp_path):
    folder = tmp_path / "model"
    (folder / "sub folder").mkdir(parents=True)
    (folder / "README.md").write_text(
        "---\nlicense: mit\ntags: [smd]\npipeline_tag: image-classification\n---\nHello\n"
    )
    (folder / "sub folder" / "ä#?%.txt").write_text("odd name")
    (folder / "empty.txt").touch()
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 1000)
    code = """
        from pathlib import Path
        from huggingface_hub import CommitOperationDelete, HfApi, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

        api = HfApi()
        result["url"] = api.create_repo("tester/model")
        api.create_repo("tester/model", exist_ok=True)
        pushed = api.upload_folder(repo_id="tester/model", folder_path=folder)
        result["unchanged"] = api.upload_folder(repo_id="tester/model", folder_path=folder).oid == pushed.oid
        snapshot = Path(snapshot_download("tester/model"))
        result["downloaded"] = {
            p.relative_to(snapshot).as_posix(): p.read_bytes().hex() for p in snapshot.rglob("*") if p.is_file()
        }
        info = api.model_info("tester/model", files_metadata=True)
        result["info"] = [info.sha == pushed.oid, info.pipeline_tag, info.tags, info.card_data.license]
        result["lfs"] = [s.rfilename for s in info.siblings if s.lfs]
        result["tree"] = [f.path for f in api.list_repo_tree("tester/model")]
        result["paths"] = [f.path for f in api.get_paths_info("tester/model", ["sub folder", "README.md", "none"])]

        api.create_branch("tester/model", branch="dev")
        api.create_tag("tester/model", tag="v1")
        delete = [CommitOperationDelete("sub folder/")]
        on_dev = api.create_commit("tester/model", delete, commit_message="Less", revision="dev", parent_commit=pushed.oid)
        try:
            api.create_commit("tester/model", delete, commit_message="x", revision="dev", parent_commit=pushed.oid)
        except HfHubHTTPError as error:
            result["stale parent"] = error.response.status_code
        proposal = api.upload_file(
            path_or_fileobj=b"1", path_in_repo="one.txt", repo_id="tester/model", create_pr=True
        )
        result["proposal"] = [proposal.pr_revision, api.file_exists("tester/model", "one.txt", revision="refs/pr/1")]
        refs = api.list_repo_refs("tester/model", include_pull_requests=True)
        result["refs"] = [[b.name for b in refs.branches], [t.name for t in refs.tags], len(refs.pull_requests)]
        result["dev moved alone"] = [refs.branches[0].target_commit, refs.branches[1].target_commit] == [pushed.oid, on_dev.oid]
        result["titles"] = [c.title for c in api.list_repo_commits("tester/model", revision="dev")]
        result["found"] = [m.id for m in api.list_models(search="MOD", author="tester", filter="smd")]

        collection = api.create_collection("Evolved models", description="all kinds")
        again = api.create_collection("Evolved models", exists_ok=True)
        for _ in range(2):
            filled = api.add_collection_item(again.slug, "tester/model", "model", note="the child", exists_ok=True)
        result["collection"] = [again.slug == collection.slug, [(i.item_id, i.note) for i in filled.items]]

        api.create_repo("tester/gone")
        api.delete_repo("tester/gone")
        result["gone"] = api.repo_exists("tester/gone")
    """
    result = run_client(code, hub_server.environment(), folder=str(folder))
    local = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    attributes = {".gitattributes": hub_server.files("tester/model")[".gitattributes"]}
    assert hub_server.files("tester/model") == local | attributes
    assert {name: bytes.fromhex(content) for name, content in result["downloaded"].items()} == local | attributes
    assert result["url"] == f"{hub_server.url}/tester/model"
    assert result["info"] == [True, "image-classification", ["smd", "image-classification", "license:mit"], "mit"]
    assert result["lfs"] == ["model.safetensors"] and result["unchanged"]
    assert result["tree"] == ["sub folder", ".gitattributes", "README.md", "empty.txt", "model.safetensors"]
    assert result["paths"] == ["sub folder", "README.md"]
    assert result["stale parent"] == 412 and result["dev moved alone"]
    assert result["proposal"] == ["refs/pr/1", True] and "one.txt" not in hub_server.files("tester/model")
    assert result["refs"] == [["main", "dev"], ["v1"], 1]
    assert result["titles"] == ["Less", "Upload folder using huggingface_hub", "initial commit"]
    assert result["found"] == ["tester/model"]
    assert result["collection"] == [True, [["tester/model", "the child"]]]
    assert result["gone"] is False
    assert len(hub_server.commits("tester/model")) == 2

    calls = [f"{r.method} {r.path}" for r in hub_server.requests]
    oid = hashlib.sha256(local["model.safetensors"]).hexdigest()
    push = [
        "POST /api/repos/create",
        "POST /api/validate-yaml",
        "POST /api/models/tester/model/preupload/main",
        "POST /tester/model.git/info/lfs/objects/batch",
        f"PUT /storage/{oid}?signature=***",
        "POST /tester/model.git/info/lfs/objects/verify",
        "POST /api/models/tester/model/commit/main",
        "GET /api/models/tester/model/revision/main",
    ]
    assert [call for call in dict.fromkeys(calls) if call in push] == push
    assert not any(r.user for r in hub_server.requests if r.storage)
    assert hub_server.token not in repr(hub_server.requests)


@pytest.mark.slow
def test_transformers_and_timm(hub_server):
    push = """
        import hashlib
        import timm, torch
        from timm.models import push_to_hf_hub
        from tests.tiny import tiny_model, tiny_pixels, tiny_processor

        model = tiny_model("vit")
        model.push_to_hub("tester/vit")
        tiny_processor().push_to_hub("tester/vit")
        network = timm.create_model("test_resnet", num_classes=5).eval()
        push_to_hf_hub(network, "tester/resnet", private=True, safe_serialization=True)
        with torch.no_grad():
            for name, logits in ("vit", model(tiny_pixels()).logits), ("resnet", network(tiny_pixels())):
                result[name] = hashlib.sha256(logits.numpy().tobytes()).hexdigest()
    """
    load = """
        import hashlib
        import timm, torch
        from transformers import AutoImageProcessor, AutoModelForImageClassification
        from tests.tiny import tiny_pixels

        model = AutoModelForImageClassification.from_pretrained("tester/vit").eval()
        processor = AutoImageProcessor.from_pretrained("tester/vit")
        network = timm.create_model("hf_hub:tester/resnet", pretrained=True).eval()
        with torch.no_grad():
            for name, logits in ("vit", model(tiny_pixels()).logits), ("resnet", network(tiny_pixels())):
                result[name] = hashlib.sha256(logits.numpy().tobytes()).hexdigest()
        result["size"] = [processor.size["height"], processor.size["width"]]
    """
    pushed = run_client(push, hub_server.environment())
    names = {"README.md", "config.json", "model.safetensors"}
    assert set(hub_server.files("tester/vit")) == names | {".gitattributes", "preprocessor_config.json"}
    assert set(hub_server.files("tester/resnet")) == names | {".gitattributes"}
    assert run_client(load, hub_server.environment()) == pushed | {"size": [32, 32]}


def test_datasets(hub_server):
    code = """
        from datasets import Dataset, load_dataset

        Dataset.from_dict({"label": [3, 1, 2]}).push_to_hub("tester/numbers", private=True)
        result["labels"] = load_dataset("tester/numbers", split="train")["label"][:]
    """
    assert run_client(code, hub_server.environment()) == {"labels": [3, 1, 2]}
    assert "data/train-00000-of-00001.parquet" in hub_server.files("tester/numbers", repo_type="dataset")
    assert hub_server.repository("tester/numbers", "dataset").private


def test_who_may_see_and_write(hub_server):
    hub_server.add_user("tester", "hf_ReadOnly", can_write=False)
    hub_server.add_user("stranger", "hf_Stranger", organizations=("guild",))
    hub_server.add_repository("tester/secret", {"a.txt": "secret", "b.bin": b"large"}, private=True)
    hub_server.add_repository("tester/open", {"a.txt": "open"})
    code = """
        from pathlib import Path
        from huggingface_hub import HfApi, hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError

        def attempt(action, *arguments, **options):
            try:
                action(*arguments, **options)
                return "ok"
            except HfHubHTTPError as error:
                assert "hf_" not in str(error).replace("hf_hub", ""), error
                return f"{error.response.status_code} {type(error).__name__}"

        for name, token in tokens.items():
            api = HfApi(token=token)
            result[name] = [
                attempt(api.hf_hub_download, "tester/secret", "a.txt", cache_dir=name),
                attempt(api.hf_hub_download, "tester/secret", "b.bin", cache_dir=name),
                attempt(api.upload_file, path_or_fileobj=b"", path_in_repo="x", repo_id="tester/open"),
                attempt(api.create_repo, f"guild/{name}"),
                [model.id for model in api.list_models()] if name != "expired" else attempt(lambda: list(api.list_models())),
            ]
        api = HfApi(token=False)
        result["missing"] = [
            attempt(api.hf_hub_download, "tester/open", "none.txt"),
            attempt(api.hf_hub_download, "tester/open", "a.txt", revision="none"),
            attempt(api.hf_hub_download, "tester/none", "a.txt"),
        ]
    """
    tokens = {
        "owner": hub_server.token,
        "reader": "hf_ReadOnly",
        "stranger": "hf_Stranger",
        "anonymous": False,
        "expired": "hf_Expired",
    }
    tmp = Path(hub_server.environment()["HF_HOME"])
    environment = hub_server.environment(token=None)
    result = run_client(f"import os; os.chdir({str(tmp)!r})\n" + textwrap.dedent(code), environment, tokens=tokens)
    hidden, both = "404 RepositoryNotFoundError", ["tester/secret", "tester/open"]
    forbidden, nobody = "403 HfHubHTTPError", "401 RepositoryNotFoundError"
    rejected = "401 HfHubHTTPError"
    assert result["owner"] == ["ok", "ok", "ok", forbidden, both]
    assert result["reader"] == ["ok", "ok", forbidden, forbidden, both]
    assert result["stranger"] == [hidden, hidden, forbidden, "ok", ["tester/open", "guild/stranger"]]
    assert result["anonymous"] == [nobody, nobody, rejected, rejected, ["tester/open", "guild/stranger"]]
    assert result["expired"] == [rejected] * 5
    assert result["missing"] == ["404 RemoteEntryNotFoundError", "404 RevisionNotFoundError", nobody]


def test_faults_on_demand(hub_server):
    # The client resumes after what it has written, and it writes pieces of 10 MB.
    content = bytes(range(256)) * (24 * 2**20 // 256)
    hub_server.add_repository("tester/parent", {"config.json": "{}", "model.safetensors": content})
    hub_server.fail_next(r"GET .*/parent/tree/", 429, headers={"Retry-After": "0"})
    hub_server.fail_next(r"HEAD .*/parent/.*config.json", None, delay=3)
    hub_server.fail_next(r"GET /storage/", "cut")
    hub_server.fail_next(r"PUT /storage/", 500, headers={"Retry-After": "0"})
    hub_server.fail_next(r"verify", "close")
    hub_server.fail_next(r"POST .*/commit/", 500)
    hub_server.fail_next(r"POST .*/commit/", "lost")
    hub_server.fail_next(r"POST /api/repos/create", 403, headers={"X-Error-Message": "No new repositories today"})
    code = """
        from pathlib import Path
        from huggingface_hub import HfApi, snapshot_download

        snapshot = Path(snapshot_download("tester/parent", etag_timeout=0.5))
        result["size"] = (snapshot / "model.safetensors").stat().st_size
        api = HfApi()
        result["errors"] = []
        for attempt in range(5):
            try:
                if attempt == 0:
                    api.create_repo("tester/child")
                    continue
                if attempt == 1:
                    api.create_repo("tester/child")
                api.upload_file(path_or_fileobj=b"weights", path_in_repo="model.safetensors", repo_id="tester/child")
            except Exception as error:
                response = getattr(error, "response", None)
                result["errors"].append([type(error).__name__, response.status_code if response else None])
    """
    result = run_client(code, hub_server.environment())
    assert result["size"] == len(content)
    assert result["errors"] == [["HfHubHTTPError", 403], ["HfHubHTTPError", 500], ["RemoteProtocolError", None]]
    assert hub_server.clear_faults() == []
    # The lost commit counts, and the client's later tries find nothing left to do.
    assert hub_server.files("tester/child")["model.safetensors"] == b"weights"
    assert len(hub_server.commits("tester/child")) == 2
    statuses = {
        pattern: [r.status for r in hub_server.requests if re.search(pattern, f"{r.method} {r.path}")]
        for pattern in ("/tree/", "GET /storage/", "PUT /storage/", "verify", "/commit/", "HEAD .*config")
    }
    assert statuses.pop("HEAD .*config") == [200, 200]
    assert statuses == {
        "/tree/": [429, 200],
        "GET /storage/": [200, 206],
        "PUT /storage/": [500, 200],
        "verify": [0, 200],
        "/commit/": [500, 0],
    }


@pytest.mark.parametrize(
    "operations, header, status",
    [
        ([small_file("../up.txt")], {}, 400),
        ([small_file("a//b.txt")], {}, 400),
        ([small_file(".git/config")], {}, 400),
        ([small_file("C:\\up.txt")], {}, 400),
        ([small_file("old.txt/inside.txt")], {}, 400),
        ([("file", {"path": "a.txt", "content": "no base64!"})], {}, 400),
        ([("lfsFile", {"path": "a.bin", "oid": "0" * 64, "algo": "sha256", "size": 3})], {}, 400),
        ([("deletedFile", {"path": "none.txt"})], {}, 404),
        ([("renamedFile", {"path": "old.txt"})], {}, 400),
        ([small_file("README.md", b"---\nlicense: my own\n---\n")], {}, 400),
        ([], {"parentCommit": "0" * 40}, 412),
        ([], {"summary": ""}, 400),
    ],
)
def test_a_refused_commit_changes_nothing(operations, header, status):
    with HubServer() as hub:
        hub.add_repository("tester/model", {"old.txt": "old"})
        files, commits = hub.files("tester/model"), hub.commits("tester/model")
        body = commit_lines(small_file("new.txt"), *operations, **header)
        assert request(hub, "POST", "/api/models/tester/model/commit/main", body, hub.token)[0] == status
        assert hub.files("tester/model") == files and hub.commits("tester/model") == commits


def test_parallel_commits_all_count(hub_server):
    hub_server.add_repository("tester/model", {})

    def commit(i: int) -> int:
        body = commit_lines(small_file(f"{i}.txt", b"%d" % i))
        return request(hub_server, "POST", "/api/models/tester/model/commit/main", body, hub_server.token)[0]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(commit, range(32))) == [200] * 32
    assert {f"{i}.txt" for i in range(32)} < set(hub_server.files("tester/model"))
    commits = hub_server.commits("tester/model")
    assert len(commits) == 34 and [c.parent for c in commits] == [*[c.sha for c in commits[1:]], None]


def test_storage_and_ranges(hub_server):
    content = b"0123456789"
    hub_server.add_repository("tester/model", {"a.txt": content, "b.bin": content})
    page = "/tester/model/resolve/main"
    status, headers, body = request(hub_server, "GET", f"{page}/a.txt", headers={"Range": "bytes=2-4"})
    assert (status, body, headers["Content-Range"]) == (206, b"234", "bytes 2-4/10")
    assert request(hub_server, "GET", f"{page}/a.txt", headers={"Range": "bytes=-3"})[2] == b"789"
    assert request(hub_server, "GET", f"{page}/a.txt", headers={"Range": "bytes=10-"})[0] == 416
    status, headers, body = request(hub_server, "HEAD", f"{page}/a.txt")
    assert (status, headers["Content-Length"], body) == (200, "10", b"")
    assert headers["ETag"] == '"{}"'.format(hashlib.sha1(b"blob 10\0" + content).hexdigest())
    assert headers["X-Repo-Commit"] == hub_server.commits("tester/model")[0].sha

    oid = hashlib.sha256(content).hexdigest()
    assert request(hub_server, "GET", f"{page}/b.bin")[2] == content
    assert request(hub_server, "GET", f"{hub_server.storage_url}/storage/{oid}")[0] == 403
    # urllib carries the token along to the other origin, which the real storage refuses and so does this one.
    assert request(hub_server, "GET", f"{page}/b.bin", token=hub_server.token)[0] == 400

    batch = {"operation": "upload", "objects": [{"oid": "1" * 64, "size": 5}, {"oid": oid, "size": 10}]}
    path = "/tester/model.git/info/lfs/objects/batch"
    new, known = json.loads(request(hub_server, "POST", path, batch, hub_server.token)[2])["objects"]
    assert "actions" not in known
    assert request(hub_server, "PUT", new["actions"]["upload"]["href"], b"other")[0] == 400
    assert (
        request(hub_server, "POST", new["actions"]["verify"]["href"], batch["objects"][0], hub_server.token)[0] == 404
    )


def test_the_hub_goes_away():
    with HubServer() as hub:
        url = hub.url
        assert request(hub, "GET", "/api/models")[2] == b"[]"
        home = Path(hub.environment()["HF_HOME"])
        assert home.is_dir() and not list(home.iterdir())
    assert not home.exists()
    with pytest.raises(urllib.error.URLError):
        request(hub, "GET", f"{url}/api/models")


def test_environment_leaves_no_other_hub(hub_server, monkeypatch):
    for name in (
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_CACHE",
        "https_proxy",
        "HTTP_PROXY",
        "HUGGING_FACE_HUB_TOKEN",
        "HF_TOKEN",
    ):
        monkeypatch.setenv(name, "foreign")
    environment = hub_server.environment(token=None)
    assert "foreign" not in environment.values() and "HF_TOKEN" not in environment
    assert hub_server.environment(home="/home")["HF_HOME"] == "/home"
    assert environment["HF_HOME"] != hub_server.environment()["HF_HOME"]


@pytest.mark.parametrize(
    "card, complaint",
    [
        ("---\nlicense: apache-2.0\nbase_model: a/b\nbase_model_relation: finetune\n---\n", None),
        ("---\nlicense: Apache 2\n---\n", "license"),
        ("---\nbase_model: /tmp/checkpoint 3\n---\n", "base_model"),
        ("---\nbase_model_relation: child\n---\n", "base_model_relation"),
        ("---\ntags: [1]\n---\n", "tags"),
        ("---\na: [\n---\n", "bad YAML"),
        ("---\nmodel-index: [{name: m, results: [{task: {type: t}}]}]\n---\n", "results[0].dataset"),
        ("---\nmodel-index: [{results: []}]\n---\n", "model-index[0].name"),
        ("no front matter", "empty or missing"),
    ],
)
def test_validate_yaml(hub_server, card, complaint):
    status, _, body = request(hub_server, "POST", "/api/validate-yaml", {"content": card, "repoType": "model"})
    answer = json.loads(body)
    messages = [entry["message"] for entry in answer["errors"] + answer["warnings"]]
    assert status == (400 if answer["errors"] else 200)
    assert (complaint is None) == (messages == [])
    assert complaint is None or complaint in messages[0]
