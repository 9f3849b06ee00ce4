import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.models.rt_detr.modeling_rt_detr import RTDetrFrozenBatchNorm2d

from smd_hf.models.checkpoints import weights_hash
from smd_hf.models.norm_statistics import Moments, NormStatistics, mixed, pooled
from tests.tiny import tiny_model


def moments(numbers):
    return Moments(len(numbers), numbers.mean(axis=0), numbers.var(axis=0))


@pytest.mark.parametrize("kind", ["resnet", "timm_efficientnet", "timm_densenet"])
def test_within_the_context_layers_normalise_by_the_batch_as_in_training(kind):
    torch.manual_seed(0)
    model = tiny_model(kind).eval()
    training = copy.deepcopy(model)
    for layer in training.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train()
    before, pixels = weights_hash(model), torch.randn(6, 3, 32, 32)
    statistics = NormStatistics(model)
    with statistics.by_batch() as seen, torch.inference_mode():
        logits = model(pixel_values=pixels).logits
    with torch.no_grad():
        torch.testing.assert_close(logits, training(pixel_values=pixels).logits, rtol=1e-5, atol=2e-5)
    assert weights_hash(model) == before
    assert seen.keys() == statistics.layers.keys() and seen
    # Put into the model, they give the same logits for the same images.
    statistics.write(pooled([seen]))
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values=pixels).logits, logits, rtol=1e-3, atol=1e-4)


def test_moments_are_made_when_the_pass_has_freed_its_memory():
    """Made in between, they pinned what a pass frees: its memory grew from batch to batch."""
    model = tiny_model("resnet").eval()
    statistics = NormStatistics(model)
    with statistics.by_batch() as seen, torch.inference_mode():
        model(pixel_values=torch.randn(2, 3, 32, 32))
        assert not seen
    assert seen.keys() == statistics.layers.keys()


def test_a_pass_that_fails_leaves_the_model_as_it_was():
    model = tiny_model("resnet").eval()
    before = weights_hash(model)
    with pytest.raises(ValueError), NormStatistics(model).by_batch():
        model(pixel_values=torch.randn(2, 3, 32, 32))
        raise ValueError
    assert weights_hash(model) == before
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_frozen_layers_of_detectors_are_found_and_other_models_have_none():
    frozen = RTDetrFrozenBatchNorm2d(4)
    statistics = NormStatistics(nn.Sequential(frozen))
    images = 3 * torch.randn(5, 4, 6, 6) + 2
    with statistics.by_batch() as seen:
        normalised = statistics.layers["0"](images)
    torch.testing.assert_close(normalised.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    statistics.write(pooled([seen]))
    torch.testing.assert_close(frozen(images), normalised)
    assert not NormStatistics(tiny_model("vit")).layers
    assert not NormStatistics(nn.BatchNorm2d(3, track_running_stats=False)).layers


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 2**31))
def test_moments_of_batches_pool_to_those_of_all_images(sizes, seed):
    rng = np.random.default_rng(seed)
    batches = [rng.normal(rng.normal(scale=3), 2, size=(size, 4)) for size in sizes]
    found = pooled([{"norm": [moments(batch)]} for batch in batches])
    everything = np.concatenate(batches)
    if len(everything) < 2:
        assert not found
        return
    np.testing.assert_allclose(found["norm.running_mean"], everything.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(found["norm.running_var"], everything.var(axis=0), atol=1e-9)


def test_calls_of_one_layer_are_pooled_and_layers_that_no_image_reached_left_out():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(7, 2)), rng.normal(size=(3, 2)) + 5
    found = pooled([{"shared": [moments(first), moments(second)]}, {}])
    np.testing.assert_allclose(found["shared.running_var"], np.concatenate([first, second]).var(axis=0))
    before = {"shared.running_mean": np.zeros(2), "shared.running_var": np.ones(2), "other.running_mean": np.ones(2)}
    half = mixed(before, found, 0.5)
    assert half.keys() == found.keys()
    np.testing.assert_allclose(half["shared.running_mean"], found["shared.running_mean"] / 2)
    np.testing.assert_allclose(half["shared.running_var"], 0.5 + found["shared.running_var"] / 2)
