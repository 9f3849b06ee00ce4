"""Hostile artifacts: a few hundred cases of fuzz.py, and a test for each fault that 100,000 cases found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

import smd_hf
from smd_hf import SMDError
from smd_hf.artifacts.delta.sparse_delta import SparseDelta
from smd_hf.artifacts.ensemble import SMDEnsembleForImageClassification
from smd_hf.messages import one_line
from smd_hf.run.identity import FORMAT, check_same
from smd_hf.run.resume import read_checkpoint

from ..tiny import save_tiny_checkpoint, tiny_model

HERE = Path(__file__).parent

# The fuzzing, and loaders that do what none may do: each has to be noticed.
SCRIPT = """
import json, pickle, sys
from collections import OrderedDict
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import fuzz
from smd_hf import SMDError

def raise_lines(place):
    raise SMDError("two\\nlines")

def loop(place):
    while True:
        pass

BAD = {
    "writes": lambda place: (place / "new").write_text("x") and None,
    "reads outside": lambda place: (place / ".." / "outside" / "secret").read_text() and None,
    "pickle.find_class": lambda place: pickle.loads(pickle.dumps(OrderedDict())) and None,
    "KeyError": lambda place: {}["x"],
    "not one printable line": raise_lines,
    "grew by": lambda place: b"x" * (5 * 2**26) and None,
    "TooLong": loop,
    "not sound": lambda place: "it is not sound",
}
code = fuzz.main(["--cases", "300", "--json", sys.argv[2]])
noticed = {}
fuzz.SECONDS = 3.0
with fuzz.sandbox() as folder:
    watch = fuzz.Watch(folder)
    for name, load in BAD.items():
        outcome = fuzz.run_case(fuzz.Loader("bad", 1.0, [{"file": b"content"}], load), 0, 0, watch)
        noticed[name] = outcome.failure
print(json.dumps([code, noticed]))
"""


@pytest.mark.slow
def test_some_hundred_cases_end_in_success_or_a_named_error(tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(HERE), str(tmp_path / "fuzz.json")]
    process = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert process.returncode == 0, process.stderr[-3000:]
    code, noticed = json.loads(process.stdout.splitlines()[-1])
    results = json.loads((tmp_path / "fuzz.json").read_text())
    assert code == 0 and results["failures"] == 0 and results["cases"] == 300
    for loader in ("delta", "ensemble", "ledger"):
        each = results["loaders"][loader]
        assert each["successes"] > 0 and each["named_errors"] > 0 and each["kinds"] > 3
    assert all(failure is not None and name in failure for name, failure in noticed.items()), noticed


@pytest.fixture
def ensemble(tmp_path):
    model = tiny_model("resnet")
    child = {"classifier.1.bias": (None, torch.zeros(4))}
    SMDEnsembleForImageClassification.from_children(model, [child, {}]).save_pretrained(tmp_path / "ensemble")
    return tmp_path / "ensemble"


def test_statistics_of_batchnorm_that_are_nan_are_refused(ensemble):
    state = load_file(ensemble / "model.safetensors")
    state["parent.resnet.embedder.embedder.normalization.running_mean"][0] = float("nan")
    save_file(state, ensemble / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SMDError, match="running_mean of the ensemble has values that are NaN"):
        smd_hf.load(ensemble)


@pytest.mark.parametrize(
    "index", ["[]", "{}", '{"weight_map": "x"}', '{"weight_map": [1]}', "[" * 10000, "\x00", '"x"']
)
def test_an_index_that_is_none_is_refused(index, ensemble):
    (ensemble / "model.safetensors").unlink()
    (ensemble / "model.safetensors.index.json").write_text(index)
    with pytest.raises(SMDError, match="no index of weights"):
        smd_hf.load(ensemble)


@pytest.mark.parametrize("name", ["model.safetensors", "preprocessor_config.json", "config.json"])
def test_links_out_of_an_ensembles_folder_are_not_followed(name, ensemble, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes((ensemble / name).read_bytes() if (ensemble / name).exists() else b"{}")
    (ensemble / name).unlink(missing_ok=True)
    (ensemble / name).symlink_to(elsewhere)
    with pytest.raises(SMDError, match="a link to a file outside that folder"):
        smd_hf.load(ensemble)


@pytest.mark.parametrize("entries", [{"dtype": "floa/32"}, {"id2label": 7}, {"model_type": "x\x1b[31m"}])
def test_whatever_stumbles_over_a_configuration_the_error_is_one_printable_line(entries, ensemble):
    config = json.loads((ensemble / "config.json").read_text())
    (ensemble / "config.json").write_text(json.dumps(config | entries))
    with pytest.raises(SMDError) as caught:
        smd_hf.load(ensemble)
    assert str(caught.value).isprintable()
    assert one_line("a\x00b\x1b[31mc\ud800\n d") == "a?b?[31mc? d"


def test_a_tensor_of_too_many_dimensions_is_refused(tmp_path):
    base = tiny_model("resnet")
    SparseDelta.from_changes(base, [("classifier.1.bias", (None, torch.zeros(4)))]).save_pretrained(tmp_path)
    path = tmp_path / "smd_delta.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["classifier.1.bias.values"]["shape"] = [4] + [1] * 500
    header = json.dumps(header).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    with pytest.raises(SMDError, match="at most 64 dimensions"):
        SparseDelta.from_pretrained(tmp_path)


def test_integers_that_are_too_large_for_a_float_are_refused(ensemble, tmp_path):
    SparseDelta.from_changes(tiny_model("resnet"), []).save_pretrained(tmp_path / "delta")
    for path, name, value in (
        (tmp_path / "delta" / "smd_delta_config.json", "density", 10**400),
        (ensemble / "config.json", "member_weights", [10**400, 1]),
    ):
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(SMDError, match="density"):
        SparseDelta.from_pretrained(tmp_path / "delta")
    with pytest.raises(SMDError, match="member_weights"):
        smd_hf.load(ensemble)


@pytest.mark.parametrize(
    "sizes", [{"depths": [1, 1, 10**6]}, {"depths": [1, 10**9, 1]}, {"hidden_sizes": [8, 2**40, 24]}]
)
def test_models_far_larger_than_the_files_are_not_built_to_their_end(sizes, ensemble):
    config = json.loads((ensemble / "config.json").read_text())
    config["parent_config"] |= sizes
    (ensemble / "config.json").write_text(json.dumps(config))
    with pytest.raises(SMDError, match="describes a"):
        smd_hf.load(ensemble)


def test_names_in_a_ledger_are_shown_on_one_printable_line(tmp_path):
    identity = {"format": FORMAT, "arguments": {"seed": 1}, "data": {"train_dataset": "a"}, "parent": "b"}
    hostile = identity | {"data": {"a\nb": "x", "\x1b[31mred": "y"}, "arguments": {"\u202eseed": 1}}
    with pytest.raises(SMDError, match="belongs to another run") as caught:
        check_same(hostile, identity, tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["evolution_state.json", "trainer_state.json"])
def test_links_out_of_a_checkpoint_are_not_followed(name, tmp_path):
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "elsewhere").write_text("{}")
    (tmp_path / "checkpoint-1" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SMDError, match="a link to a file outside that folder"):
        read_checkpoint(tmp_path / "checkpoint-1")


@pytest.mark.parametrize("name", ["trainer_state.json", "evolution_state.json", "model.safetensors"])
def test_a_pipe_in_a_checkpoint_is_not_waited_for(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(SMDError, match="is not a file or folder"):
        read_checkpoint(tmp_path)


def test_code_of_members_stored_whole_runs_only_where_it_is_trusted(tmp_path):
    parents = [save_tiny_checkpoint("custom", tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    models = [AutoModelForImageClassification.from_pretrained(parent, trust_remote_code=True) for parent in parents]
    folder = tmp_path / "ensemble"
    SMDEnsembleForImageClassification.from_models(models).save_pretrained(folder)
    for file in folder.glob("*_tiny_custom.py"):
        file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n" + file.read_text())
    with pytest.raises(SMDError, match="trust_remote_code"):
        smd_hf.load(folder)
    assert not (tmp_path / "ran").exists()
    assert len(smd_hf.load(folder, trust_remote_code=True).members) == 2
    assert (tmp_path / "ran").exists()
