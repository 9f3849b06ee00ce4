"""Checkpoints and models that are no image classifiers: refused for what they are, or given a new head."""

import json
import logging
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from smd_hf import SMDError
from smd_hf.cli.main import main
from smd_hf.models.load import load_model, load_model_for_new_head
from smd_hf.models.tasks import KINDS, task_of
from smd_hf.trainer import EvolutionTrainer
from tests.plain import plain_arguments
from tests.tiny import save_tiny_checkpoint, tiny_model

VISION = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
TEXT = {
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 32,
    "max_position_embeddings": 16,
}
SWIN = {"image_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]}

OTHER_TASKS = {
    "segformer": (
        "SegformerForSemanticSegmentation",
        {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8},
    ),
    "beit": ("BeitForSemanticSegmentation", {**VISION, "out_indices": [1, 2, 3, 4]}),
    "data2vec-vision": ("Data2VecVisionForSemanticSegmentation", {**VISION, "out_indices": [1, 2, 3, 4]}),
    "mobilenet_v2": ("MobileNetV2ForSemanticSegmentation", {"image_size": 32, "depth_multiplier": 0.25}),
    "mobilevit": (
        "MobileViTForSemanticSegmentation",
        {"image_size": 64, "hidden_sizes": [8, 12, 16], "neck_hidden_sizes": [4, 4, 8, 8, 12, 12, 16]}
        | {"num_attention_heads": 2},
    ),
    "mobilevitv2": ("MobileViTV2ForSemanticSegmentation", {"image_size": 64, "width_multiplier": 0.25}),
    "clip": ("CLIPModel", {"text_config": TEXT, "vision_config": VISION, "projection_dim": 8}),
    "siglip": ("SiglipModel", {"text_config": TEXT, "vision_config": VISION}),
    # AutoModelForImageClassification knows no classifier of these two.
    "yolos": ("YolosForObjectDetection", {**VISION, "image_size": [32, 32], "num_detection_tokens": 4}),
    "glpn": (
        "GLPNForDepthEstimation",
        {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8},
    ),
}
TASKS = dict.fromkeys(OTHER_TASKS, "semantic segmentation") | {
    "clip": "zero-shot image classification",
    "siglip": "zero-shot image classification",
    "yolos": "object detection",
    "glpn": "depth estimation",
}
BACKBONES = {
    "vit": ("ViTModel", VISION),
    "vit, masked": ("ViTForMaskedImageModeling", {**VISION, "encoder_stride": 8}),
    "swin": ("SwinModel", SWIN),
    "swin, masked": ("SwinForMaskedImageModeling", {**SWIN, "encoder_stride": 4}),
    "swin, backbone": ("SwinBackbone", SWIN),
    "beit": ("BeitModel", VISION),
    "dinov2": ("Dinov2Model", {name: VISION[name] for name in VISION if name != "intermediate_size"}),
}
PRETRAINED = {
    "beit": ("BeitForMaskedImageModeling", VISION),
    "hiera": (
        "HieraForPreTraining",
        {"image_size": [64, 64], "embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4, "decoder_hidden_size": 8}
        | {"decoder_depth": 1, "decoder_num_heads": 1},
    ),
}


def make(architecture: str, settings: dict) -> transformers.PreTrainedModel:
    """A tiny model with random weights."""
    kind = getattr(transformers, architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(kind.config_class(**settings)).eval()


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(load, *args, **kwargs) -> str:
    with pytest.raises(SMDError) as caught:
        load(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", OTHER_TASKS)
def test_a_checkpoint_is_refused_by_the_task_of_its_architecture(kind, tmp_path):
    model = make(*OTHER_TASKS[kind])
    model.save_pretrained(tmp_path)
    message = refusal(load_model_for_new_head, tmp_path)
    assert f"is a checkpoint for {TASKS[kind]} ({type(model).__name__})" in message
    assert "fine-tuned for image classification" in message and "Other tasks: " in message
    assert "incomplete" not in message
    if any(each.words == TASKS[kind] for each in KINDS.values()):
        assert type(load_model(tmp_path)) is type(model)
    else:
        assert refusal(load_model, tmp_path) == message
    args = plain_arguments(str(tmp_path / "out"), use_cpu=True, task="image-classification")
    message = refusal(EvolutionTrainer, model, args)
    assert message.startswith(f"The model is for {TASKS[kind]} ({type(model).__name__})")


@pytest.mark.parametrize("architectures", [None, ["SomeoneElses"], [], {"a": 1}, "classifier"])
@pytest.mark.parametrize("kind", [kind for kind in OTHER_TASKS if kind not in ("yolos", "glpn")])
def test_a_checkpoint_is_refused_by_the_weights_of_another_head(kind, architectures, tmp_path):
    make(*OTHER_TASKS[kind]).save_pretrained(tmp_path)
    edit_config(tmp_path, architectures=architectures)
    message = refusal(load_model_for_new_head, tmp_path)
    assert "incomplete" not in message
    if architectures is None or isinstance(architectures, list):
        assert "not those of an image classifier" in message and "Other tasks: " in message
        assert "classifier.weight" in message or "classifier.bias" in message
        head = {"clip": "logit_scale", "siglip": "logit_bias", "segformer": "decode_head"}.get(kind, "_head.")
        assert head in message


def test_the_head_of_another_task_shows_also_where_the_config_names_a_backbone(tmp_path):
    make(*OTHER_TASKS["segformer"]).save_pretrained(tmp_path)
    edit_config(tmp_path, architectures=["SegformerModel"])
    assert "decode_head" in refusal(load_model_for_new_head, tmp_path)


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_backbone_gets_a_new_head(kind, tmp_path):
    make(*BACKBONES[kind]).save_pretrained(tmp_path)
    model, missing = load_model_for_new_head(tmp_path)
    assert type(model).__name__.endswith("ForImageClassification")
    assert missing == ["classifier.bias", "classifier.weight"]


@pytest.mark.parametrize("kind", ["vit", "swin", "beit", "dinov2"])
def test_a_backbone_gets_a_new_head_whatever_its_config_calls_it(kind, tmp_path):
    make(*BACKBONES[kind]).save_pretrained(tmp_path)
    edit_config(tmp_path, architectures=None)
    assert load_model_for_new_head(tmp_path)[1] == ["classifier.bias", "classifier.weight"]


@pytest.mark.parametrize("kind", PRETRAINED)
def test_a_pretrained_backbone_that_lacks_more_than_the_head(kind, tmp_path):
    make(*PRETRAINED[kind]).save_pretrained(tmp_path)
    message = refusal(load_model_for_new_head, tmp_path)
    assert f"is a backbone ({PRETRAINED[kind][0]}) that lacks more than the classifier" in message
    assert "pooler.layernorm.weight" in message and "incomplete" not in message


def test_a_classifier_with_further_weights_says_that_they_are_left_out(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    save_tiny_checkpoint("vit", tmp_path)
    path = tmp_path / "model.safetensors"
    load_model(tmp_path)
    assert not caplog.messages
    save_file(load_file(path) | {"extra_head.weight": torch.ones(2)}, path, metadata={"format": "pt"})
    load_model(tmp_path)
    [message] = caplog.messages
    assert "ViTForImageClassification does not have and that are left out: extra_head.weight" in message


def test_custom_code_may_name_its_classifier_as_it_likes(tmp_path):
    save_tiny_checkpoint("custom", tmp_path)
    text = (tmp_path / "modeling_tiny_custom.py").read_text()
    name = "TinyCustomForVeryGeneralPurposes"
    (tmp_path / "modeling_tiny_custom.py").write_text(text.replace("TinyCustomForImageClassification", name))
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    edit_config(
        tmp_path,
        architectures=[name],
        auto_map=auto_map | {"AutoModelForImageClassification": f"modeling_tiny_custom.{name}"},
    )
    assert type(load_model(tmp_path, trust_remote_code=True)).__name__ == name


def test_a_backbone_that_is_passed_as_a_model_is_refused(tmp_path):
    message = refusal(EvolutionTrainer, tiny_model("vit").vit, plain_arguments(str(tmp_path), use_cpu=True))
    assert "ViTModel, a backbone without a classifier" in message and "save_pretrained" in message
    message = refusal(EvolutionTrainer, make(*BACKBONES["vit, masked"]), plain_arguments(str(tmp_path), use_cpu=True))
    assert "for masked image modeling" in message


def test_the_command_line_says_it_in_one_paragraph(tmp_path, capfd):
    make(*OTHER_TASKS["segformer"]).save_pretrained(tmp_path / "model")
    (tmp_path / "images" / "cat").mkdir(parents=True)
    (tmp_path / "images" / "dog").mkdir()
    for number in range(4):
        image = Image.new("RGB", (32, 32), (number * 60, 0, 0))
        image.save(tmp_path / "images" / ("cat" if number % 2 else "dog") / f"{number}.png")
    data = ["--train_dir", str(tmp_path / "images"), "--validation_dir", str(tmp_path / "images")]
    argv = ["evolve", "--model_name_or_path", str(tmp_path / "model"), "--output_dir", str(tmp_path / "out"), *data]
    assert main([*argv, "--task", "image-classification"]) == 2
    [paragraph] = capfd.readouterr().err.strip().splitlines()
    assert paragraph.startswith("smd-hf evolve: error: ") and "semantic segmentation" in paragraph
    # Its own task needs masks, and here labels are classes.
    assert main(argv) == 2
    paragraph = capfd.readouterr().err.strip().splitlines()[-1]
    assert "No image processor could be loaded" in paragraph


@pytest.mark.parametrize(
    "architecture, task",
    [
        ("ViTForImageClassification", "image classification"),
        ("LevitForImageClassificationWithTeacher", "image classification"),
        ("PerceiverForImageClassificationFourier", "image classification"),
        ("PoolFormerForImageClassification", "image classification"),
        ("OneFormerForUniversalSegmentation", "universal segmentation"),
        ("GroundingDinoForZeroShotObjectDetection", "zero-shot object detection"),
        ("ViTMAEForPreTraining", "pre-training"),
        ("SegformerModel", None),
        ("SwinBackbone", None),
        ("", None),
    ],
)
def test_the_task_of_an_architecture(architecture, task):
    assert task_of(architecture) == task
