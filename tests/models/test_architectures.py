"""What single architectures do otherwise than most: each was a wrong result or a raw error in a whole run."""

import logging as python_logging
from itertools import pairwise

import pytest
import timm
import torch
import transformers

import smd_hf.scoring.costs as costs_module
from smd_hf import EvolutionTrainer
from smd_hf.artifacts.delta.sparse_delta import SparseDelta
from smd_hf.artifacts.ensemble import SMDEnsembleForImageClassification
from smd_hf.data.labels import label_maps
from smd_hf.errors import SMDError
from smd_hf.models.checkpoints import save_checkpoint, weights_hash
from smd_hf.models.head_classes import name_classes
from smd_hf.models.heads import head_parameter_names
from smd_hf.models.load import load_model
from smd_hf.models.quantized import check_can_be_saved
from smd_hf.remote_code.members_smd_ensemble import logits_of
from smd_hf.scoring.costs import suffix_costs
from smd_hf.scoring.evaluator import Evaluator
from tests.plain import plain_arguments
from tests.tiny import label_names, tiny_pixels

LABELS = dict(zip(("id2label", "label2id"), label_maps(label_names(4))))
PYRAMID = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]}


def timm_model(architecture, **model_args):
    config = {"architecture": architecture, "num_classes": 4, "label_names": label_names(4), "model_args": model_args}
    config["pretrained_cfg"] = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}
    torch.manual_seed(0)
    return transformers.TimmWrapperForImageClassification(transformers.TimmWrapperConfig.from_dict(config)).eval()


def coat():
    sizes = {
        "embed_dims": [8, 16, 16, 16],
        "serial_depths": [1] * 4,
        "parallel_depth": 1,
        "num_heads": 8,
        "mlp_ratios": [2] * 4,
    }
    return timm_model("coat_tiny", img_size=32, **sizes)


def levit():
    config = transformers.LevitConfig(
        image_size=64,
        hidden_sizes=[16, 24, 32],
        num_attention_heads=[1, 2, 2],
        depths=[1, 1, 1],
        key_dim=[8, 8, 8],
        **LABELS,
    )
    torch.manual_seed(0)
    model = transformers.LevitForImageClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def pp_lcnet():
    torch.manual_seed(0)
    config = transformers.PPLCNetConfig(scale=0.25, class_expand=32, **LABELS)
    return transformers.PPLCNetForImageClassification(config).eval()


def pvt(**labels):
    torch.manual_seed(0)
    return transformers.PvtForImageClassification(transformers.PvtConfig(image_size=32, **PYRAMID, **labels)).eval()


@torch.no_grad()
def logits(model, pixels):
    return logits_of(model(pixel_values=pixels))


# ---- Counting operations ----------------------------------------------------------------------------------------------


def test_operations_are_counted_where_a_parameter_is_an_input_of_a_block():
    # The class token of CaiT is an input of its last blocks, whose gradient the counter would follow.
    model = timm_model("cait_xxs24_224", img_size=32, embed_dim=24, depth=2, num_heads=2)
    costs = suffix_costs(model, tiny_pixels(1))
    steps = {round(first - second, 6) for first, second in pairwise(costs)}
    assert len(steps) > 1 and costs[0] == 1
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_failing_count_ends_no_run(monkeypatch, caplog):
    def stumble(*args, **kwargs):
        raise AssertionError("Expected gradient function to be set")

    monkeypatch.setattr(costs_module, "FlopCounterMode", stumble)
    monkeypatch.setattr(python_logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level("WARNING"):
        costs = suffix_costs(pp_lcnet(), tiny_pixels(1))
    assert costs == pytest.approx([1 - place / len(costs) for place in range(len(costs))])
    [line] = [record.getMessage() for record in caplog.records if "cannot be counted" in record.getMessage()]
    assert "PPLCNetForImageClassification" in line and "each of its blocks is taken to cost the same" in line


# ---- Weights that modules gather once ---------------------------------------------------------------------------------


@pytest.fixture
def biases():
    """A LeViT that has predicted before, one of its biases changed, and the logits that belong to the change."""
    model, pixels = levit(), tiny_pixels(2, 64)
    name = next(name for name, _ in model.named_parameters() if name.endswith("attention_biases"))
    before = logits(model, pixels)
    other = levit()
    with torch.no_grad():
        other.get_parameter(name).normal_()
    values = other.get_parameter(name).detach().clone()
    expected = logits(other, pixels)
    assert not torch.equal(before, expected)
    return model, pixels, (name, values), before, expected


def test_a_child_is_scored_with_its_own_attention_biases(biases):
    model, pixels, (name, values), before, expected = biases
    evaluator = Evaluator(model, model.device)
    assert torch.equal(evaluator.forward({"pixel_values": pixels}), before)
    with torch.no_grad():
        model.get_parameter(name).copy_(values)
    assert torch.equal(evaluator.forward({"pixel_values": pixels}), expected)


def test_a_member_predicts_with_its_own_attention_biases(biases):
    model, pixels, (name, values), before, expected = biases
    ensemble = SMDEnsembleForImageClassification.from_children(model, [{}, {name: (None, values)}])
    found = ensemble(pixels, output_members=True).member_logits
    assert torch.equal(found[:, 0], before) and torch.equal(found[:, 1], expected)
    assert torch.equal(logits(model, pixels), before)


def test_an_applied_delta_predicts_with_its_own_attention_biases(biases):
    model, pixels, (name, values), before, expected = biases
    delta = SparseDelta.from_changes(model, [(name, (None, values))], base_model="base")
    with delta.apply_to(model):
        assert torch.equal(logits(model, pixels), expected)
    assert torch.equal(logits(model, pixels), before)


# ---- Logits by another name -------------------------------------------------------------------------------------------


def test_logits_without_that_name_are_found():
    model, pixels = pp_lcnet(), tiny_pixels(2)
    expected = model(pixel_values=pixels).last_hidden_state.detach()
    assert expected.shape == (2, 4)
    assert torch.equal(Evaluator(model, model.device).forward({"pixel_values": pixels}), expected)
    assert head_parameter_names(model) == {"head.weight", "head.bias"}
    ensemble = SMDEnsembleForImageClassification.from_children(model, [{}], combination="mean_logits")
    assert torch.equal(ensemble(pixels, output_members=True).member_logits[:, 0], expected)


def test_evaluate_measures_a_model_that_takes_no_labels(tmp_path):
    rows = [{"pixel_values": pixels, "labels": number % 4} for number, pixels in enumerate(tiny_pixels(8))]
    args = plain_arguments(
        str(tmp_path), per_device_eval_batch_size=4, use_cpu=True, report_to="none", disable_tqdm=True
    )
    model = pp_lcnet()
    trainer = EvolutionTrainer(model, args, train_dataset=rows, eval_dataset=rows)
    found, expected = trainer.evaluate(), logits(model, torch.stack([row["pixel_values"] for row in rows]))
    labels = torch.tensor([row["labels"] for row in rows])
    assert found["eval_accuracy"] == (expected.argmax(-1) == labels).float().mean()
    assert found["eval_loss"] == pytest.approx(torch.nn.functional.cross_entropy(expected, labels).item(), rel=1e-5)


def test_an_output_without_logits_is_refused():
    torch.manual_seed(0)
    backbone = transformers.ResNetModel(
        transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    )
    with pytest.raises(SMDError, match=r"holds no logits\. Expected an image classifier"):
        Evaluator(backbone, backbone.device).forward({"pixel_values": tiny_pixels(1)})


# ---- Classes without names --------------------------------------------------------------------------------------------


def test_classes_without_names_get_some(tmp_path):
    model = pvt(num_labels=4)
    assert model.config.id2label is None
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config.id2label == {number: f"LABEL_{number}" for number in range(4)}
    ensemble = SMDEnsembleForImageClassification.from_children(loaded, [{}, {}])
    assert ensemble.config.num_labels == 4 and ensemble.config.id2label == loaded.config.id2label


def test_names_count_where_no_number_is_stored():
    config = transformers.PvtConfig(**LABELS)
    assert config.num_labels == 1000
    with pytest.raises(SMDError, match=r"has 1000 classes \(num_labels\) and 4 names for them \(id2label\)"):
        name_classes(config, "'folder'", {"num_labels": 1000})
    name_classes(config, "'folder'", {"id2label": {}})
    assert config.num_labels == len(config.id2label) == 4


# ---- Tensors that cannot be saved as they are -------------------------------------------------------------------------


def test_shared_tensors_are_saved_under_each_name(tmp_path):
    model, pixels = coat(), tiny_pixels(2)
    assert len(model.state_dict()) > len(dict(model.named_parameters())) + len(dict(model.named_buffers()))
    expected = logits(model, pixels)
    save_checkpoint(model, None, tmp_path)
    loaded = load_model(tmp_path)
    assert torch.equal(logits(loaded, pixels), expected) and weights_hash(loaded) == weights_hash(model)
    assert len(list(loaded.parameters())) == len(list(model.parameters()))
    by_timm = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, **model.config.model_args).eval()
    assert torch.equal(by_timm(pixels), expected)


def test_an_ensemble_of_a_model_with_shared_tensors_is_saved(tmp_path):
    model, pixels = coat(), tiny_pixels(2)
    name, tensor = next((name, each) for name, each in model.named_parameters() if "cpe1.proj.weight" in name)
    ensemble = SMDEnsembleForImageClassification.from_children(model, [{}, {name: (None, tensor.detach() + 1)}])
    ensemble.save_pretrained(tmp_path)
    loaded = SMDEnsembleForImageClassification.from_pretrained(tmp_path)
    found, expected = (each(pixels, output_members=True).member_logits for each in (loaded, ensemble))
    assert torch.equal(found, expected) and not torch.equal(found[:, 0], found[:, 1])


def test_what_safetensors_cannot_hold_is_refused_before_scoring():
    model = pp_lcnet()
    model.register_buffer("mask", torch.eye(3).to_sparse())
    with pytest.raises(SMDError, match=r"sparse tensors \(mask\).*\.to_dense\(\)"):
        check_can_be_saved(model)
