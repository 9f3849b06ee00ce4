"""A device without float64, as Apple's MPS is: sums in float64 are taken on the CPU."""

import numpy as np
import pytest
import torch
from torch import nn

from smd_hf.artifacts.ensemble.merging import merge_models
from smd_hf.scoring.scores import Cell
from smd_hf.scoring.sums import device_of_sums
from smd_hf.search.gauss_newton import GaussNewtonSums
from smd_hf.search.losses import cross_entropy, ordinal
from smd_hf.search.mutation import tensor_scale
from tests.search.test_gauss_newton import make_children


class OnMPS(torch.Tensor):
    """A tensor that says it is on MPS, and refuses as MPS does whatever makes float64 of it there."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func == torch.Tensor.device.__get__:  # not the same object each time
            return torch.device("mps")
        device, *_ = torch._C._nn._parse_to(*args[1:], **kwargs) if func is torch.Tensor.to else (None,)
        # MPS converts to another type before it copies.
        leaves = func is torch.Tensor.cpu or (func is torch.Tensor.to and device == torch.device("cpu"))
        with torch._C.DisableTorchFunctionSubclass():
            if func is torch.Tensor.to:
                args = (args[0], *(torch.device("cpu") if isinstance(a, torch.device) else a for a in args[1:]))
            result = func(*args, **kwargs)
            if not isinstance(result, torch.Tensor):
                return result
            if result.dtype == torch.float64:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it")
            return result.as_subclass(torch.Tensor if leaves else cls)


def on_mps(tensor):
    return tensor.as_subclass(OnMPS)


def test_the_stand_in_behaves_as_mps_does():
    tensor = on_mps(torch.ones(3, 2))
    assert tensor.device.type == "mps" and tensor[1:].device.type == "mps"
    assert tensor.cpu().double().device.type == "cpu" and tensor.to(torch.device("cpu")).device.type == "cpu"
    assert tensor.to(tensor.device).device.type == "mps"
    for attempt in (
        lambda: tensor.double(),
        lambda: tensor.new_zeros((2,), dtype=torch.float64),
        lambda: tensor.to("cpu", torch.float64),
    ):
        with pytest.raises(TypeError, match="float64"):
            attempt()


@pytest.mark.parametrize("device, expected", [("mps", "cpu"), ("mps:0", "cpu"), ("cuda:1", "cuda:1"), ("cpu", "cpu")])
def test_the_device_of_sums(device, expected):
    assert device_of_sums(torch.device(device)) == torch.device(expected)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("objective", [cross_entropy(0.1, [1.0, 2.0, 1.0]), ordinal(3)])
def test_gauss_newton_sums_to_the_same_bytes(objective, mirrored):
    children = make_children(2, mirrored)
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(7, 3, generator=generator) for _ in range(len(children) + 1)]
    labels = torch.arange(7) % 3
    sums = GaussNewtonSums(children, objective)
    np.testing.assert_array_equal(sums(list(map(on_mps, logits)), on_mps(labels)), sums(logits, labels))


def test_scores_scales_and_means_are_the_same():
    logits, labels = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), torch.arange(5) % 3
    assert Cell.from_logits(on_mps(logits), on_mps(labels)).nll_sum == Cell.from_logits(logits, labels).nll_sum
    assert tensor_scale(on_mps(logits)) == tensor_scale(logits)


def test_models_are_merged_by_way_of_the_cpu():
    plain, there = [[nn.Linear(2, 2) for _ in range(3)] for _ in range(2)]
    for here, other in zip(plain, there):
        for name, parameter in here.named_parameters():
            setattr(other, name, nn.Parameter(on_mps(parameter.detach().clone()), requires_grad=False))
    for models in (plain, there):
        merge_models(models[0], models[1:], [0.25, 0.75])
    for name, parameter in plain[0].named_parameters():
        assert torch.equal(getattr(there[0], name).cpu(), parameter)
