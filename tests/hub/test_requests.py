"""What goes up, which requests are made again, and what is told: without a Hub. With one: tests/hub/test_push.py."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from email.utils import formatdate

import pytest
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, Response
from huggingface_hub.utils import get_session

from smd_hf import SMDError
from smd_hf.artifacts.delta.sparse_delta import SparseDelta
from smd_hf.hub import requests, upload
from smd_hf.hub.requests import persistently, push_command, push_error
from smd_hf.hub.staging import model_files, saved_kind, stage_checkpoint, stage_deltas, stage_description, stage_model
from smd_hf.hub.upload import push_folder, push_run
from smd_hf.run.lock import LOCK_NAME
from tests.test_trainer import make_dataset, make_trainer
from tests.tiny import save_tiny_checkpoint

SECRET = "a-secret-that-looks-like-no-token"


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a real run, with an ensemble, deltas and checkpoints."""
    root = tmp_path_factory.mktemp("run")
    data = make_dataset(40, 1), make_dataset(24, 2)
    save_tiny_checkpoint("resnet", root / "parent")
    arguments = {"elitism": False, "ensemble_size": 2, "save_children": 3, "save_steps": 1}
    loading = {"model_init_kwargs": {"cache_dir": str(root / "cache")}}
    make_trainer(root / "parent", root / "out", data, **arguments, **loading).train()
    return root / "out"


# ---- Requests --------------------------------------------------------------------------------------------------------


def refusal(status, **headers):
    """The error that the client raises for an answer of the Hub."""
    request = get_session().build_request("POST", "http://127.0.0.1:9/api/repos/create")
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return HfHubHTTPError(f"answered {status}", response=Response(status, headers=headers, request=request))


class Requests:
    """Raises one error after another, then answers."""

    def __init__(self, *errors):
        self.errors, self.count = list(errors), 0

    def __call__(self):
        self.count += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


@pytest.fixture
def waits(monkeypatch):
    """The pauses between tries, without making them."""
    pauses = []
    monkeypatch.setattr(requests.time, "sleep", pauses.append)
    return pauses


@pytest.mark.parametrize("status", [408, 409, 412, 429, 500, 502, 503, 504])
def test_a_request_is_made_again_where_that_may_help(status, waits):
    request = Requests(refusal(status), HTTPError("connection closed"), refusal(status))
    assert persistently(request) == "answer"
    assert request.count == 4 and waits == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_refusal_stands(status, waits):
    request = Requests(refusal(status))
    with pytest.raises(HfHubHTTPError):
        persistently(request)
    assert request.count == 1 and waits == []


def test_other_errors_are_not_the_hubs(waits):
    for error in (ValueError("no card"), OSError("no file"), OfflineModeIsEnabled("off")):
        with pytest.raises(type(error)):
            persistently(Requests(error))
    assert waits == []


def test_tries_come_to_an_end(waits):
    request = Requests(*[refusal(500)] * 99)
    with pytest.raises(HfHubHTTPError):
        persistently(request)
    assert request.count == requests.TRIES == len(waits) + 1


def test_the_hub_says_how_long_to_wait_but_not_for_ever(waits):
    soon = formatdate(requests.time.time() + 30, usegmt=True)
    window = '"api";r=0;t=17'
    request = Requests(refusal(429, Retry_After="7"), refusal(503, Retry_After=soon), refusal(429, RateLimit=window))
    assert persistently(request) == "answer"
    assert waits[0] == 7 and 25 < waits[1] <= 30 and waits[2] == 17

    waits.clear()
    assert persistently(Requests(refusal(429, Retry_After="100000"), refusal(429, Retry_After="soon"))) == "answer"
    assert waits == [requests.LONGEST_WAIT, 2.0]


def test_patience_is_bounded_in_seconds_too(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(requests.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(requests.time, "sleep", lambda pause: clock.__setitem__(0, clock[0] + pause))
    request = Requests(*[refusal(429, Retry_After="3600")] * 9)
    with pytest.raises(HfHubHTTPError):
        persistently(request)
    assert clock[0] <= requests.PATIENCE and request.count == 4


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (refusal(401), "status 401"),
        (refusal(403), "has write access"),
        (refusal(500), "Wait a while"),
        (HTTPError("[Errno 111] Connection refused"), "Check the network"),
        (OfflineModeIsEnabled("no"), "HF_HUB_OFFLINE"),
        (LocalTokenNotFoundError("no token"), "hf auth login"),
        (ValueError("Invalid metadata in README.md"), "Invalid metadata in README.md"),
    ],
)
def test_the_message_says_why_and_how_to_push_later(error, expected):
    command = push_command("/runs/my run", "user/name", private=True, revision="side", create_pr=True)
    message = str(push_error(error, "user/name", [command, "smd-hf push b --repo_id c"], None))
    assert expected in message and message.endswith(f"`{command}` and `smd-hf push b --repo_id c`")
    assert "\n" not in message and "Nothing is lost" in message
    options = ["--repo_id", "user/name", "--private", "--revision", "side", "--create_pr"]
    assert shlex.split(command) == ["smd-hf", "push", "/runs/my run", *options]


def test_the_message_holds_no_token():
    for token in (SECRET, "hf_" + "x" * 34):
        error = ValueError(f"Illegal header value Bearer {token} and once more {token}")
        assert token not in str(push_error(error, "user/name", ["smd-hf push"], token))


# ---- Files -----------------------------------------------------------------------------------------------------------


def test_what_a_folder_holds(finished, tmp_path):
    assert saved_kind(finished) == "child"
    assert saved_kind(finished / "ensemble") == "ensemble"
    assert saved_kind(finished / "children") == saved_kind(finished / "children" / "0001") == "delta"
    for folder, message in ((tmp_path, "holds nothing to push"), (tmp_path / "none", "does not exist")):
        with pytest.raises(SMDError, match=message):
            push_folder(folder, "user/name")


def test_python_files_go_up_only_where_the_model_imports_them(tmp_path):
    folder = tmp_path / "model"
    save_tiny_checkpoint("custom", folder)
    for name in ("notes.py", "setup.py"):
        (folder / name).write_text("import secrets")
    code = {"configuration_tiny_custom.py", "layers_tiny_custom.py", "modeling_tiny_custom.py"}
    assert {name for name in model_files(folder) if name.endswith(".py")} == code
    (folder / "layers_tiny_custom.py").unlink()
    with pytest.raises((SMDError, FileNotFoundError), match="layers_tiny_custom"):
        model_files(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "owner/name--modeling.Model"}}))
    assert not [name for name in model_files(folder) if name.endswith(".py")]
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "../outside.Model"}}))
    with pytest.raises(SMDError, match="has no file"):
        model_files(folder)


def test_shards_go_up_and_what_is_not_safetensors_does_not(tmp_path):
    folder = tmp_path / "model"
    save_tiny_checkpoint("resnet", folder)
    shard, index = "model-00001-of-00001.safetensors", "model.safetensors.index.json"
    (folder / "model.safetensors").rename(folder / shard)
    (folder / index).write_text(json.dumps({"weight_map": {"a": shard, "b": shard}}))
    assert model_files(folder) == ["config.json", "preprocessor_config.json", index, shard]
    (folder / index).write_text(json.dumps({"weight_map": {"a": "../parent.safetensors"}}))
    (tmp_path / "parent.safetensors").touch()
    with pytest.raises(SMDError, match="has no file"):
        model_files(folder)
    (folder / index).unlink()
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(SMDError, match="only weights in safetensors"):
        model_files(folder)


def test_a_staged_model_stays_what_it_was(finished, tmp_path):
    source, staged = tmp_path / "source", tmp_path / "staged"
    shutil.copytree(finished, source)
    before = (source / "model.safetensors").read_bytes()
    staged.mkdir()
    stage_model(source, staged)
    save_tiny_checkpoint("resnet", tmp_path / "other", seed=5)
    (tmp_path / "other" / "model.safetensors").replace(source / "model.safetensors")
    assert (staged / "model.safetensors").read_bytes() == before != (source / "model.safetensors").read_bytes()


def test_a_checkpoint_goes_up_with_what_a_run_resumes_from(finished, tmp_path):
    stage_checkpoint(finished / "checkpoint-1", tmp_path / "checkpoint-1")
    model = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert names(tmp_path / "checkpoint-1") == model | {"trainer_state.json", "evolution_state.json"}


def test_deltas_name_the_place_of_their_base_on_the_hub_or_none(finished, tmp_path):
    for place in (("user/name", "0" * 40), (None, None)):
        staged = tmp_path / str(place[0])
        stage_deltas(finished / "children", staged, 2, lambda config, place=place: place)
        assert names(staged) == {f"000{i}/smd_delta{end}" for i in (0, 1) for end in (".safetensors", "_config.json")}
        delta, original = (SparseDelta.from_pretrained(each / "0001") for each in (staged, finished / "children"))
        assert (delta.config.base_model, delta.config.base_revision) == place
        assert delta.config.child_hash == original.config.child_hash and original.config.base_is_folder
        assert str(tmp_path) not in (staged / "0001" / "smd_delta_config.json").read_text()


def test_a_base_that_cannot_go_up_stays_here_and_is_told_of(finished, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(upload.logger, "warning", told.append)
    config = SparseDelta.from_pretrained(finished / "children" / "0000").config
    save_tiny_checkpoint("resnet", tmp_path / "other", seed=5)
    for create_pr, base, reason in (
        (True, config.base_model, "a pull request cannot hold it"),
        (False, str(tmp_path / "gone"), "has no model.safetensors"),
        (False, str(tmp_path / "other"), "its weights have changed since the deltas were made"),
    ):
        place = upload._push_base(None, "user/name", create_pr, replace(config, base_model=base))
        assert place == (None, None) and reason in told[-1] and ".merge(base)" in told[-1]
    assert len(told) == 3


@pytest.mark.parametrize(
    ("kind", "place"), [("child", ""), ("ensemble", "ensemble"), ("delta", "children"), ("delta", "children/0001")]
)
def test_the_card_is_written_anew_for_the_hub_unless_it_was_changed(kind, place, finished, tmp_path):
    # Moved since the run, as a folder may be
    source, staged = tmp_path / "moved", tmp_path / "staged" / "0001"
    shutil.copytree(finished, source)
    if kind == "delta":
        stage_deltas(source / place, staged, None, lambda config: (None, None))
    else:
        staged.mkdir(parents=True)
        stage_model(source / place, staged)
    assert stage_description(kind, source / place, staged, "user/some-name") is False
    card = (staged / "README.md").read_text()
    assert "# some-name\n" in card and '"user/some-name"' in card
    report = json.loads((staged / "gain_report.json").read_text())
    assert report["parent_name"] == "parent" and report["arguments"]["model_init_kwargs"] == {"cache_dir": "cache"}
    assert not re.search(re.escape(str(finished.parent)), card + json.dumps(report))

    if place != "children/0001":  # which has no card of its own
        path = source / place / "README.md"
        path.write_text(path.read_text().replace("## Limits", "## Limits\n\n- Not for aeroplanes.", 1))
        assert stage_description(kind, source / place, staged, "user/some-name") is True
        assert "Not for aeroplanes" in (staged / "README.md").read_text()


def test_a_run_that_cannot_be_pushed_lists_what_is_left_to_do(finished):
    # The tests' own environment is offline.
    with pytest.raises(SMDError, match="HF_HUB_OFFLINE") as error:
        push_run(finished, "user/name", ensemble=True, children=2, private=True)
    commands = re.findall("`(smd-hf push .*?)`", str(error.value))
    places = {"user/name": "", "user/name-ensemble": "/ensemble", "user/name-children": "/children"}
    assert commands == [
        shlex.join(["smd-hf", "push", f"{finished}{place}", "--repo_id", repo_id, "--private"])
        for repo_id, place in places.items()
    ]
    # Nothing half-written: the lock of the run stays where it was.
    assert [name for name in names(finished) if name.startswith(".")] == [LOCK_NAME]
