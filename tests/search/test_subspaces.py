import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smd_hf import SMDError
from smd_hf.search.subspaces import DECOMPOSITIONS, MIN_COST, ParameterSpace, make_decomposition


def make_space(sizes, blocks=None):
    names = tuple(f"p{i}" for i in range(len(sizes)))
    return ParameterSpace(names, names, tuple(sizes), tuple(blocks or range(len(sizes))))


def mask(decomposition, generation, direction):
    """One direction's mask over all coordinates, as booleans."""
    parts = []
    for tensor, size in enumerate(decomposition.space.sizes):
        indices = decomposition.indices(generation, direction, tensor)
        part = np.zeros(size, dtype=bool)
        part[slice(None) if indices is None else indices] = True
        if indices is not None:
            assert indices.dtype == np.int64
            assert np.all(np.diff(indices) > 0)
        assert part.sum() == decomposition.count_in(generation, direction, tensor)
        parts.append(part)
    return np.concatenate(parts)


spaces = st.lists(st.integers(1, 40), min_size=1, max_size=6).map(make_space)
seeds = st.integers(0, 2**40)


@given(spaces, st.integers(1, 12), seeds, st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_a_partition_covers_every_coordinate_once_in_even_shares(space, directions, seed, generation):
    directions = min(directions, space.total)
    partition = make_decomposition("partition", space, directions, seed=seed)
    masks = np.array([mask(partition, generation, direction) for direction in range(directions)])
    np.testing.assert_array_equal(masks.sum(0), 1)
    assert masks.sum(1).max() - masks.sum(1).min() <= 1
    assert len({partition.noise_key(direction) for direction in range(directions)}) == 1


@given(spaces, st.integers(1, 4), seeds)
@settings(max_examples=40, deadline=None)
def test_antirandom_pairs_are_complements_of_one_noise(space, pairs, seed):
    antirandom = make_decomposition("antirandom", space, 2 * pairs, seed=seed)
    for pair in range(pairs):
        first, second = mask(antirandom, 0, 2 * pair), mask(antirandom, 0, 2 * pair + 1)
        np.testing.assert_array_equal(first, ~second)
        assert abs(int(first.sum()) - int(second.sum())) <= 1
        assert antirandom.noise_key(2 * pair) == antirandom.noise_key(2 * pair + 1)
    assert len({antirandom.noise_key(direction) for direction in range(2 * pairs)}) == pairs


@given(spaces, st.floats(0.05, 1), seeds)
@settings(max_examples=60, deadline=None)
def test_a_random_mask_has_the_exact_count(space, density, seed):
    if round(density * space.total) < 1:
        return
    random = make_decomposition("random", space, 3, density, seed)
    for direction in range(3):
        assert mask(random, 0, direction).sum() == round(density * space.total) == random.count(0, direction)


def test_random_masks_favour_no_coordinate():
    space = make_space([3, 50, 7])
    random = make_decomposition("random", space, 2000, 0.1)
    share = np.mean([mask(random, 0, direction) for direction in range(2000)], axis=0)
    # 2,000 draws at 0.1: a standard error of 0.0067, and 60 coordinates
    assert np.all(np.abs(share - 0.1) < 0.03)


def test_dense_children_change_everything():
    dense = make_decomposition("dense", make_space([4, 5]), 2)
    assert mask(dense, 0, 0).all() and mask(dense, 3, 1).all()


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(1, 12), seeds)
@settings(max_examples=60, deadline=None)
def test_blocks_children_are_contiguous_in_depth_and_reach_every_block(sizes, directions, seed):
    space = make_space(sizes, blocks=[i // 2 for i in range(len(sizes))])
    blocks = make_decomposition("blocks", space, directions, seed=seed)
    owner = np.repeat(space.blocks, space.sizes)
    masks = np.array([mask(blocks, 0, direction) for direction in range(directions)])
    assert masks.any(1).all() and masks.any(0).all()
    for each in masks:
        changed = np.unique(owner[each])
        np.testing.assert_array_equal(changed, np.arange(changed[0], changed[-1] + 1))
        assert np.isin(owner, changed)[each].all() and (np.isin(owner, changed) == each).all()
    if directions <= len(np.unique(owner)):
        np.testing.assert_array_equal(masks.sum(0), 1)


def test_blocks_take_a_density_within_the_run():
    blocks = make_decomposition("blocks", make_space([100, 60]), 2, 0.25)
    assert blocks.count(0, 0) == 25 and blocks.count(0, 1) == 15


@pytest.mark.parametrize("name", [name for name in DECOMPOSITIONS if name != "dense"])
def test_static_masks_stay_and_dynamic_masks_change(name):
    space = make_space([64, 64, 33])
    density = 0.5 if name in ("random", "blocks") else None
    static = make_decomposition(name, space, 2, density, 7, static=True)
    dynamic = make_decomposition(name, space, 2, density, 7)
    np.testing.assert_array_equal(mask(static, 0, 1), mask(static, 5, 1))
    assert not np.array_equal(mask(dynamic, 0, 1), mask(dynamic, 5, 1))
    np.testing.assert_array_equal(mask(static, 0, 1), mask(dynamic, 0, 1))


def test_masks_do_not_depend_on_the_order_in_which_they_are_asked_for():
    space = make_space([40, 17, 90])
    for name in DECOMPOSITIONS:
        ahead, back = (make_decomposition(name, space, 4, seed=3) for _ in range(2))
        wanted = [(generation, direction) for generation in range(2) for direction in range(4)]
        forwards = {key: mask(ahead, *key) for key in wanted}
        for key in reversed(wanted):
            np.testing.assert_array_equal(forwards[key], mask(back, *key))


@pytest.mark.parametrize(
    ("name", "directions", "density", "message"),
    [
        ("partition", 10, None, "there are 10 children and only 9 mutable coordinates"),
        ("antirandom", 3, None, "even population_size"),
        ("random", 2, 0.01, "would change none of the 9 mutable coordinates"),
        ("partition", 4, 0.5, "does not fit decomposition="),
        ("dense", 4, 0.5, "does not fit decomposition="),
    ],
)
def test_what_cannot_be_is_refused(name, directions, density, message):
    with pytest.raises(SMDError, match=message):
        make_decomposition(name, make_space([4, 5]), directions, density)


@given(st.integers(1, 9), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_blocks_have_equally_many_children_and_the_last_ones_the_odd_ones(num_blocks, directions):
    blocks = make_decomposition("blocks", make_space([5] * num_blocks), directions)
    counts = np.bincount([blocks.run(0, direction) for direction in range(directions)])
    assert counts.sum() == directions and counts.max() - counts.min() <= 1
    assert np.all(np.diff(counts) >= 0)


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=9), st.integers(10, 60), seeds)
@settings(max_examples=40, deadline=None)
def test_blocks_have_children_inversely_to_their_cost(costs, directions, seed):
    space = make_space([5] * len(costs))
    blocks = make_decomposition("blocks", space, directions, seed=seed, suffix_costs=costs)
    weights = 1 / np.maximum(costs, MIN_COST)
    shares = directions * weights / weights.sum()
    counts = np.array(
        [np.bincount([blocks.run(g, d) for d in range(directions)], minlength=len(costs)) for g in range(200)]
    )
    assert np.all(counts.sum(1) == directions)
    assert np.all(np.abs(counts - shares) < 1 + 1e-9)
    # 200 draws of a count that is one of two neighbours: a standard error of 0.035 at most
    assert np.all(np.abs(counts.mean(0) - shares) < 0.2)
    static = make_decomposition("blocks", space, directions, seed=seed, static=True, suffix_costs=costs)
    assert [static.run(7, d) for d in range(directions)] == [static.run(0, d) for d in range(directions)]


def test_as_many_children_as_blocks_have_a_block_each_whatever_it_costs():
    blocks = make_decomposition("blocks", make_space([5] * 4), 4, suffix_costs=[1.0, 0.7, 0.3, 0.01])
    assert [blocks.run(3, direction) for direction in range(4)] == [0, 1, 2, 3]
