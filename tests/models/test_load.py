"""Loading models and image processors, and what is said when that fails."""

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, TimmWrapperImageProcessor, ViTImageProcessor

from smd_hf.errors import SMDError
from smd_hf.models.load import is_timm_model, load_image_processor, load_model, load_model_for_new_head, num_channels
from tests.hub.fixtures import hub_server  # noqa: F401
from tests.tiny import (
    ALL_KINDS,
    TIMM_KINDS,
    label_names,
    save_tiny_checkpoint,
    tiny_images,
    tiny_model,
    tiny_pixels,
    tiny_processor,
)


@pytest.fixture(autouse=True)
def no_prompt(monkeypatch):
    def ask(*args):
        raise AssertionError("the user was asked at a prompt")

    monkeypatch.setattr("builtins.input", ask)


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(load, *args, **kwargs) -> str:
    """The message of the SMDError that the call ends in, which is one paragraph."""
    with pytest.raises(SMDError) as caught:
        load(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_model_and_processor_of_every_kind(kind, tmp_path):
    folder = save_tiny_checkpoint(kind, tmp_path)
    model = load_model(folder, trust_remote_code=True)
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert is_timm_model(model) == (kind in TIMM_KINDS)
    assert num_channels(model) == 3
    assert list(model.config.id2label.values()) == label_names()
    for processor in (load_image_processor(folder, model=model), load_image_processor(folder)):
        assert isinstance(processor, TimmWrapperImageProcessor if kind in TIMM_KINDS else ViTImageProcessor)
        pixels = processor(tiny_images(2, image_size=40), return_tensors="pt")["pixel_values"]
        assert pixels.shape == (2, 3, 32, 32)
        with torch.no_grad():
            assert model(pixels).logits.shape == (2, 4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", torch.bfloat16])
@pytest.mark.parametrize("kind", ["vit", "timm_vit", "custom"])
def test_dtype(kind, dtype, tmp_path):
    folder = save_tiny_checkpoint(kind, tmp_path, dtype=torch.float16)
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    model = load_model(folder, dtype=dtype, trust_remote_code=True)
    assert {parameter.dtype for parameter in model.parameters()} == {wanted}
    assert load_model(folder, trust_remote_code=True).dtype == torch.float16


def test_unknown_dtype():
    assert "bfloat16" in refusal(load_model, "whatever", dtype="bf16")


def test_grey_images(tmp_path):
    native = timm.create_model("test_resnet", num_classes=4, in_chans=1)
    timm.models.save_for_hf(native, tmp_path / "timm", safe_serialization=True)
    assert num_channels(load_model(tmp_path / "timm")) == 1
    config = tiny_model("vit").config
    config.num_channels = 1
    assert num_channels(type(tiny_model("vit"))(config)) == 1


def test_home_folder_and_path_objects(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_tiny_checkpoint("vit", tmp_path / "model")
    assert load_model("~/model").config.num_labels == 4
    assert load_image_processor(tmp_path / "model").size == {"height": 32, "width": 32}


def test_sharded_weights(tmp_path):
    model = tiny_model("vit")
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    assert not (tmp_path / "model.safetensors").exists()
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path)(tiny_pixels()).logits, model(tiny_pixels()).logits)


# ---- Bad input in folders ---------------------------------------------------------------------------------------------


def test_folder_that_does_not_exist_names_its_neighbours(tmp_path):
    save_tiny_checkpoint("vit", tmp_path / "flowers-vit")
    message = refusal(load_model, tmp_path / "flower-vit")
    assert "There is no folder" in message
    assert str(tmp_path / "flowers-vit") in message


def test_file_and_folder_without_config(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"")
    assert "is a file" in refusal(load_model, tmp_path / "weights.bin")
    assert "no config.json" in refusal(load_model, tmp_path)
    (tmp_path / "config.json").write_text("{not json")
    assert "config.json" in refusal(load_model, tmp_path)


def test_other_task(tmp_path):
    tiny = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "vocab_size": 8,
    }
    BertModel(BertConfig(**tiny)).save_pretrained(tmp_path)
    message = refusal(load_model, tmp_path)
    assert "not an image classifier" in message
    assert "BertModel" in message
    assert "'bert'" in message


def test_unknown_architecture(tmp_path):
    save_tiny_checkpoint("vit", tmp_path)
    edit_json(tmp_path / "config.json", model_type="vitamin", architectures=["VitaminForImageClassification"])
    message = refusal(load_model, tmp_path)
    assert "'vitamin'" in message
    assert "VitaminForImageClassification" in message


def test_unknown_timm_architecture(tmp_path):
    save_tiny_checkpoint("timm_vit", tmp_path)
    edit_json(tmp_path / "config.json", architecture="resnet19")
    assert "resnet19" in refusal(load_model, tmp_path)


def test_custom_code_runs_only_where_trusted(tmp_path):
    save_tiny_checkpoint("custom", tmp_path)
    proof = tmp_path / "ran"
    for path in tmp_path.glob("*.py"):
        path.write_text(f"open({str(proof)!r}, 'w').close()\n" + path.read_text())
    message = refusal(load_model, tmp_path)
    assert "--trust_remote_code" in message
    assert "trust_remote_code=True" in message
    assert not proof.exists()
    assert load_model(tmp_path, trust_remote_code=True).config.num_labels == 4
    assert proof.exists()
    # Having been run once in this process does not make it trusted.
    assert "--trust_remote_code" in refusal(load_model, tmp_path)


def test_custom_code_of_another_task(tmp_path):
    save_tiny_checkpoint("custom", tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    auto_map["AutoModel"] = auto_map.pop("AutoModelForImageClassification")
    edit_json(tmp_path / "config.json", auto_map=auto_map)
    assert "not an image classifier" in refusal(load_model, tmp_path, trust_remote_code=True)


def test_pickle_is_never_read(tmp_path):
    save_tiny_checkpoint("vit", tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    message = refusal(load_model, tmp_path)
    assert "safetensors" in message
    assert "pickle" in message


def test_damaged_weights(tmp_path):
    save_tiny_checkpoint("vit", tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:1000])
    assert "could not be loaded" in refusal(load_model, tmp_path)


@pytest.mark.parametrize(
    ("kind", "lost"),
    [
        ("vit", "vit.encoder.layer.0.attention.attention.query.weight"),
        ("timm_vit", "blocks.0.attn.qkv.weight"),
        ("custom", "stem.weight"),
        # Custom code draws no line between body and head.
        ("custom", "linear.weight"),
    ],
)
def test_weights_missing_from_the_body(kind, lost, tmp_path):
    save_tiny_checkpoint(kind, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state[lost]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for load in (load_model, load_model_for_new_head):
        message = refusal(load, tmp_path, trust_remote_code=True)
        assert "incomplete" in message
        assert lost.rsplit(".", 2)[-2] in message or "q_proj" in message


def test_counters_of_batch_norm_may_be_missing(tmp_path):
    save_tiny_checkpoint("resnet", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert len(kept) < len(state)
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path)(tiny_pixels()).logits, tiny_model("resnet")(tiny_pixels()).logits)


def test_weights_of_another_shape(tmp_path):
    save_tiny_checkpoint("resnet", tmp_path)
    edit_json(
        tmp_path / "config.json", id2label={str(i): str(i) for i in range(7)}, label2id={str(i): i for i in range(7)}
    )
    message = refusal(load_model, tmp_path)
    assert "classifier.1.weight" in message
    assert "7 labels" in message


def test_model_without_a_head_is_for_those_who_replace_it(tmp_path):
    tiny_model("vit").vit.save_pretrained(tmp_path / "vit")
    native = timm.create_model("test_resnet", num_classes=0)
    timm.models.save_for_hf(native, tmp_path / "timm", safe_serialization=True)
    for folder, names in {
        "vit": ["classifier.bias", "classifier.weight"],
        "timm": ["timm_model.fc.bias", "timm_model.fc.weight"],
    }.items():
        message = refusal(load_model, tmp_path / folder)
        assert "no trained classifier" in message
        assert names[0] in message
        model, missing = load_model_for_new_head(tmp_path / folder)
        assert missing == names
        assert not model.training
    save_tiny_checkpoint("vit", tmp_path / "whole")
    assert load_model_for_new_head(tmp_path / "whole")[1] == []


def test_missing_image_processor(tmp_path):
    save_tiny_checkpoint("vit", tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    model = load_model(tmp_path)
    message = refusal(load_image_processor, tmp_path, model=model)
    assert "preprocessor_config.json" in message
    assert "processing_class" in message


def test_image_processor_with_custom_code(tmp_path):
    tiny_processor().save_pretrained(tmp_path)
    edit_json(
        tmp_path / "preprocessor_config.json",
        image_processor_type="Mine",
        auto_map={"AutoImageProcessor": "mine.Mine"},
    )
    (tmp_path / "mine.py").write_text(
        "from transformers import ViTImageProcessor\n\n\nclass Mine(ViTImageProcessor):\n    pass\n"
    )
    save_tiny_checkpoint("vit", tmp_path / "model")
    shutil.copy(tmp_path / "model" / "config.json", tmp_path)
    assert "--trust_remote_code" in refusal(load_image_processor, tmp_path)
    assert type(load_image_processor(tmp_path, trust_remote_code=True)).__name__ == "Mine"


# ---- The Hub ----------------------------------------------------------------------------------------------------------

SCRIPT = textwrap.dedent(
    """
    import json, sys
    import torch
    from smd_hf.errors import SMDError
    from smd_hf.models.load import load_image_processor, load_model

    torch.set_num_threads(1)
    results = []
    for name, options in json.loads(sys.argv[1]):
        try:
            model = load_model(name, **options)
            load_image_processor(name, **options)
            results.append(["loaded", type(model).__name__])
        except SMDError as error:
            results.append(["refused", str(error)])
    print("RESULTS" + json.dumps(results))
    """
)


def load_in_new_process(environment: dict[str, str], *cases: tuple[str, dict]) -> tuple[list[list[str]], str]:
    """What becomes of each load, and all that the process wrote."""
    root = str(Path(__file__).parents[2])
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(cases)],
        env=environment,
        cwd=root,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.split("RESULTS")[1]), run.stdout + run.stderr


@pytest.mark.slow
def test_hub(hub_server, tmp_path):  # noqa: F811
    card = {"README.md": "---\npipeline_tag: image-classification\ntags:\n- image-classification\n---\n"}
    for kind in ("vit", "timm_vit", "custom"):
        save_tiny_checkpoint(kind, tmp_path / kind)
        files = {path.name: path.read_bytes() for path in (tmp_path / kind).iterdir() if path.is_file()}
        hub_server.add_repository(f"tester/{kind}-flowers", files | card)
    hub_server.add_repository("tester/secret", tmp_path / "vit", private=True)
    hub_server.add_repository("tester/gated", tmp_path / "vit")
    (tmp_path / "vit" / "model.safetensors").rename(tmp_path / "vit" / "pytorch_model.bin")
    hub_server.add_repository("tester/pickled", tmp_path / "vit")
    gated = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}
    hub_server.fail_next(r"tester/gated/resolve", 403, times=20, headers=gated)

    token = "hf_NobodyMaySeeThisToken"
    hub_server.add_user("guest", token)
    results, output = load_in_new_process(
        hub_server.environment(token=None),
        ("tester/vit-flowers", {}),
        ("tester/timm_vit-flowers", {}),
        ("tester/custom-flowers", {"trust_remote_code": True}),
        ("tester/custom-flowers", {"cache_dir": str(tmp_path / "cache")}),
        ("tester/vit-flowrs", {}),
        ("tester/secret", {}),
        ("tester/secret", {"token": hub_server.token}),
        ("tester/secret", {"token": token}),
        ("tester/gated", {"token": token}),
        ("tester/vit-flowers", {"revision": "v9"}),
        ("tester/pickled", {}),
        ("timm/resnet18.a1_in1kk", {}),
    )
    assert results[:3] == [
        ["loaded", "ViTForImageClassification"],
        ["loaded", "TimmWrapperForImageClassification"],
        ["loaded", "TinyCustomForImageClassification"],
    ]
    assert results[6] == ["loaded", "ViTForImageClassification"]
    expected = {
        3: ["--trust_remote_code"],
        4: ["no model of that name", "tester/vit-flowrs"],
        5: ["no token given", "--token"],
        7: ["the token that was given"],
        8: ["gated", "--token"],
        9: ["no revision 'v9'"],
        10: ["safetensors", "pickle"],
        11: ["no model of that name", "timm/resnet18.a1_in1k"],
    }
    for case, parts in expected.items():
        outcome, message = results[case]
        assert outcome == "refused"
        assert "\n" not in message
        assert all(part in message for part in parts), message
    assert token not in output
    assert hub_server.token not in output
    assert not any("discussions" in request.path or "convert" in request.path for request in hub_server.requests)


def test_offline(hub_server):  # noqa: F811
    results, _ = load_in_new_process(
        hub_server.environment() | {"HF_HUB_OFFLINE": "1"}, ("tester/vit", {}), ("timm/resnet18.a1_in1kk", {})
    )
    assert [outcome for outcome, _ in results] == ["refused", "refused"]
    assert all("could not be reached" in message for _, message in results)
    assert "timm/resnet18.a1_in1k" in results[1][1]
    assert hub_server.requests == []
