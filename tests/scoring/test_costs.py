"""What a pass costs from each block on, and children dealt out by it."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from smd_hf.models.blocks import find_blocks
from smd_hf.scoring.costs import suffix_costs
from smd_hf.scoring.prefix_replay import PrefixReplay
from smd_hf.search.parameter_space import parameter_space
from smd_hf.search.subspaces import MIN_COST, make_decomposition
from tests.tiny import TIMM_KINDS, TRANSFORMERS_KINDS, tiny_model, tiny_pixels


@pytest.mark.parametrize("kind", TRANSFORMERS_KINDS + TIMM_KINDS)
def test_costs_fall_from_all_to_little(kind):
    model = tiny_model(kind)
    costs = suffix_costs(model, tiny_pixels(1))
    assert len(costs) == len(find_blocks(model)) and costs[0] == 1
    assert all(0 < later <= earlier for earlier, later in pairwise(costs))
    assert costs[-1] < 0.25


@pytest.mark.parametrize("kind", ["vit", "resnet", "timm_convnext"])
def test_costs_do_not_depend_on_time_dtype_or_batch(kind):
    model = tiny_model(kind)
    costs = suffix_costs(model, tiny_pixels(1))
    assert costs == suffix_costs(model, tiny_pixels(1, seed=3))
    assert costs == pytest.approx(suffix_costs(model, tiny_pixels(4)), rel=1e-9)
    assert costs == suffix_costs(model.bfloat16(), tiny_pixels(1).bfloat16())


@torch.inference_mode()
def test_costs_agree_with_the_blocks_that_replay_leaves_out():
    model, pixels = tiny_model("vit"), tiny_pixels()
    costs = suffix_costs(model, pixels)
    replay = PrefixReplay(model)
    for _ in range(5):
        with replay.record():
            model(pixels)
    blocks = find_blocks(model)
    shares = [replay.suffix_share(block.parameter_names) for block in blocks]
    layers = [number for number, block in enumerate(blocks) if ".layers." in block.name]
    # Seconds are noisy; their order, and that of operations, is the same over the layers.
    assert len(layers) == 3
    assert np.argsort(np.array(costs)[layers]).tolist() == np.argsort(np.array(shares)[layers]).tolist() == [2, 1, 0]


@pytest.mark.parametrize("kind", ["vit", "resnet", "efficientnet", "timm_convnext"])
def test_children_go_where_they_are_cheap(kind):
    model = tiny_model(kind)
    space, costs = parameter_space(model), suffix_costs(model, tiny_pixels(1))
    blocks = len(find_blocks(model))
    directions, means = 4 * blocks, {}
    for how in (None, costs):
        made = [make_decomposition("blocks", space, directions, suffix_costs=how) for _ in range(2)]
        generations = []
        for generation in range(20):
            runs = [made[0].run(generation, direction) for direction in range(directions)]
            assert runs == [made[1].run(generation, direction) for direction in range(directions)]
            generations.append(np.bincount(runs, minlength=blocks))
        assert all(counts.sum() == directions for counts in generations)
        means[how is None] = np.mean(generations, axis=0) @ costs / directions
        if how is not None:
            # In each generation the share that the costs say, but for less than one child.
            weights = 1 / np.maximum(costs, MIN_COST)
            share = weights * directions / weights.sum()
            assert all(np.all(np.abs(counts - share) < 1) for counts in generations)
    assert means[False] < 0.85 * means[True]


def test_fewer_children_than_blocks_are_one_a_run():
    model = tiny_model("vit")
    costs = suffix_costs(model, tiny_pixels(1))
    decomposition = make_decomposition("blocks", parameter_space(model), 3, suffix_costs=costs)
    assert [decomposition.run(0, direction) for direction in range(3)] == [0, 1, 2]
