import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import default_data_collator

from smd_hf import EvolutionTrainer, SMDError
from smd_hf.models.checkpoints import weights_hash
from smd_hf.scoring.changes import applied
from smd_hf.search.mutation import Mutation
from smd_hf.search.parameter_space import parameter_space
from smd_hf.search.subspaces import DECOMPOSITIONS, make_decomposition
from smd_hf.search.tensor_scaling import WithScaling, scaling_directions
from tests.plain import plain_arguments
from tests.records import rebuild_child
from tests.tiny import tiny_model, tiny_pixels


def make_mutation(model, scaling, name="partition", noise=4, **kwargs):
    decomposition = make_decomposition(name, parameter_space(model, ["norms", "head"]), noise)
    return Mutation(model, WithScaling(decomposition, scaling), **kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_scaled_tensors_keep_their_direction_and_the_parent_comes_back(name, dtype):
    model = tiny_model("resnet").to(dtype)
    tensors = len(parameter_space(model, ["norms", "head"]).names)
    mutation = make_mutation(model, tensors, name)
    before, parent = weights_hash(model), {name: each.clone() for name, each in mutation.parameters.items()}
    scaled = []
    for child in mutation.children(1, 0.25)[:tensors]:
        with applied(mutation.parameters, mutation.changes(child)) as changed:
            [only] = changed
            scaled.append(only)
            assert child.count == parent[only].numel() and mutation.changed_names(child) == changed
            down, up = (torch.equal(mutation.parameters[only], parent[only] * factor) for factor in (0.75, 1.25))
            assert up or down  # a quarter is exact in each of these types
        assert weights_hash(model) == before
    assert scaled == list(mutation.space.names)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(2, 40), st.floats(0, 0.999))
@settings(max_examples=60, deadline=None)
def test_there_is_always_noise_and_no_tensor_is_scaled_twice(tensors, scaling, directions, share):
    count = scaling_directions(share, directions, tensors)
    assert 0 <= count <= min(directions - 1, tensors) and count <= share * directions + 0.5
    model = torch.nn.ParameterDict({f"p{place:02}": torch.nn.Parameter(torch.ones(3)) for place in range(tensors)})
    scaling = min(scaling, tensors)
    decomposition = WithScaling(make_decomposition("dense", parameter_space(model), 2), scaling)
    owned = np.array(
        [[decomposition.count_in(0, direction, tensor) for tensor in range(tensors)] for direction in range(scaling)]
    )
    assert (owned.sum(axis=0) == 3).all()
    per_direction = (owned > 0).sum(axis=1)
    assert per_direction.min() >= 1 and np.ptp(per_direction) <= 1


def test_noise_is_that_of_the_decomposition_and_pairs_are_mirrored():
    model = tiny_model("resnet")
    mutation = make_mutation(model, 3, "blocks", 6, mirrored=True)
    children = mutation.children(0, 0.1)
    assert [mutation.decomposition.scales(child.direction) for child in children] == 6 * [True] + 12 * [False]
    plain = make_decomposition("blocks", mutation.space, 6)
    for plus, minus in zip(children[::2], children[1::2]):
        for tensor in range(len(mutation.space.names)):
            pair = mutation.delta(plus, tensor), mutation.delta(minus, tensor)
            assert (pair[0] is None) == (pair[1] is None)
            if pair[0] is not None:
                np.testing.assert_array_equal(pair[0][1], -pair[1][1])
        if plus.direction >= 3:
            assert plus.count == plain.count(0, plus.direction - 3)


def test_the_signs_of_a_run_of_tensors_differ_between_generations():
    mutation = make_mutation(tiny_model("resnet"), 1)
    values = [tensor for tensor, name in enumerate(mutation.space.names) if mutation.parameters[name].any()]
    signs = {
        tuple(bool(mutation.delta(mutation.children(generation, 0.1)[0], tensor)[1].sum() > 0) for tensor in values)
        for generation in range(8)
    }
    assert len(signs) > 4


@pytest.fixture(scope="module")
def overconfident():
    """A model whose logits are six times too large, images, and the NLL that it would have on the last of them if they were right."""
    model, pixels = tiny_model("resnet"), tiny_pixels(192)
    head = model.classifier[-1]
    with torch.no_grad():
        head.bias.zero_()
        head.weight.div_(model(pixels).logits.std())
        right = model(pixels).logits
        labels = torch.multinomial(right.softmax(1), 1, generator=torch.Generator().manual_seed(0))[:, 0]
        head.weight.mul_(6)
    rows = [{"pixel_values": each, "labels": int(label)} for each, label in zip(pixels, labels)]
    return model, rows, float(torch.nn.functional.cross_entropy(right[128:], labels[128:]))


def evolved(overconfident, folder, **kwargs):
    model, rows, _ = overconfident
    arguments = dict(
        population_size=8, sigma=0.05, mutable_parameters=["norms", "head"], decomposition="blocks", seed=3
    )
    trainer = EvolutionTrainer(
        copy.deepcopy(model),
        plain_arguments(str(folder), use_cpu=True, disable_tqdm=True, **arguments | kwargs),
        data_collator=default_data_collator,
        train_dataset=rows[:128],
        eval_dataset=rows[128:],
    )
    trainer.train()
    return trainer


def test_a_model_that_is_too_sure_is_set_right_by_one_number(overconfident, tmp_path):
    choices = dict(population_size=2, num_generations=3, mutable_parameters=["*weight"], frozen_parameters=["resnet*"])
    shares = {}
    for share in (0.0, 0.5):
        report = evolved(overconfident, tmp_path / str(share), scaling_share=share, **choices).report
        parent, nll = report["parent"]["nll"], report["evolved"]["nll"]
        shares[share] = (parent - nll) / (parent - overconfident[2])
    # Noise on all coordinates of the head at once hardly ever has the direction of the head.
    assert shares[0.5] > 0.9 > 2 * shares[0.0]


def test_any_child_can_be_built_again_from_what_was_recorded(overconfident, tmp_path):
    choices = dict(scaling_share=0.9, recombination="best", num_generations=3, elitism=False, sigma=0.2)
    trainer = evolved(overconfident, tmp_path / "run", **choices)
    assert trainer.report["scaling_share"] == 0.9
    assert "a share of at most 0.9 of them, by scaling whole tensors" in (tmp_path / "run" / "README.md").read_text()
    records = [json.loads(line) for line in (tmp_path / "run" / "children.jsonl").read_text().splitlines()]
    chosen = [index for record in records for index, _ in record["parts"]]
    assert len(chosen) == 3 and any(trainer.evolution.mutation.decomposition.scales(index) for index in chosen)
    model = copy.deepcopy(overconfident[0])
    rebuild_child(Mutation(model, trainer.evolution.mutation.decomposition, trainer.args.seed), records, 2, chosen[2])
    assert weights_hash(model) == weights_hash(trainer.model)


@pytest.mark.parametrize(
    "kwargs", [{"scaling_share": 1.0}, {"scaling_share": -0.1}, {"scaling_share": 0.5, "mutation": "prune"}]
)
def test_shares_that_cannot_be_are_refused(kwargs, tmp_path):
    with pytest.raises(SMDError, match="scaling_share"):
        plain_arguments(str(tmp_path), **kwargs)
