"""Finding the classifier head, and replacing it."""

import numpy as np
import pytest
import timm
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from smd_hf.errors import SMDError
from smd_hf.models.checkpoints import save_checkpoint, weights_hash
from smd_hf.models.heads import FEW_IMAGES, find_heads, head_parameter_names, replace_head
from smd_hf.models.load import load_model
from tests.tiny import ALL_KINDS, label_names, save_tiny_checkpoint, tiny_model, tiny_pixels

TWO_HEADS = {"timm_deit"}
NEW_LABELS = ["left", "right", "middle"]


def load(kind: str, folder, **kwargs):
    return load_model(save_tiny_checkpoint(kind, folder, **kwargs), trust_remote_code=True)


@torch.no_grad()
def logits_of(model, pixels: torch.Tensor) -> torch.Tensor:
    return model(pixels.to(model.dtype)).logits


def examples(classes: int, count: int = 36, batch: int = 16) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Noise whose brightness tells the class, in batches."""
    labels = torch.arange(count) % classes
    pixels = tiny_pixels(count) * 0.5 + (labels.view(-1, 1, 1, 1) - (classes - 1) / 2)
    return list(zip(pixels.split(batch), labels.split(batch)))


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_head_is_what_the_logits_depend_on_linearly(kind, tmp_path):
    model = load(kind, tmp_path)
    heads = find_heads(model, tiny_pixels(2))
    assert len(heads) == (2 if kind in TWO_HEADS else 1)
    before = logits_of(model, tiny_pixels(2))
    with torch.no_grad():
        for head in heads.values():
            head.bias.add_(1.0)
    torch.testing.assert_close(logits_of(model, tiny_pixels(2)), before + 1.0)
    parameters = dict(model.named_parameters())
    names = head_parameter_names(model)
    assert {id(parameters[name]) for name in names} == {id(p) for head in heads.values() for p in head.parameters()}


def test_deit_with_a_teacher_has_two_heads():
    from transformers import DeiTForImageClassificationWithTeacher

    model = DeiTForImageClassificationWithTeacher(tiny_model("deit").config).eval()
    assert set(find_heads(model, tiny_pixels(2))) == {"cls_classifier", "distillation_classifier"}


def test_of_a_large_batch_the_first_images_show_where_the_head_is():
    """The outputs of all linear layers are held at once: gigabytes, of a batch of 75 images."""
    model, seen = tiny_model("vit").eval(), []
    model.classifier.register_forward_pre_hook(lambda layer, args: seen.append(len(args[0])))
    assert set(find_heads(model, tiny_pixels(20))) == {"classifier"}
    assert seen == [FEW_IMAGES]


def test_model_without_a_linear_head_is_refused():
    model = tiny_model("vit")
    model.classifier = nn.Sequential(nn.Linear(24, 7), nn.AdaptiveAvgPool1d(4))
    with pytest.raises(SMDError, match="cannot be found"):
        find_heads(model, tiny_pixels(2))


@pytest.mark.parametrize(
    ("kind", "head_init"),
    [(kind, "linear_probe") for kind in ALL_KINDS]
    + [(kind, "random") for kind in ("deit", "timm_deit", "timm_dla", "custom")],
)
def test_new_head_saves_and_loads(kind, head_init, tmp_path):
    model = load(kind, tmp_path / "parent")
    body = {name: p.clone() for name, p in model.named_parameters() if name not in head_parameter_names(model)}
    replace_head(model, NEW_LABELS, examples(3), head_init=head_init, seed=3)
    pixels = torch.cat([pixels for pixels, _ in examples(3)])
    logits = logits_of(model, pixels)
    assert logits.shape == (36, 3)
    assert all(torch.equal(p, body[name]) for name, p in model.named_parameters() if name in body)
    save_checkpoint(model, None, tmp_path / "child")
    loaded = load_model(tmp_path / "child", trust_remote_code=True)
    assert torch.equal(logits_of(loaded, pixels), logits)
    assert weights_hash(loaded) == weights_hash(model)
    for each in (model, loaded):
        assert each.config.num_labels == 3
        assert each.config.id2label == dict(enumerate(NEW_LABELS))
        assert each.config.label2id == {label: i for i, label in enumerate(NEW_LABELS)}
    if kind.startswith("timm"):
        native = timm.create_model(f"local-dir:{tmp_path / 'child'}", pretrained=True).eval()
        with torch.no_grad():
            assert torch.equal(native(pixels), logits)


@pytest.mark.parametrize("kind", ["swin", "resnet", "timm_convnext", "timm_dla", "custom"])
@pytest.mark.parametrize("classes", [2, 3])
def test_logits_are_the_decision_function_of_the_probe(kind, classes, tmp_path):
    model = load(kind, tmp_path)
    batches = examples(classes)
    (head,) = find_heads(model, tiny_pixels(2)).values()
    features = []
    handle = head.register_forward_pre_hook(lambda layer, args: features.append(args[0].flatten(1).double().numpy()))
    for pixels, _ in batches:
        logits_of(model, pixels)
    handle.remove()
    features = np.concatenate(features)
    targets = torch.cat([labels for _, labels in batches]).numpy()
    scale = features.std(0)
    scale[scale == 0] = 1
    standardised = (features - features.mean(0)) / scale
    probe = LogisticRegression(max_iter=1000).fit(standardised, targets)

    replace_head(model, NEW_LABELS[:classes], iter(batches))
    logits = torch.cat([logits_of(model, pixels) for pixels, _ in batches]).numpy()
    expected = probe.decision_function(standardised)
    if classes == 2:
        np.testing.assert_allclose(logits[:, 1] - logits[:, 0], expected, atol=2e-3)
    else:
        np.testing.assert_allclose(logits, expected, atol=2e-3)
    assert (logits.argmax(1) == probe.predict(standardised)).all()
    assert (logits.argmax(1) == targets).mean() > 0.9


def test_two_heads_learn_together(tmp_path):
    model = load("timm_deit", tmp_path)
    replace_head(model, NEW_LABELS, examples(3))
    for pixels, labels in examples(3):
        assert (logits_of(model, pixels).argmax(1) == labels).float().mean() > 0.9


@pytest.mark.parametrize("head_init", ["linear_probe", "random"])
def test_dtype_gradient_flag_and_mode_are_kept(head_init, tmp_path):
    model = load("vit", tmp_path, dtype=torch.bfloat16)
    model.requires_grad_(False)
    replace_head(model, NEW_LABELS, examples(3), head_init=head_init)
    assert model.classifier.weight.dtype == torch.bfloat16
    assert not model.classifier.weight.requires_grad
    assert not model.classifier.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_random_head_is_keyed_by_the_seed():
    weights = []
    for seed in (0, 0, 1):
        model = tiny_model("vit")
        torch.rand(seed + 3)
        replace_head(model, NEW_LABELS, head_init="random", seed=seed)
        weights.append(model.classifier.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert weights[0].abs().max() <= 24**-0.5


def test_head_without_bias_stays_without(tmp_path):
    model = tiny_model("vit")
    model.classifier = nn.Linear(24, 4, bias=False)
    replace_head(model, NEW_LABELS, examples(3))
    assert model.classifier.bias is None
    hits = [(logits_of(model, pixels).argmax(1) == labels).float().mean() for pixels, labels in examples(3)]
    assert min(hits) > 0.6


def test_labels_of_the_old_classes_leave_timm_configurations(tmp_path):
    native = timm.create_model("test_vit", num_classes=4, img_size=32)
    timm.models.save_for_hf(
        native,
        tmp_path / "parent",
        safe_serialization=True,
        model_config={"label_names": label_names(), "label_descriptions": dict.fromkeys(label_names(), "an animal")},
    )
    model = load_model(tmp_path / "parent")
    replace_head(model, NEW_LABELS, head_init="random")
    save_checkpoint(model, None, tmp_path / "child")
    text = (tmp_path / "child" / "config.json").read_text()
    assert '"cat"' not in text
    assert "an animal" not in text
    assert load_model(tmp_path / "child").config.id2label == dict(enumerate(NEW_LABELS))


@pytest.mark.parametrize(
    ("labels", "batches", "head_init", "message"),
    [
        (NEW_LABELS, examples(2), "linear_probe", "no image of middle"),
        (NEW_LABELS, examples(4), "linear_probe", "label 3; expected 0 to 2"),
        (NEW_LABELS, [], "linear_probe", "there are none"),
        (NEW_LABELS, None, "linear_probe", "there are none"),
        (["a", "a"], examples(2), "linear_probe", "names of their own"),
        (["a"], examples(1), "random", "at least two classes"),
        (NEW_LABELS, [(torch.full((3, 3, 32, 32), torch.nan), torch.arange(3))], "linear_probe", "not finite"),
    ],
)
def test_what_no_head_can_be_made_of(labels, batches, head_init, message):
    model = tiny_model("vit")
    before = weights_hash(model)
    with pytest.raises(SMDError, match=message):
        replace_head(model, labels, batches, head_init=head_init)
    assert weights_hash(model) == before
    assert model.config.id2label == dict(enumerate(label_names()))
