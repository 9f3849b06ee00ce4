import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from smd_hf.models.checkpoints import weights_hash
from smd_hf.scoring.changes import applied, commit
from smd_hf.search.mutation import Mutation, tensor_scale
from smd_hf.search.parameter_space import parameter_space
from smd_hf.search.sigma import scheduled_sigma
from smd_hf.search.subspaces import DECOMPOSITIONS, make_decomposition
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model("resnet")


def make_mutation(model, name="partition", directions=4, density=None, seed=0, **kwargs):
    space = parameter_space(model)
    return Mutation(model, make_decomposition(name, space, directions, density, seed), seed, **kwargs)


def deltas(mutation, child):
    """The child's mutation of all mutable coordinates, float32."""
    parts = []
    for tensor, size in enumerate(mutation.space.sizes):
        part = np.zeros(size, dtype=np.float32)
        if (change := mutation.delta(child, tensor)) is not None:
            part[slice(None) if change[0] is None else change[0]] = change[1]
        parts.append(part)
    return np.concatenate(parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_the_parent_comes_back_to_the_bit(name, dtype):
    model = tiny_model("resnet").to(dtype)
    mutation = make_mutation(model, name)
    before = weights_hash(model)
    for child in mutation.children(3, 0.5):
        with applied(mutation.parameters, mutation.changes(child)) as changed:
            assert changed and weights_hash(model) != before
        assert weights_hash(model) == before


def test_the_parent_comes_back_after_an_error(model):
    mutation = make_mutation(model)
    before = weights_hash(model)
    [child, *_] = mutation.children(0, 0.5)
    with pytest.raises(ZeroDivisionError), applied(mutation.parameters, mutation.changes(child)):
        raise ZeroDivisionError
    assert weights_hash(model) == before

    def breaks_off():
        for number, change in enumerate(mutation.changes(child)):
            if number == 2:
                raise KeyError("half way")
            yield change

    with pytest.raises(KeyError), applied(mutation.parameters, breaks_off()):
        pass
    assert weights_hash(model) == before


def test_a_channels_last_model_makes_the_same_child():
    children = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model = tiny_model("resnet").to(memory_format=memory_format)
        mutation = make_mutation(model, "random", density=0.2)
        with applied(mutation.parameters, mutation.changes(mutation.children(0, 0.3)[1])):
            children.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    for name, tensor in children[0].items():
        assert torch.equal(tensor, children[1][name])


@given(st.integers(2, 9), st.integers(0, 2**32), st.integers(0, 4))
@settings(max_examples=15, deadline=None)
def test_a_partition_sums_to_the_dense_mutation_exactly(directions, seed, generation):
    model = tiny_model("convnext")
    partition = make_mutation(model, "partition", directions, seed=seed)
    whole = make_mutation(model, "partition", 1, seed=seed)
    parts = [deltas(partition, child) for child in partition.children(generation, 0.3)]
    [dense] = (deltas(whole, child) for child in whole.children(generation, 0.3))
    assert np.count_nonzero(dense) > 0.9 * len(dense)
    np.testing.assert_array_equal(np.sum(parts, axis=0, dtype=np.float32), dense)
    assert np.max(np.sum([part != 0 for part in parts], axis=0)) == 1


def test_mirrored_children_come_in_opposite_pairs(model):
    mutation = make_mutation(model, "random", 3, 0.3, mirrored=True)
    children = mutation.children(0, 0.2)
    assert [child.index for child in children] == list(range(6))
    for plus, minus in zip(children[::2], children[1::2]):
        np.testing.assert_array_equal(deltas(mutation, plus), -deltas(mutation, minus))


def test_match_norm_makes_children_of_every_density_equally_far(model):
    def norm(density, match_norm):
        mutation = make_mutation(model, "random", 2, density, match_norm=match_norm, sigma_units="absolute")
        return np.linalg.norm(deltas(mutation, mutation.children(0, 0.1)[0]).astype(np.float64))

    assert norm(1 / 16, False) / norm(1.0, False) == pytest.approx(1 / 4, rel=0.05)
    assert norm(1 / 16, True) / norm(1.0, True) == pytest.approx(1, rel=0.05)


def test_relative_sigma_is_in_units_of_each_tensors_deviation(model):
    mutation = make_mutation(model, "dense", 2)
    child = mutation.children(0, 0.3)[0]
    for tensor, name in enumerate(mutation.space.names):
        if mutation.space.sizes[tensor] > 500:
            scale = float(mutation.parameters[name].detach().double().std(correction=0))
            assert np.std(mutation.delta(child, tensor)[1]) == pytest.approx(0.3 * scale, rel=0.15)
    absolute = make_mutation(model, "dense", 2, sigma_units="absolute")
    assert np.std(deltas(absolute, child)) == pytest.approx(0.3, rel=0.05)


def test_the_scale_of_a_constant_tensor_is_its_size():
    assert tensor_scale(torch.ones(8)) == 1.0
    assert tensor_scale(torch.zeros(8)) == 0.0
    assert tensor_scale(torch.tensor([1.0, -1.0])) == 1.0


def test_a_combination_is_the_weighted_sum_of_its_children(model):
    mutation = make_mutation(model, "random", 4, 0.4)
    children = mutation.children(0, 0.3)
    parts = [(children[0], 0.5), (children[2], -0.25)]
    expected = 0.5 * deltas(mutation, children[0]) - 0.25 * deltas(mutation, children[2])
    before = torch.cat([mutation.parameters[name].detach().flatten() for name in mutation.space.names])
    with applied(mutation.parameters, mutation.combination(parts)):
        after = torch.cat([mutation.parameters[name].detach().flatten() for name in mutation.space.names])
    np.testing.assert_allclose((after - before).numpy(), expected, atol=1e-6)


def test_a_kept_change_stays_and_scales_follow(model):
    model = tiny_model("vit")
    mutation = make_mutation(model, "dense", 2)
    before, scales = weights_hash(model), list(mutation.scales)
    commit(mutation.parameters, mutation.changes(mutation.children(0, 0.5)[0]))
    mutation.parent_changed()
    assert weights_hash(model) != before and mutation.scales != scales


def test_tied_parameters_are_mutated_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight

    model = Tied()
    names = [name for name, _ in model.named_parameters()]
    assert "first.weight" in names and "second.weight" not in names


def test_sigma_schedules():
    assert [scheduled_sigma(2.0, "constant", g, 4) for g in range(4)] == [2.0] * 4
    assert [scheduled_sigma(2.0, "linear", g, 4) for g in range(4)] == [2.0, 1.5, 1.0, 0.5]
    cosine = [scheduled_sigma(2.0, "cosine", g, 4) for g in range(4)]
    assert cosine[0] == 2.0 and cosine[2] == pytest.approx(1.0) and 0 < cosine[3] < cosine[1] < 2
