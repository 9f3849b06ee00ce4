"""What travels with an ensemble: its size, its independence of what is private to transformers, and ensembles saved before."""

import ast
import importlib
import json
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

import smd_hf
from smd_hf.artifacts.ensemble import SMDEnsembleForImageClassification

from ..tiny import aligned, save_tiny_checkpoint, tiny_model, tiny_pixels
from .test_ensemble import make_child, whole_child

PIXELS = tiny_pixels(3)
BEFORE = Path(__file__).parent / "ensembles_of_0_1.zip"
"""Saved when eleven files of code travelled, by the script `made_by.py` in it: children of a ViT, a ResNet, a timm model and
one with code of its own; the code of all in `code/`, their outputs then in `expected.safetensors`."""
NAMES = ("vit", "resnet", "timm", "own")

# Loads each folder as a stranger would, where smd_hf cannot be imported and some of transformers is missing.
STRANGER = textwrap.dedent(
    """
    import importlib, json, sys, types

    sys.modules["smd_hf"] = None
    missing, *names = sys.argv[1:]
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForImageClassification, PreTrainedModel, ResNetForImageClassification, ViTModel

    # What transformers itself has imported by now goes on working: only who asks from here on finds less.
    PARTS = {
        "name": ("core_model_loading", {"PrefixChange": None}),
        "arguments": ("conversion_mapping", {"get_model_conversion_mapping": lambda model: []}),
        "loader": ("dynamic_module_utils", {"get_class_from_dynamic_module": None}),
    }
    if missing in PARTS:
        module, changed = PARTS[missing]
        whole = importlib.import_module(f"transformers.{module}")
        part = types.ModuleType(whole.__name__)
        vars(part).update({name: value for name, value in {**vars(whole), **changed}.items() if value is not None})
        sys.modules[whole.__name__] = part
    torch.set_num_threads(1)
    pixels, found, facts = load_file("pixels.safetensors")["pixels"], {}, {}
    for name in names:
        try:
            model = AutoModelForImageClassification.from_pretrained(name, trust_remote_code=True)
        except ValueError as error:
            facts[name] = str(error)
            continue
        facts[name] = type(model).__module__
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.data = tensor.data.clone()
        with torch.no_grad():
            output = model(pixels, output_members=True)
        found |= {f"{name}.logits": output.logits, f"{name}.member_logits": output.member_logits.contiguous()}
    save_file(found, "found.safetensors")
    print(json.dumps(facts))
    """
)


def as_a_stranger(folder: Path, *names: str, missing: str = "nothing") -> tuple[dict, dict[str, torch.Tensor]]:
    """What each ensemble says of itself or why it does not load, and its outputs, where smd_hf is not installed."""
    save_file({"pixels": PIXELS}, folder / "pixels.safetensors")
    (folder / "stranger.py").write_text(STRANGER)
    environment = {**os.environ, "HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "stranger.py", missing, *names]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1]), load_file(folder / "found.safetensors")


def outputs(ensemble, name: str) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        output = aligned(ensemble)(PIXELS, output_members=True)
    return {f"{name}.logits": output.logits, f"{name}.member_logits": output.member_logits}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys() and found
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.fixture
def before(tmp_path) -> Path:
    """The ensembles saved before, each with its code beside it."""
    with zipfile.ZipFile(BEFORE) as archive:
        archive.extractall(tmp_path)
    for name in NAMES:
        for file in (tmp_path / "code").iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    return tmp_path


def children_of(model, late: int = 6) -> list[dict]:
    names = [name for name, _ in model.named_parameters()][-late:]
    return [make_child(model, 0), whole_child(model, 1), {}, make_child(model, 2, 0.5, names)]


def make_ensemble(model) -> SMDEnsembleForImageClassification:
    return SMDEnsembleForImageClassification.from_children(model, children_of(model), [0.4, 0.3, 0.2, 0.1])


# What travels


def test_three_files_and_700_lines_travel_and_import_public_names_alone(tmp_path):
    make_ensemble(tiny_model("resnet")).save_pretrained(tmp_path)
    code = {file.name: file.read_text() for file in tmp_path.glob("*.py")}
    assert set(code) == {
        "configuration_smd_ensemble.py",
        "members_smd_ensemble.py",
        "modeling_smd_ensemble.py",
    }
    assert sum(text.count("\n") for text in code.values()) <= 700
    public = {"transformers", "transformers.modeling_outputs"}
    for text in code.values():
        for node in ast.parse(text).body:  # what is imported as soon as the file is
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module.split(".")[0] == "transformers":
                assert node.module in public
                assert not any(name.name.startswith("_") for name in node.names)
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                assert f"{node.module}.py" in code
        assert "import smd_hf" not in text and "from smd_hf" not in text


def test_what_travels_predicts_as_smd_hf_does_bit_for_bit(tmp_path):
    custom = save_tiny_checkpoint("custom", tmp_path / "custom")
    models = {
        "vit": tiny_model("vit"),
        "timm": tiny_model("timm_resnet"),
        "own": AutoModelForImageClassification.from_pretrained(custom, trust_remote_code=True),
    }
    expected = {}
    for name, model in models.items():
        make_ensemble(model).save_pretrained(tmp_path / name)
        loaded = smd_hf.load(tmp_path / name, trust_remote_code=True)
        assert type(loaded) is SMDEnsembleForImageClassification and loaded._passes.recorded is not None
        expected |= outputs(loaded, name)
    facts, found = as_a_stranger(tmp_path, *models)
    assert all(module.startswith("transformers_modules.") for module in facts.values())
    assert_same(found, expected)


# What is private to transformers may go


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["name", "arguments"])
def test_without_transformers_private_names_an_ensemble_still_predicts_the_same(missing, tmp_path):
    expected = {}
    for name in ("vit", "resnet"):
        ensemble = make_ensemble(tiny_model(name))
        ensemble.save_pretrained(tmp_path / name)
        expected |= outputs(ensemble, name)
    assert "vit.layers.0.attention.q_proj.weight" in make_ensemble(tiny_model("vit")).config.names_in_memory.values()
    facts, found = as_a_stranger(tmp_path, "vit", "resnet", missing=missing)
    assert all(module.startswith("transformers_modules.") for module in facts.values())
    assert_same(found, expected)


@pytest.mark.slow
def test_a_tensor_that_is_known_by_no_name_is_one_clear_error(tmp_path):
    make_ensemble(tiny_model("vit")).save_pretrained(tmp_path / "vit")
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    del config["names_in_memory"]
    (tmp_path / "vit" / "config.json").write_text(json.dumps(config))
    facts, _ = as_a_stranger(tmp_path, "vit", missing="name")
    assert "lists changes of vit." in facts["vit"] and "install the version named there" in facts["vit"]


@pytest.mark.slow
def test_code_of_a_parent_that_cannot_be_loaded_is_one_clear_error(tmp_path):
    custom = save_tiny_checkpoint("custom", tmp_path / "custom")
    model = AutoModelForImageClassification.from_pretrained(custom, trust_remote_code=True)
    make_ensemble(model).save_pretrained(tmp_path / "own")
    make_ensemble(tiny_model("resnet")).save_pretrained(tmp_path / "resnet")
    facts, _ = as_a_stranger(tmp_path, "own", "resnet", missing="loader")
    assert "no dynamic_module_utils.get_class_from_dynamic_module" in facts["own"]
    assert facts["resnet"].startswith("transformers_modules.")


@pytest.mark.parametrize(
    ("names", "message"), [(["x"], "names_in_memory"), ({"a": 1}, "names_in_memory"), ({"x": "y"}, None)]
)
def test_names_in_memory_are_checked_and_never_lead_to_a_tensor_twice(names, message, tmp_path):
    ensemble = make_ensemble(tiny_model("resnet"))
    ensemble.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    taken = next(iter(config["changes"]))
    if message is None:
        names, message = {"stranger": taken}, "lists changes of stranger"
        config["changes"]["stranger"] = config["changes"][taken]
    (tmp_path / "config.json").write_text(json.dumps(config | {"names_in_memory": names}))
    with pytest.raises(ValueError, match=message):
        SMDEnsembleForImageClassification.from_pretrained(tmp_path)


# Ensembles that were saved before


@pytest.mark.slow
def test_ensembles_saved_before_load_with_smd_hf_and_by_their_own_code_to_the_same_bits(before):
    facts, by_their_own_code = as_a_stranger(before, *NAMES)
    assert all(module.startswith("transformers_modules.") for module in facts.values())
    with_smd_hf = {}
    for name in NAMES:
        ensemble = smd_hf.load(before / name, trust_remote_code=True)
        assert type(ensemble) is SMDEnsembleForImageClassification
        with_smd_hf |= outputs(ensemble, name)
    assert_same(with_smd_hf, by_their_own_code)
    # Another processor rounds otherwise.
    for name, tensor in load_file(before / "expected.safetensors").items():
        torch.testing.assert_close(with_smd_hf[name], tensor, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_an_ensemble_saved_before_and_saved_again_travels_with_the_new_code(before, tmp_path):
    expected = {}
    for name in NAMES:
        ensemble = smd_hf.load(before / name, trust_remote_code=True)
        ensemble.save_pretrained(tmp_path / "again" / name)
        again, earlier = (folder / name / "model.safetensors" for folder in (tmp_path / "again", before))
        assert again.read_bytes() == earlier.read_bytes()
        assert not (tmp_path / "again" / name / "prefix_replay.py").exists()
        expected |= outputs(ensemble, name)
    _, found = as_a_stranger(tmp_path / "again", *NAMES, missing="name")
    assert_same(found, expected)


# Inputs beside the pixels


@pytest.mark.parametrize("shipped", [False, True])
def test_all_inputs_of_a_member_reach_it_in_its_dtype(shipped):
    from smd_hf.remote_code import modeling_smd_ensemble

    ensemble = SMDEnsembleForImageClassification.from_children(tiny_model("vit").half(), [{}, {}])
    if shipped:
        parts = dict(models=[ensemble.parent], members=ensemble.members)
        ensemble = modeling_smd_ensemble.SMDEnsembleForImageClassification(ensemble.config, **parts).eval()
    seen, forward = [], ensemble.parent.forward

    def watch(pixel_values=None, mask=None, weights=None, flag=None):
        seen.append((pixel_values, mask, weights, flag))
        return forward(PIXELS.half())

    ensemble.parent.forward = watch
    mask, weights = torch.ones(3, 4, dtype=torch.int64), torch.rand(3, 4)
    with torch.no_grad():
        ensemble(PIXELS, mask=mask, weights=weights, flag=0.5)
        ensemble(mask=mask)
    assert len(seen) == 4
    assert seen[0][0].dtype == seen[0][2].dtype == torch.float16 and seen[0][1] is mask and seen[0][3] == 0.5
    assert seen[2][0] is None and seen[2][1] is mask


def test_the_import_that_published_cards_tell_of_still_works():
    imported = importlib.import_module("smd_hf.ensemble")
    assert imported.SMDEnsembleForImageClassification is smd_hf.SMDEnsembleForImageClassification
    assert imported.SMDEnsembleConfig is smd_hf.SMDEnsembleConfig and callable(imported.save_ensemble)
