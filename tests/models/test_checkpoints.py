"""Names on disk, the hash of the weights, and folders that load without smd_hf."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from transformers import AutoImageProcessor, AutoModelForImageClassification, TimmWrapperForImageClassification

from smd_hf.errors import SMDError
from smd_hf.models.checkpoints import checkpoint_names, load_weights, save_checkpoint, weights_hash
from smd_hf.models.load import load_image_processor, load_model
from tests.tiny import (
    ALL_KINDS,
    TIMM_KINDS,
    TRANSFORMERS_KINDS,
    aligned,
    label_names,
    save_tiny_checkpoint,
    tiny_images,
    tiny_model,
    tiny_pixels,
    tiny_processor,
)


@torch.no_grad()
def logits_of(model, count: int = 3) -> torch.Tensor:
    return model(tiny_pixels(count).to(model.dtype)).logits


def move(model) -> None:
    """Change every floating-point parameter a little, as evolution would."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_((torch.randn(parameter.shape, generator=generator) * 0.01).to(parameter.dtype))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(kind, "float32") for kind in ALL_KINDS]
    + [(kind, "bfloat16") for kind in ("vit", "swin", "resnet", "timm_vit", "timm_nfnet", "timm_dla", "custom")],
)
def test_saved_folder_gives_the_same_logits_and_hash(kind, dtype, tmp_path):
    parent = save_tiny_checkpoint(kind, tmp_path / "parent", dtype=getattr(torch, dtype))
    model = load_model(parent, trust_remote_code=True)
    assert model.dtype == getattr(torch, dtype)
    before = weights_hash(model)
    move(model)
    assert weights_hash(model) != before
    child = tmp_path / "child"
    save_checkpoint(model, load_image_processor(parent, model=model), child)
    loaded = AutoModelForImageClassification.from_pretrained(child, trust_remote_code=True).eval()
    assert loaded.dtype == model.dtype
    assert torch.equal(logits_of(loaded), logits_of(model))
    assert weights_hash(loaded) == weights_hash(model)
    assert loaded.config.id2label == dict(enumerate(label_names()))
    assert sorted(path.name for path in child.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_checkpoint_names_are_those_in_the_file(kind, tmp_path):
    model = load_model(save_tiny_checkpoint(kind, tmp_path / "parent"), trust_remote_code=True)
    save_checkpoint(model, None, tmp_path / "child")
    names = checkpoint_names(model)
    state = model.state_dict()
    with safe_open(tmp_path / "child" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == {names[name] for name in state}
        for name, tensor in state.items():
            assert torch.equal(file.get_tensor(names[name]), tensor)
    assert set(names) >= {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    assert len(set(names.values())) == len(names)


def test_names_that_transformers_renames():
    names = checkpoint_names(tiny_model("vit"))
    assert names["vit.layers.0.attention.q_proj.weight"] == "vit.encoder.layer.0.attention.attention.query.weight"


@pytest.mark.parametrize("kind", ["vit", "swin", *TIMM_KINDS[:2]])
def test_names_and_hash_do_not_depend_on_how_the_model_was_made(kind, tmp_path):
    made = tiny_model(kind)
    loaded = load_model(save_tiny_checkpoint(kind, tmp_path))
    assert checkpoint_names(made) == checkpoint_names(loaded)
    assert weights_hash(made) == weights_hash(loaded)


def test_hash_sees_bytes_dtype_and_buffers():
    model = tiny_model("resnet")
    first = weights_hash(model)
    assert first == weights_hash(tiny_model("resnet")) != weights_hash(tiny_model("resnet", seed=1))
    assert weights_hash(tiny_model("resnet").bfloat16()) != first
    for name, tensor in {
        "bias": model.classifier[1].bias,
        "mean": model.resnet.embedder.embedder.normalization.running_mean,
    }.items():
        before = tensor.detach().clone()
        with torch.no_grad():
            tensor.view(-1)[0] = torch.nextafter(before.view(-1)[0], torch.tensor(torch.inf))
        assert weights_hash(model) != first, name
        with torch.no_grad():
            tensor.copy_(before)
        assert weights_hash(model) == first


def test_hash_is_of_logical_content():
    model = tiny_model("convnext")
    first = weights_hash(model)
    assert weights_hash(model.to(memory_format=torch.channels_last)) == first


@pytest.mark.parametrize(
    ("kind", "made"),
    [(kind, "loaded") for kind in TIMM_KINDS] + [(kind, "from_config") for kind in ("timm_resnet", "timm_swin")],
)
def test_timm_reads_the_saved_folder(kind, made, tmp_path):
    model = tiny_model(kind) if made == "from_config" else load_model(save_tiny_checkpoint(kind, tmp_path / "parent"))
    move(model)
    save_checkpoint(model, load_image_processor(tmp_path, model=model), tmp_path / "child")
    native = timm.create_model(f"local-dir:{tmp_path / 'child'}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(aligned(native)(tiny_pixels(3)), logits_of(aligned(model)))
    assert list(timm.data.resolve_model_data_config(native)["input_size"]) == [3, 32, 32]


@pytest.mark.parametrize("arguments", ["kept", "left out"])
def test_folder_written_by_timm_itself_comes_back(arguments, tmp_path):
    native = timm.create_model("test_resnet", num_classes=4).eval()
    timm.models.save_for_hf(
        native, tmp_path / "timm", safe_serialization=True, model_config={"label_names": label_names()}
    )
    if arguments == "left out":
        # As in the checkpoints of timm's own organisation on the Hub.
        path = tmp_path / "timm" / "config.json"
        path.write_text(
            json.dumps({key: each for key, each in json.loads(path.read_text()).items() if key != "model_args"})
        )
    model = load_model(tmp_path / "timm")
    assert isinstance(model, TimmWrapperForImageClassification)
    assert list(model.config.id2label.values()) == label_names()
    save_checkpoint(model, load_image_processor(tmp_path / "timm"), tmp_path / "child")
    config = json.loads((tmp_path / "child" / "config.json").read_text())
    assert "num_classes" not in config.get("model_args", {})
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "child").eval()
    with torch.no_grad():
        assert torch.equal(logits_of(again), native(tiny_pixels(3)))
        assert torch.equal(
            timm.create_model(f"local-dir:{tmp_path / 'child'}", pretrained=True).eval()(tiny_pixels(3)),
            native(tiny_pixels(3)),
        )


SCRIPT = textwrap.dedent(
    """
    import json, sys
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

    torch.set_num_threads(1)
    results = {}
    images = [Image.open(path) for path in sys.argv[1:3]]
    for folder in sys.argv[3:]:
        model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True).eval()
        processor = AutoImageProcessor.from_pretrained(folder)
        with torch.no_grad():
            logits = model(**processor(images, return_tensors="pt")).logits
        answers = pipeline("image-classification", folder, trust_remote_code=True, top_k=1)(images)
        results[folder] = [logits.tolist(), [answer[0]["label"] for answer in answers]]
    assert "smd_hf" not in sys.modules
    print("RESULTS" + json.dumps(results))
    """
)


def test_fresh_process_without_smd_hf_gives_the_same_logits(tmp_path):
    images = tiny_images(2)
    paths = []
    for i, image in enumerate(images):
        paths.append(str(tmp_path / f"{i}.png"))
        image.save(paths[-1])
    expected = {}
    for kind in ("vit", "swin", "timm_resnet", "timm_deit", "custom"):
        parent = Path(save_tiny_checkpoint(kind, tmp_path / f"parent_{kind}"))
        model = load_model(parent, trust_remote_code=True)
        processor = load_image_processor(parent, model=model)
        move(model)
        child = tmp_path / f"child_{kind}"
        save_checkpoint(model, processor, child)
        # Nothing of the child may depend on the folder that the parent was loaded from.
        for path in parent.iterdir():
            path.unlink()
        with torch.no_grad():
            expected[str(child)] = model(**processor(images, return_tensors="pt")).logits
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    run = subprocess.run(
        [sys.executable, "-I", str(script), *paths, *expected],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout.split("RESULTS")[1])
    for folder, logits in expected.items():
        found, labels = results[folder]
        torch.testing.assert_close(torch.tensor(found), logits, rtol=0, atol=1e-5)
        assert labels == [label_names()[i] for i in logits.argmax(1)]


def test_custom_code_travels_and_no_longer_names_the_repository_it_came_from(tmp_path):
    model = load_model(save_tiny_checkpoint("custom", tmp_path / "parent"), trust_remote_code=True)
    model.config.auto_map = {key: f"someone/model--{value}" for key, value in model.config.auto_map.items()}
    save_checkpoint(model, tiny_processor(), tmp_path / "child")
    files = {path.name for path in (tmp_path / "child").iterdir()}
    assert {"configuration_tiny_custom.py", "layers_tiny_custom.py", "modeling_tiny_custom.py"} <= files
    auto_map = json.loads((tmp_path / "child" / "config.json").read_text())["auto_map"]
    assert auto_map == {
        "AutoConfig": "configuration_tiny_custom.TinyCustomConfig",
        "AutoModelForImageClassification": "modeling_tiny_custom.TinyCustomForImageClassification",
    }


@pytest.mark.parametrize("kind", TRANSFORMERS_KINDS[:2])
def test_processor_is_saved_and_the_folder_can_be_written_again(kind, tmp_path):
    (tmp_path / "notes.txt").write_text("kept")
    for seed in (0, 1):
        model = tiny_model(kind, seed=seed)
        save_checkpoint(model, tiny_processor(), tmp_path)
        assert weights_hash(load_model(tmp_path)) == weights_hash(model)
    assert AutoImageProcessor.from_pretrained(tmp_path).size == {"height": 32, "width": 32}
    assert (tmp_path / "notes.txt").read_text() == "kept"


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SMDError, match=r"cannot be saved in .*file"):
        save_checkpoint(tiny_model("vit"), None, tmp_path / "file" / "child")


@pytest.mark.parametrize("kind", ["vit", "swin", "timm_vit", "timm_resnet", "custom"])
def test_weights_go_back_into_a_model_by_their_names_in_the_file(kind, tmp_path):
    parent = save_tiny_checkpoint(kind, tmp_path / "parent")
    child = load_model(parent, trust_remote_code=True)
    move(child)
    save_checkpoint(child, None, tmp_path / "child")
    model = load_model(parent, trust_remote_code=True)
    assert weights_hash(model) != weights_hash(child)
    load_weights(model, tmp_path / "child")
    assert weights_hash(model) == weights_hash(child)


def test_a_checkpoint_of_another_model_is_refused_and_changes_nothing(tmp_path):
    model = tiny_model("vit")
    before = weights_hash(model)
    for kind, labels in ("deit", 4), ("vit", 3):
        folder = save_tiny_checkpoint(kind, tmp_path / f"{kind}-{labels}", num_labels=labels)
        with pytest.raises(SMDError, match="not a checkpoint of this ViTForImageClassification"):
            load_weights(model, folder)
    with pytest.raises(SMDError, match="not a checkpoint"):
        load_weights(model, tmp_path)
    assert weights_hash(model) == before
