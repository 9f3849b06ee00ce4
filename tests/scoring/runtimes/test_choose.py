"""The runtime is what was asked for, or an error; `auto` takes a faster one only where it pays and agrees."""

import logging
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from smd_hf.data.batches import ImageBatches
from smd_hf.errors import SMDError
from smd_hf.parallel.processes import Processes
from smd_hf.scoring.evaluator import Evaluator, Variant
from smd_hf.scoring.runtimes import choose
from smd_hf.scoring.runtimes.choose import RuntimeChoice
from smd_hf.scoring.runtimes.graph import CannotExport
from smd_hf.search.build import build_evaluator

from ...plain import plain_arguments
from ...tiny import tiny_model, tiny_pixels

CPU = torch.device("cpu")


def batches(images=6, batch_size=4):
    pixels = tiny_pixels(images)
    rows = [{"pixel_values": pixels[number], "labels": number % 4} for number in range(images)]

    def collate(rows):
        return {
            "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }

    return ImageBatches(rows, collate, batch_size)


def evaluator(model, **choice):
    return Evaluator(model, CPU, choice=RuntimeChoice(model, batch_size=4, **choice))


def child(model, name="classifier.weight"):
    return Variant("child", lambda: [(name, (None, model.get_parameter(name).detach() * 1.5))], frozenset({name}))


@pytest.fixture
def model():
    return tiny_model("vit")


def test_a_short_run_is_not_worth_an_export(model):
    short = evaluator(model, name="auto", images=1000)
    short.logits(batches())
    assert short.runtime.name == "eager"


def test_auto_takes_openvino_for_a_long_run(model):
    long = evaluator(model, name="auto", images=10**9)
    expected = Evaluator(model, CPU).score([Variant("parent"), child(model)], batches(), keep_logits=True)
    found = long.score([Variant("parent"), child(model)], batches(), keep_logits=True)
    assert long.runtime.name == "openvino"
    for mine, theirs in zip(found, expected):
        np.testing.assert_allclose(mine.logits, theirs.logits, atol=1e-4)
    again = long.score([Variant("parent"), child(model)], batches(), keep_logits=True)
    assert all(np.array_equal(first.logits, second.logits) for first, second in zip(found, again))


def test_auto_says_in_one_line_why_it_is_eager(model, monkeypatch, caplog):

    def refuse(*args):
        raise CannotExport("OpenVINO lacks an operation")

    monkeypatch.setattr(choose.OpenVINO, "whole", refuse)
    long = evaluator(model, name="auto", images=10**9)
    log = logging.getLogger("smd_hf")
    log.addHandler(caplog.handler)
    try:
        long.logits(batches())
    finally:
        log.removeHandler(caplog.handler)
    assert long.runtime.name == "eager"
    assert (
        "Runtime: eager, because openvino does not take ViTForImageClassification: OpenVINO lacks an operation."
        in (caplog.text)
    )


def test_a_runtime_that_disagrees_with_eager_is_refused(model, monkeypatch):
    monkeypatch.setitem(choose.TOLERANCE, "fp32", -1.0)
    with pytest.raises(SMDError, match="its logits in fp32 differ from those of eager PyTorch by"):
        evaluator(model, name="openvino").logits(batches())


def test_convolutions_in_tf32_may_differ_more(monkeypatch):
    gpu = torch.device("cuda")
    assert choose.convolves_in_tf32(gpu)  # PyTorch's default
    assert not choose.convolves_in_tf32(CPU)
    monkeypatch.setattr(torch.backends.cudnn, "conv", SimpleNamespace(fp32_precision="ieee"), raising=False)
    assert not choose.convolves_in_tf32(gpu)
    assert choose.TOLERANCE["fp32"] < choose.TOLERANCE["tf32"] < choose.TOLERANCE["bf16"]


def test_openvino_that_is_not_installed_is_an_error_with_the_remedy(model, monkeypatch):
    monkeypatch.setattr(choose, "find_spec", lambda name: None)
    with pytest.raises(SMDError, match=r"pip install smd_hf\[openvino\]"):
        evaluator(model, name="openvino").logits(batches())


def test_a_long_run_without_openvino_is_told_what_to_install(model, monkeypatch):
    monkeypatch.setattr(choose, "find_spec", lambda name: None)
    inputs = {"pixel_values": tiny_pixels(2)}
    name, reason, _ = RuntimeChoice(model, "auto", images=10**9).settle(inputs)
    assert name == "eager" and "pip install 'smd-hf[openvino]'" in reason
    for short in (RuntimeChoice(model, "auto", images=1), RuntimeChoice(model, "eager", images=10**9)):
        assert short.settle(inputs) == ("eager", None, "fp32")


def test_bf16_on_a_cpu_without_it_is_an_error(model, monkeypatch):
    monkeypatch.setattr(choose, "has_bf16", lambda: False)
    with pytest.raises(SMDError, match="needs a CPU with AVX-512 BF16 or AMX"):
        evaluator(model, name="openvino", precision="bf16").logits(batches())


@pytest.mark.slow
def test_compiled_runs_children(model):
    compiled = evaluator(model, name="compiled")
    [parent, other] = compiled.score([Variant("parent"), child(model)], batches(), keep_logits=True)
    [_, expected] = Evaluator(model, CPU).score([Variant("parent"), child(model)], batches(), keep_logits=True)
    assert compiled.runtime.name == "compiled"
    np.testing.assert_allclose(other.logits, expected.logits, atol=1e-4)
    assert not np.allclose(parent.logits, other.logits)


def test_children_in_bf16_stand_beside_finalists_in_fp32(model):
    exact = Evaluator(model, CPU)
    found = evaluator(model, name="eager", precision="bf16")
    family = [Variant("parent"), child(model)]
    for coarse in (False, True):
        ours = found.score(family, batches(), keep_logits=True, coarse=coarse)
        theirs = exact.score(family, batches(), keep_logits=True)
        for mine, other in zip(ours, theirs):
            assert np.array_equal(mine.logits, other.logits) is not coarse
            assert np.corrcoef(mine.logits.ravel(), other.logits.ravel())[0, 1] > 0.9
    assert found.identity == "eager, children in bf16"


@pytest.mark.parametrize("has_it, near", [(True, True), (True, False), (False, True)])
def test_auto_takes_bf16_where_the_processor_has_it_and_logits_are_near(has_it, near, model, monkeypatch):
    monkeypatch.setattr(choose, "has_bf16", lambda: has_it)
    monkeypatch.setitem(choose.TOLERANCE, "bf16", 10.0 if near else 1e-9)
    found = evaluator(model, name="openvino", precision="auto")
    found.score([Variant("parent"), child(model)], batches(), coarse=True)
    assert found.identity.endswith("children in bf16") is (has_it and near)


def test_auto_keeps_fp32_in_eager_pytorch_on_a_cpu(model):
    found = evaluator(model, name="eager", precision="auto")
    found.logits(batches())
    assert found.identity == "eager"


@pytest.mark.parametrize("sigma, coarse", [(0.05, True), (0.02, False), (None, False)])
def test_auto_keeps_fp32_for_children_that_differ_little(sigma, coarse, model, tmp_path, monkeypatch):
    monkeypatch.setattr(choose, "has_bf16", lambda: True)
    monkeypatch.setitem(choose.TOLERANCE, "bf16", 10.0)
    args = plain_arguments(
        str(tmp_path), sigma=sigma, precision="auto", runtime="openvino", use_cpu=True, per_device_eval_batch_size=4
    )
    found = build_evaluator(model, args, CPU, nullcontext, Processes())
    found.logits(batches())
    assert found.identity.endswith("children in bf16") is coarse
