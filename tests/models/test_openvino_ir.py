"""A model as OpenVINO serves it: its scales, biases and head are parameters, and what runs is what is saved."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import default_data_collator

from smd_hf.data.batches import ImageBatches
from smd_hf.errors import SMDError
from smd_hf.metrics.statistics import nll
from smd_hf.models.openvino_ir import OpenVINOClassifier, OpenVINOHead, quantised
from smd_hf.scoring.changes import applied
from smd_hf.scoring.evaluator import Evaluator
from smd_hf.search.head.alone import fit_head
from smd_hf.search.head.features import features_of

openvino = pytest.importorskip("openvino")


def constant(values):
    from openvino import opset13

    return opset13.constant(np.asarray(values, np.float32))


def served():
    """A convolution with int8 weights and a scale for each channel, as NNCF leaves it, and a classifier."""
    from openvino import opset13

    rng = np.random.default_rng(0)
    images = opset13.parameter([-1, 3, 8, 8], np.float32, name="pixel_values")
    low, high = constant(-4.0), constant(4.0)
    hidden = opset13.fake_quantize(images, low, high, low, high, 256)
    integers = opset13.constant(rng.integers(-127, 128, (16, 3, 3, 3)).astype(np.int8))
    weights = opset13.multiply(opset13.convert(integers, "f32"), constant(rng.uniform(0.5, 1, (16, 1, 1, 1)) / 127))
    hidden = opset13.convolution(hidden, weights, [1, 1], [1, 1], [1, 1], [1, 1])
    hidden = opset13.relu(opset13.add(hidden, constant(rng.normal(size=(1, 16, 1, 1)))))
    hidden = opset13.reduce_mean(hidden, opset13.constant(np.array([2, 3])), keep_dims=False)
    logits = opset13.matmul(hidden, constant(rng.normal(size=(5, 16))), False, True)
    return openvino.Model([opset13.add(logits, constant(rng.normal(size=(1, 5))))], [images])


@pytest.fixture
def model():
    return OpenVINOClassifier(served(), images=4)


def test_scales_biases_and_the_classifier_are_parameters(model):
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes == {
        "layers.0.scale": (16, 1, 1, 1),
        "layers.0.bias": (1, 16, 1, 1),
        "layers.1.weight": (5, 16),
        "layers.1.bias": (1, 5),
    }
    assert model.config.num_labels == 5


@pytest.mark.parametrize("name", ["layers.0.scale", "layers.0.bias", "layers.1.weight", "layers.1.bias"])
def test_a_child_is_what_runs_and_what_is_saved_and_the_parent_comes_back(model, name, tmp_path):
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))  # more than the graph takes at once
    before = model(images)["logits"]
    assert before.shape == (6, 5)
    parameter = model.get_parameter(name)
    with applied(dict(model.named_parameters()), [(name, (None, parameter.detach() * 1.5 + 0.01))]):
        child = model(images)["logits"]
        model.save(tmp_path / "child.xml")
    assert not torch.equal(child, before)
    assert torch.equal(model(images)["logits"], before)
    assert torch.equal(OpenVINOClassifier(tmp_path / "child.xml", images=4)(images)["logits"], child)


def test_the_integers_stay(model, tmp_path):
    with torch.no_grad():
        model.layers[0].scale.mul_(2)
    model.save(tmp_path / "model.xml")
    saved = openvino.Core().read_model(str(tmp_path / "model.xml"))
    [integers] = [op for op in saved.get_ops() if op.get_type_name() == "Constant" and op.data.dtype == np.int8]
    np.testing.assert_array_equal(integers.data, np.random.default_rng(0).integers(-127, 128, (16, 3, 3, 3)))


def test_a_model_that_has_nothing_to_evolve_is_refused():
    from openvino import opset13

    images = opset13.parameter([-1, 3], np.float32)
    with pytest.raises(SMDError, match="No convolution or matrix product"):
        OpenVINOClassifier(openvino.Model([opset13.relu(images)], [images]))
    with pytest.raises(SMDError, match="1 inputs and 2 outputs"):
        OpenVINOClassifier(openvino.Model([opset13.relu(images), opset13.abs(images)], [images]))


def test_the_classifier_is_fitted_on_its_features(model):
    head, evaluator = OpenVINOHead(model), Evaluator(model, torch.device("cpu"), prefix_replay=False)
    assert head.parameter_names == ["layers.1.weight", "layers.1.bias"]
    images = torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    rows = [{"pixel_values": pixels, "labels": number % 5} for number, pixels in enumerate(images)]
    learn, choose = (ImageBatches(rows[part], default_data_collator, 10) for part in (slice(40), slice(40, 60)))
    before = evaluator.logits(learn)
    features, labels = features_of(evaluator, head, learn)
    weight, bias = head.numbers()
    assert features.shape == (40, 16) and bias.shape == (5,)
    np.testing.assert_allclose(features @ weight.T + bias, before, atol=1e-4)
    assert np.array_equal(evaluator.logits(learn), before)
    unseen = nll(evaluator.logits(choose), choose.labels).mean()
    for whole in (False, True):
        best = fit_head(evaluator, head, learn, choose, whole)
        assert whole or not best.name.startswith("head")
        np.testing.assert_allclose(evaluator.logits(learn), best.head.logits(features), atol=1e-4)
        now = nll(evaluator.logits(choose), choose.labels).mean()
        assert now <= unseen and np.isclose(now, -best.fitness, atol=1e-4)
        unseen = now
    assert not np.array_equal(evaluator.logits(learn), before) and len(labels) == 40


def test_a_head_without_rows_of_classes_is_refused():
    from openvino import opset13

    images = opset13.parameter([-1, 3], np.float32, name="pixel_values")
    columns = opset13.matmul(images, constant(np.ones((3, 3))), False, False)
    with pytest.raises(SMDError, match="no row of weights for each class"):
        OpenVINOHead(OpenVINOClassifier(openvino.Model([columns], [images]), images=2))


@pytest.mark.slow
def test_nncf_quantises_all_but_the_classifier(tmp_path):
    pytest.importorskip("nncf")
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(1)]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 5)).eval()
    images = torch.randn(32, 3, 12, 12)
    exported = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    openvino.save_model(openvino.convert_model(exported), str(tmp_path / "float.xml"), compress_to_fp16=False)
    model = quantised(tmp_path / "float.xml", [images.numpy()])
    assert [name for name, _ in model.named_parameters()] == [
        *("layers.0.scale", "layers.0.bias", "layers.1.scale", "layers.1.bias", "layers.2.weight", "layers.2.bias")
    ]
    with torch.no_grad():
        expected = network(images)
    assert not torch.equal(model(images)["logits"], expected)
    torch.testing.assert_close(model(images)["logits"], expected, atol=0.1 * float(expected.abs().max()), rtol=0.1)
