"""
What a run gives to the Hub, and what others get from there: evolved, pushed and loaded by the real libraries, each in a
process of its own.

Parents: "vit" is on the Hub and given by name; "custom" has Python files and is given as a model in memory; "timm" is a
folder.
"""

import json
import re
import shlex
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.tiny import save_tiny_checkpoint

from .cards import front_matter
from .clients import ROOT, request, run_client
from .server import HubServer

RUNS = ("vit", "custom", "timm")
PARENTS = {"vit": "vit", "custom": "custom", "timm": "timm_convnext"}
TOKEN = "hf_" + "T0kenOfTheRun" * 3
STRANGERS = (
    ".env",
    "_private.json",
    "training_args.bin",
    "optimizer.pt",
    "notes.txt",
    "evolve.py",
    "children.pkl",
    "checkpoint-7/model.safetensors",
    "model-00001-of-00002.safetensors",
)

EVOLVE = """
    import contextlib, io, os
    from pathlib import Path

    # What libraries and trainer say goes into a file: no token may be in it.
    os.dup2(os.open(Path(root, "output.log"), os.O_CREAT | os.O_APPEND | os.O_WRONLY), 2)

    import torch
    torch.set_num_threads(1)

    import smd_hf
    from smd_hf import EvolutionTrainer
    from tests import figures
    from tests.plain import PLAIN_OPTIONS, plain_arguments
    from tests.test_trainer import make_dataset
    from tests.tiny import tiny_pixels, tiny_processor

    def make_trainer(model, name, train=make_dataset(40, 1), test=make_dataset(24, 2), processor=None, **arguments):
        chosen = {
            "population_size": 4, "num_generations": 2, "sigma": 0.1, "elitism": False, "use_cpu": True,
            "disable_tqdm": True, "per_device_eval_batch_size": 16, "save_strategy": "no",
        }
        args = plain_arguments(str(Path(root, name)), **(chosen | arguments))
        return EvolutionTrainer(model, args, train_dataset=train, eval_dataset=test, processing_class=processor)

    @torch.no_grad()
    def logits(model):
        return model.eval()(tiny_pixels()).logits.numpy().tobytes().hex()

    def measure(folder):
        kinds = {"child": "", "ensemble": "ensemble", "delta": "children/0001"}
        return {
            kind: logits(smd_hf.load(Path(folder, place), trust_remote_code=True)) for kind, place in kinds.items()
        }
"""

PUSH = (
    EVOLVE
    + """
    beside = {"ensemble_size": 3, "push_ensemble": True, "save_children": 3, "push_children": 2}

    # Pushed by itself at the end of the run
    trainer = make_trainer("tester/parent", "vit", push_to_hub=True, hub_model_id="tester/vit", hub_token=token, **beside)
    trainer.train()
    result["vit"] = measure(trainer.args.output_dir)
    result["urls"] = trainer.pushed

    # Pushed by hand, private; in memory, so that the deltas' parent is but a folder of this machine
    os.environ["HF_TOKEN"] = token
    model = smd_hf.load_model(folders["custom"], trust_remote_code=True)
    trainer = make_trainer(model, "custom", processor=tiny_processor(), hub_model_id="custom", hub_private_repo=True, **beside)
    trainer.train()
    result["custom"] = measure(trainer.args.output_dir)
    result["commit"] = trainer.push_to_hub("By hand", tags="extra", language="en").commit_message
    result["again"] = trainer.push_to_hub("Once more", tags="extra", language="en").commit_message

    # Pushed later, from the shell
    trainer = make_trainer(folders["timm"], "timm", **beside)
    trainer.train()
    result["timm"] = measure(trainer.args.output_dir)
    for name in strangers:
        Path(root, "timm", name).parent.mkdir(exist_ok=True)
        Path(root, "timm", name).write_text("not for the Hub")
    from smd_hf.cli.main import main
    for _ in range(2):
        for place, repo_id in ("", "tester/timm"), ("ensemble", "tester/timm-ensemble"), ("children", "timm-children"):
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                assert main(["push", str(Path(root, "timm", place)), "--repo_id", repo_id]) == 0
            result["printed " + repo_id] = printed.getvalue()
    """
)

WITH_US = """
    import contextlib, io, re
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    import smd_hf
    from huggingface_hub import hf_hub_download
    from smd_hf import SparseDelta
    from tests.tiny import tiny_pixels

    snippets = {}

    @torch.no_grad()
    def logits(model):
        return model.eval()(tiny_pixels()).logits.numpy().tobytes().hex()

    for run in runs:
        result[run] = {
            "child": logits(smd_hf.load(f"tester/{run}", trust_remote_code=True)),
            "ensemble": logits(smd_hf.load(f"tester/{run}-ensemble", trust_remote_code=True)),
            "delta": logits(smd_hf.load(f"tester/{run}-children", subfolder="0001", trust_remote_code=True)),
        }
    for name in [f"tester/{run}{suffix}" for run in runs for suffix in ("", "-ensemble", "-children")]:
        card = Path(hf_hub_download(name, "README.md")).read_text()
        snippet, output = (
            re.search(pattern, card, re.DOTALL)[1]
            for pattern in (r"```python\\n(.*?)```", r"png\\):\\n\\n```\\n(.*?)\\n```\\n")
        )
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(snippet, name, "exec"), {})
        snippets[name] = printed.getvalue().strip() == output
    result["snippets"] = snippets
    first = SparseDelta.from_pretrained("tester/timm-children", subfolder="0000").merge()
    result["first"] = logits(first)
    try:
        smd_hf.load("tester/timm-children")
    except smd_hf.SMDError as error:
        result["no subfolder"] = str(error)
"""

WITHOUT_US = """
    import sys
    sys.modules["smd_hf"] = None
    import torch
    torch.set_num_threads(1)
    from transformers import AutoModelForImageClassification, pipeline
    from tests.tiny import tiny_images, tiny_pixels

    for run in runs:
        name = f"tester/{run}-ensemble"
        model = AutoModelForImageClassification.from_pretrained(name, trust_remote_code=True).eval()
        with torch.no_grad():
            result[run] = {"ensemble": model(tiny_pixels()).logits.numpy().tobytes().hex()}
    classify = pipeline("image-classification", "tester/timm-ensemble", trust_remote_code=True)
    result["labels"] = sorted(each["label"] for each in classify(tiny_images(1)[0]))
"""

PLAIN = """
    import sys
    sys.modules["smd_hf"] = None
    import timm, torch
    torch.set_num_threads(1)
    from transformers import AutoImageProcessor, AutoModelForImageClassification
    from tests.tiny import tiny_pixels

    with torch.no_grad():
        for run in runs:
            custom = {"trust_remote_code": run == "custom"}
            model = AutoModelForImageClassification.from_pretrained(f"tester/{run}", **custom).eval()
            AutoImageProcessor.from_pretrained(f"tester/{run}")
            result[run] = {"child": model(tiny_pixels()).logits.numpy().tobytes().hex()}
        network = timm.create_model("hf_hub:tester/timm", pretrained=True).eval()
        result["network"] = network(tiny_pixels()).numpy().tobytes().hex()
"""


@dataclass
class Pushed:
    """A Hub after three runs, and what the process that pushed them measured and said."""

    hub: HubServer
    root: Path
    result: dict

    def files(self, repo_id: str) -> dict[str, bytes]:
        """What is on the Hub, but for the file that every repository has."""
        return {name: text for name, text in self.hub.files(repo_id).items() if name != ".gitattributes"}


def run_logged(code: str, environment: dict[str, str], root: Path, **values: object) -> dict:
    """[`run_client`], of a process whose stderr goes into a file."""
    try:
        return run_client(code, environment, root=str(root), **values)
    except AssertionError as error:
        raise AssertionError((root / "output.log").read_text()[-4000:]) from error


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    folders = {kind: save_tiny_checkpoint(name, root / f"{kind}-parent") for kind, name in PARENTS.items()}
    for name in PARENTS:
        license = f"---\nlicense: bsd-3-clause\ndatasets: [owner/images]\n---\n# The {name} parent\n"
        Path(folders[name], "README.md").write_text(license)
    with HubServer() as hub:
        hub.add_user("tester", TOKEN)
        hub.add_repository("tester/parent", Path(folders["vit"]))
        # What the client does not repeat by itself; the answer of a commit that happened is lost.
        hub.fail_next(r"POST /api/repos/create", 429, headers={"Retry-After": "0"})
        hub.fail_next(r"POST /api/validate-yaml", 500, headers={"Retry-After": "0"})
        hub.fail_next(r"POST /api/models/tester/vit/commit/", "lost")
        hub.fail_next(r"POST /api/collections/.*/items", 503, headers={"Retry-After": "0"})
        values = {"folders": folders, "token": TOKEN, "strangers": STRANGERS}
        result = run_logged(PUSH, hub.environment(token=None), root, **values)
        assert hub.clear_faults() == []
        yield Pushed(hub, root, result)


def test_whoever_loads_them_gets_the_logits_that_were_measured(pushed):
    measured = {run: pushed.result[run] for run in RUNS}
    with ThreadPoolExecutor(3) as pool:  # each on a machine that has downloaded nothing yet
        loaded = [
            pool.submit(run_client, code, pushed.hub.environment(token=TOKEN), runs=RUNS)
            for code in (WITH_US, WITHOUT_US, PLAIN)
        ]
    with_us, without_us, plain = (each.result() for each in loaded)
    assert {run: with_us[run] for run in RUNS} == measured
    assert len(with_us["snippets"]) == 9 and all(with_us["snippets"].values()), with_us["snippets"]
    assert with_us["first"] != measured["timm"]["delta"] and "subfolder" in with_us["no subfolder"]
    assert {run: without_us[run]["ensemble"] for run in RUNS} == {run: measured[run]["ensemble"] for run in RUNS}
    assert without_us["labels"] == ["cat", "dog", "horse", "ship"]
    assert {run: plain[run]["child"] for run in RUNS} == {run: measured[run]["child"] for run in RUNS}
    assert plain["network"] == measured["timm"]["child"]
    kinds = [kind for run in RUNS for kind in measured[run].values()]
    assert len(set(kinds)) == 3 * len(RUNS)


def local_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_belongs_to_a_result_goes_up_and_nothing_else(pushed):
    model = {"README.md", "config.json", "model.safetensors", "gain_report.json"}
    model |= {"gain.png", "fitness.png", "reliability.png", "example.png"}
    code = {"configuration_tiny_custom.py", "layers_tiny_custom.py", "modeling_tiny_custom.py"}
    processor = {"preprocessor_config.json"}
    assert set(pushed.files("tester/vit")) == model | processor
    assert set(pushed.files("tester/custom")) == model | processor | code
    assert set(pushed.files("tester/timm")) == model
    for run in RUNS:
        folder = pushed.root / run
        assert set(pushed.files(f"tester/{run}-ensemble")) == local_files(folder / "ensemble")
        children = local_files(folder / "children")
        # push_children=2 of the three that were saved; the shell pushes them all
        expected = children if run == "timm" else {name for name in children if not name.startswith("0002")}
        assert set(pushed.files(f"tester/{run}-children")) == expected
        assert not [name for name in local_files(folder) if name.startswith(".push")]
    # The parent of deltas that had no place on the Hub has a branch of its own there.
    for run, files in ("custom", {"config.json", "model.safetensors"} | processor | code), ("timm", set()):
        [branch] = pushed.hub.repository(f"tester/{run}-children").branches.keys() - {"main"}
        assert branch.startswith("parent-")
        assert set(pushed.hub.files(f"tester/{run}-children", branch)) >= {"config.json", "model.safetensors"} | files
    assert set(pushed.hub.repository("tester/vit-children").branches) == {"main"}


def test_each_push_is_one_commit_however_often_it_is_made(pushed):
    for run in RUNS:
        for repo_id in f"tester/{run}", f"tester/{run}-ensemble", f"tester/{run}-children":
            commits = pushed.hub.commits(repo_id)
            assert [commit.title == "initial commit" for commit in commits] == [False, True], repo_id
            assert pushed.hub.repository(repo_id).private == (run == "custom")
    assert [pushed.result["commit"], pushed.result["again"]] == ["By hand", "Once more"]
    assert pushed.hub.commits("tester/custom")[0].title == "By hand"
    url = pushed.hub.url
    assert pushed.result["urls"] == {
        "child": f"{url}/tester/vit",
        "ensemble": f"{url}/tester/vit-ensemble",
        "children": f"{url}/tester/vit-children",
    }
    for repo_id in "tester/timm", "tester/timm-ensemble", "timm-children":
        full = repo_id if "/" in repo_id else f"tester/{repo_id}"
        assert pushed.result[f"printed {repo_id}"].strip() == f"{url}/{full}"
    collections = {collection["title"]: collection for collection in pushed.hub.api.collections.values()}
    assert [item["id"] for item in collections["vit, evolved by smd_hf"]["items"]] == [
        "tester/vit",
        "tester/vit-ensemble",
        "tester/vit-children",
    ]
    assert collections["custom, evolved by smd_hf"]["private"] and len(collections) == 2


def numbers(value):
    if isinstance(value, dict):
        return [number for key, each in value.items() for number in (*numbers(each), *numbers(key))]
    if isinstance(value, list):
        return [number for each in value for number in numbers(each)]
    if isinstance(value, str):
        return [float(each) for each in re.findall(r"\d+(?:\.\d+)*", value) if each.count(".") < 2]
    return [] if value is None else [float(value)]


@pytest.mark.parametrize("run", RUNS)
def test_the_pushed_cards_are_valid_and_say_what_was_measured(run, pushed):
    local = json.loads((pushed.root / run / "gain_report.json").read_text())
    measured = {"": local["evolved"], "-ensemble": local["ensemble"], "-children": local["deltas"]["0000"]["scores"]}
    for suffix, scores in measured.items():
        repo_id = f"tester/{run}{suffix}"
        files = pushed.files(repo_id)
        card = files["README.md"].decode()
        payload = {"content": card, "repoType": "model"}
        status, _, answer = request(pushed.hub, "POST", "/api/validate-yaml", payload, TOKEN)
        assert status == 200 and json.loads(answer) == {"errors": [], "warnings": []}
        metadata = front_matter(card)
        [model] = metadata["model-index"]
        results = {each["type"]: each["value"] for result in model["results"] for each in result["metrics"]}
        assert results == {
            "accuracy": scores["accuracy"],
            "nll": scores["nll"],
            "expected_calibration_error": scores["calibration_error"],
        }
        assert metadata["license"] == "bsd-3-clause" or run == "custom"
        assert metadata.get("base_model") == ("tester/parent" if run == "vit" else None)
        assert f'"{repo_id}"' in card and "Run this next to" not in card

        report = json.loads(files["gain_report.json"])
        same = local.keys() - {"parent_name", "arguments", "all_arguments"}
        assert {key: report[key] for key in same} == {key: local[key] for key in same}
        prose = re.sub(r"```(python|bibtex).*?```|\(https?://[^)]*\)", "", card[card.index("\n# ") :], flags=re.DOTALL)
        prose = prose.replace("smd_hf", "")
        known = {abs(number) for number in numbers(report)}
        forms = {
            format(f * n, form)
            for n in known
            for f in (1, 100)
            for form in (".4g", ".2g", "g", ".1f", ".2f", ".3f", ".4f", ".0f")
        }
        found = {
            each.replace(",", "")
            for each in re.findall(r"(?<![\w.])(\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?)(?![\w.]*\d)", prose)
        }
        unknown = {each for each in found if each not in forms and float(each) not in known}
        assert len(found) > 30 and not unknown, repo_id
    extra = front_matter(pushed.files("tester/custom")["README.md"].decode())
    assert "extra" in extra["tags"] and extra["language"] == "en" and "gradient-free" in extra["tags"]


def test_no_file_and_no_output_holds_the_token_or_a_place_of_this_machine(pushed):
    said = (pushed.root / "output.log").read_bytes()
    assert b"Next try in 0 s" in said
    texts = {path: path.read_bytes() for path in pushed.root.rglob("*") if path.is_file()}
    remote = {}
    for (_, repo_id), repository in pushed.hub.api.repositories.items():
        for branch in repository.branches:
            for name, content in pushed.hub.files(repo_id, branch).items():
                remote[repo_id, branch, name] = content
    assert [name for name, text in (texts | remote).items() if TOKEN.encode() in text or b"T0kenOf" in text] == []
    assert TOKEN not in json.dumps(pushed.result) and TOKEN not in repr(pushed.hub.requests)
    assert [name for name, text in remote.items() if str(pushed.root).encode() in text] == []


FAIL = (
    EVOLVE
    + """
    import shlex
    import huggingface_hub
    from smd_hf import SMDError
    from smd_hf.hub import requests
    from smd_hf.cli.main import main

    requests.FIRST_WAIT = 0.0

    def failure(action):
        try:
            action()
        except SMDError as error:
            return str(error)

    def command(message):
        return shlex.split(message[message.rindex("`smd-hf push") :].strip("`"))[1:]

    def push(arguments):
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            code = main(arguments)
        return [code, out.getvalue(), err.getvalue()]

    # Before anything is scored
    start = {"push_to_hub": True, "hub_model_id": "tester/start"}
    result["no token at the start"] = failure(lambda: make_trainer("tester/parent", "start", **start))
    result["wrong token at the start"] = failure(
        lambda: make_trainer("tester/parent", "start", hub_token="hf_" + "Unknown" * 5, **start)
    )
    # By hand, after evolution
    trainer = make_trainer("tester/parent", "by hand", hub_model_id="tester/by-hand", hub_private_repo=True)
    trainer.train()
    result["no token"] = failure(trainer.push_to_hub)
    result["no right"] = failure(lambda: trainer.push_to_hub(token=reader))
    endpoint, huggingface_hub.constants.ENDPOINT = huggingface_hub.constants.ENDPOINT, "http://127.0.0.1:9"
    result["no network"] = failure(trainer.push_to_hub)
    huggingface_hub.constants.ENDPOINT = endpoint
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    result["offline"] = failure(trainer.push_to_hub)
    huggingface_hub.constants.HF_HUB_OFFLINE = False
    result["without a token"] = push(command(result["no token"]))
    os.environ["HF_TOKEN"] = token
    result["later"] = push(command(result["no token"]))

    # By itself, at the end of the run: the Hub answers 403, always 500, or breaks the connection
    for name in ("refused", "down", "closed"):
        trainer = make_trainer("tester/parent", name, push_to_hub=True, hub_model_id=f"tester/{name}", num_generations=1)
        trainer.train()
        assert Path(root, name, "gain_report.json").is_file() and trainer.pushed == {}
        result[name] = trainer.push_failure
        result[f"{name}, later"] = push(command(trainer.push_failure))

    # From the shell, and what a run may choose about its pushes
    make_dataset(40, 1).to_parquet(Path(root, "train.parquet"))
    make_dataset(24, 2).to_parquet(Path(root, "test.parquet"))
    def evolve(name):
        return push([
            "evolve", *PLAIN_OPTIONS, "--model_name_or_path", "tester/parent", "--train_file", str(Path(root, "train.parquet")),
            "--validation_file", str(Path(root, "test.parquet")), "--output_dir", str(Path(root, name)), "--sigma", "0.1",
            "--population_size", "4", "--push_to_hub", "--hub_model_id", f"tester/{name}", "--disable_tqdm", "true",
        ])
    result["evolve"] = evolve("shell")
    result["evolve, refused"] = evolve("shell-refused")
    saving = {"push_to_hub": True, "hub_always_push": True, "save_strategy": "steps", "save_steps": 1}
    for strategy in ("every_save", "checkpoint", "all_checkpoints"):
        trainer = make_trainer(
            "tester/parent", strategy, hub_model_id=f"tester/{strategy}", hub_strategy=strategy, hub_revision="evolved", **saving
        )
        trainer.train()
        result[strategy] = logits(trainer.model)
        trainer._finish_current_push()
    folder = huggingface_hub.snapshot_download("tester/all_checkpoints", revision="evolved")
    trainer = make_trainer("tester/parent", "resumed")
    trainer.train(resume_from_checkpoint=str(Path(folder, "checkpoint-1")))
    result["resumed"] = logits(trainer.model)

    future = trainer.push_to_hub(blocking=False, revision="side")
    result["in the background"] = future.result().commit_message
    result["proposal"] = push(["push", str(Path(root, "resumed")), "--repo_id", "tester/down", "--create_pr"])
    Path(root, "resumed", "README.md").write_text("---\\nlicense: my own\\n---\\n# My card\\n")
    result["bad card"] = push(["push", str(Path(root, "resumed")), "--repo_id", "tester/resumed"])
    Path(root, "resumed", "README.md").write_text("---\\nlicense: mit\\n---\\n# My card\\n")
    result["my card"] = push(["push", str(Path(root, "resumed")), "--repo_id", "tester/resumed"])
    result["nothing"] = push(["push", root, "--repo_id", "tester/nothing"])
    result["no name"] = push(["push", str(Path(root, "resumed")), "--repo_id", "a/b/c"])
    result["usage"] = push(["push", "--repo", "x"])
    """
)


@pytest.fixture(scope="module")
def troubled(tmp_path_factory):
    root = tmp_path_factory.mktemp("troubled")
    with HubServer() as hub:
        hub.add_user("tester", TOKEN)
        hub.add_user("reader", "hf_" + "ReaderOnly" * 4, can_write=False)
        hub.add_repository("tester/parent", Path(save_tiny_checkpoint("vit", root / "parent")))
        hub.fail_next(r"POST .*/refused/commit/", 403)
        hub.fail_next(r"POST .*/down/commit/", 500, times=5, headers={"Retry-After": "0"})
        hub.fail_next(r"POST .*/closed/commit/", "close", times=5)
        # Also the push in the background that precedes the last one, as hub_strategy is every_save
        hub.fail_next(r"POST .*/shell-refused/commit/", 403, times=2)
        hub.fail_next(r"POST .*/every_save/commit/", 403)
        values = {"token": TOKEN, "reader": "hf_" + "ReaderOnly" * 4}
        result = run_logged(FAIL, hub.environment(token=None), root, **values)
        assert hub.clear_faults() == []
        yield Pushed(hub, root, result)


@pytest.mark.slow
def test_a_push_that_fails_loses_nothing_and_its_command_works_later(troubled):
    result, root = troubled.result, troubled.root
    for name in "no token at the start", "wrong token at the start":
        assert "could not be created on the Hub" in result[name] and "hf auth login" in result[name]
    assert not (root / "start" / "children.jsonl").exists()
    later = shlex.join(["smd-hf", "push", str(root / "by hand"), "--repo_id", "tester/by-hand", "--private"])
    for name in "no token", "no right", "no network", "offline":
        assert "Nothing is lost" in result[name] and result[name].endswith(f"`{later}`")
    assert "401" in result["no token"] and "403" in result["no right"] and "HF_HUB_OFFLINE" in result["offline"]
    assert "cannot be reached" in result["no network"]
    code, out, err = result["without a token"]
    assert (code, out) == (2, "") and err.startswith("smd-hf push: error: ") and later in err
    assert result["later"] == [0, f"{troubled.hub.url}/tester/by-hand\n", ""]
    assert troubled.hub.repository("tester/by-hand").private

    for name, reason in ("refused", "403"), ("down", "500"), ("closed", "breaks the connection"):
        assert reason in result[name] and "Nothing is lost" in result[name]
        assert result[f"{name}, later"] == [0, f"{troubled.hub.url}/tester/{name}\n", ""]
        assert (root / name / "model.safetensors").read_bytes() == troubled.files(f"tester/{name}")[
            "model.safetensors"
        ]
    assert "hf_" + "T0kenOf" not in json.dumps(result) and "Unknown" not in json.dumps(result)
    assert b"T0kenOf" not in (root / "output.log").read_bytes()


@pytest.mark.slow
def test_evolve_pushes_at_its_end_and_says_where_to(troubled):
    code, out, _ = troubled.result["evolve"]
    assert code == 0 and f"Pushed to {troubled.hub.url}/tester/shell\n" in out
    assert "gain_report.json" in troubled.files("tester/shell")
    code, out, err = troubled.result["evolve, refused"]
    assert code == 2 and "accuracy (%)" in out and "Pushed" not in out
    assert shlex.join(["smd-hf", "push", str(troubled.root / "shell-refused")]) in err.splitlines()[-1]


@pytest.mark.slow
def test_hub_strategy_decides_what_goes_up_meanwhile(troubled):
    result, hub = troubled.result, troubled.hub
    assert result["every_save"] == result["checkpoint"] == result["all_checkpoints"] == result["resumed"]
    end = {"README.md", "gain_report.json", "gain.png", "fitness.png", "reliability.png", "example.png"}
    model = {"config.json", "model.safetensors", "preprocessor_config.json"}
    state = {"trainer_state.json", "evolution_state.json"}
    folders = {
        "every_save": [],
        "checkpoint": ["last-checkpoint"],
        "all_checkpoints": ["checkpoint-1", "checkpoint-2"],
    }
    for strategy, names in folders.items():
        files = hub.files(f"tester/{strategy}", "evolved").keys() - {".gitattributes"}
        assert files == end | model | {f"{name}/{file}" for name in names for file in model | state}
        titles = [commit.title for commit in hub.commits(f"tester/{strategy}", "evolved")]
        # One background push is refused, which the run outlives.
        steps = [2] if strategy == "every_save" else [2, 1]
        assert titles[:-1] == ["End of training", *(f"Training in progress, step {step}" for step in steps)]
        assert troubled.files(f"tester/{strategy}") == {}
    assert b"The push of a checkpoint failed" in (troubled.root / "output.log").read_bytes()


@pytest.mark.slow
def test_branches_proposals_changed_cards_and_mistakes(troubled):
    result, hub = troubled.result, troubled.hub
    assert result["in the background"] == "End of training"
    assert "model.safetensors" in hub.files("tester/resumed", "side")
    assert result["proposal"] == [0, f"{hub.url}/tester/down/discussions/1\n", ""]
    assert len(hub.commits("tester/down")) == 2
    assert result["bad card"][0] == 2 and "license" in result["bad card"][2]
    assert result["my card"][0] == 0
    assert troubled.files("tester/resumed")["README.md"].decode() == "---\nlicense: mit\n---\n# My card\n"
    assert result["nothing"][0] == 2 and "holds nothing to push" in result["nothing"][2]
    assert result["no name"][0] == 2 and "is not a valid repository name" in result["no name"][2]
    assert result["usage"][0] == 2
    assert "Did you mean '--repo_id'" in result["usage"][2] and "`smd-hf push --help` lists" in result["usage"][2]


@pytest.mark.slow
def test_of_several_processes_one_pushes(hub_server, tmp_path):
    hub_server.add_repository("tester/parent", Path(save_tiny_checkpoint("resnet", tmp_path / "parent")))
    script = tmp_path / "script.py"
    script.write_text(
        f"root = {str(tmp_path)!r}\n"
        + textwrap.dedent(EVOLVE)
        + textwrap.dedent("""
            trainer = make_trainer("tester/parent", "out", push_to_hub=True, hub_model_id="tester/child", num_generations=1)
            trainer.train()
            commit = trainer.push_to_hub()
            Path(root, f"{os.environ['RANK']}.txt").write_text(f"{commit is not None} {sorted(trainer.pushed)}")
        """)
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = hub_server.environment() | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    log = tmp_path / "output.log"
    assert process.returncode == 0, process.stderr + (log.read_text() if log.is_file() else "")
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["True ['child']", "False []"]
    calls = [f"{each.method} {each.path}" for each in hub_server.requests]
    assert len([call for call in calls if "/commit/" in call]) == 1
    assert len(hub_server.commits("tester/child")) == 2
