import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import HfArgumentParser

from smd_hf import EvolutionArguments, SMDError
from smd_hf.arguments.recipes import read_recipe
from smd_hf.cli.dataclass_parsing import CommandParser
from smd_hf.models.checkpoints import weights_hash
from smd_hf.search.gauss_newton import GaussNewton, GaussNewtonSums, damped_steps
from smd_hf.search.losses import cross_entropy, expected_cost, focal, from_compute_loss_func, make_loss, ordinal
from smd_hf.search.mutation import Child
from tests.plain import plain_arguments
from tests.test_trainer import make_dataset, make_trainer
from tests.tiny import save_tiny_checkpoint


def make_children(count, mirrored=False):
    signs = (1, -1) if mirrored else (1,)
    return [
        Child(0, index, index // len(signs), signs[index % len(signs)], 0.1, 0.1, 1, 0.1)
        for index in range(count * len(signs))
    ]


def logits_of(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss_along(parent, changes, labels, coefficients, objective):
    """The objective where the logits follow the children's changes linearly."""
    return objective(parent + torch.einsum("k,kbc->bc", coefficients, changes), labels)


@given(st.integers(1, 5), st.integers(2, 6), st.integers(1, 70), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_gradient_and_curvature_are_those_of_the_loss_in_the_span(children, classes, images, seed):
    parent, changes = logits_of(images, classes, seed=seed), logits_of(children, images, classes, seed=seed + 1)
    labels = torch.arange(images) % classes
    objective = cross_entropy(0.1, [1.0 + 0.5 * each for each in range(classes)])
    sums = GaussNewtonSums(make_children(children), objective)
    total = sums([parent, *(parent + change for change in changes)], labels)
    at_zero = torch.zeros(children, dtype=torch.float64)

    def loss(coefficients):
        return loss_along(parent, changes, labels, coefficients, objective)

    np.testing.assert_allclose(total[:, -1], torch.func.grad(loss)(at_zero), atol=1e-8)
    # Where logits are linear in the step, Gauss-Newton's curvature is exact.
    np.testing.assert_allclose(total[:, :-1], torch.func.hessian(loss)(at_zero), atol=1e-8)


def test_sums_over_batches_add_up_to_the_whole():
    parent, changes = logits_of(40, 5), logits_of(3, 40, 5, seed=1)
    labels = torch.arange(40) % 5
    sums = GaussNewtonSums(make_children(3), cross_entropy(label_smoothing=0.1))
    everything = [parent, *(parent + change for change in changes)]
    parts = [sums([each[rows] for each in everything], labels[rows]) for rows in (slice(0, 13), slice(13, 40))]
    np.testing.assert_allclose(sums(everything, labels), np.sum(parts, axis=0), atol=1e-9)


@pytest.mark.parametrize("objective", [cross_entropy(), focal()], ids=["cross_entropy", "focal"])
def test_an_image_that_weighs_twice_counts_like_two_images(objective):
    parent, changes, labels = logits_of(6, 4), logits_of(3, 6, 4, seed=1), torch.arange(6) % 4
    weights = torch.tensor([0, 1, 2, 3, 1, 2])
    everything = [parent, *(parent + change for change in changes)]
    sums = GaussNewtonSums(make_children(3), objective)
    repeated = sums([each.repeat_interleave(weights, dim=0) for each in everything], labels.repeat_interleave(weights))
    np.testing.assert_allclose(sums(everything, labels, weights.double()), repeated, atol=1e-9)


def test_mirrored_children_give_the_central_difference():
    parent, change, bend = logits_of(8, 4), logits_of(8, 4, seed=1), logits_of(8, 4, seed=2)
    labels = torch.arange(8) % 4
    mirrored = GaussNewtonSums(make_children(1, mirrored=True), cross_entropy())
    plain = GaussNewtonSums(make_children(1), cross_entropy())
    # What is even in the step, the bend, cancels.
    central = mirrored([parent, parent + change + bend, parent - change + bend], labels)
    np.testing.assert_allclose(central, plain([parent, parent + change], labels), atol=1e-9)


def test_a_child_that_is_not_finite_has_no_part():
    parent, changes = logits_of(6, 3), logits_of(2, 6, 3, seed=1)
    changes[1, 2, 0] = float("nan")
    sums = GaussNewtonSums(make_children(2), cross_entropy())
    assert np.isfinite(sums([parent, *(parent + change for change in changes)], torch.arange(6) % 3)).all()


@pytest.mark.parametrize(
    "objective",
    [
        cross_entropy(0.1, [1.0, 2.0, 0.5]),
        focal(),
        ordinal(3),
        expected_cost([[0, 1, 9], [1, 0, 1], [5, 1, 0]]),
        from_compute_loss_func(
            lambda outputs, labels, num_items_in_batch: (outputs.logits**2).sum() / num_items_in_batch
        ),
    ],
)
def test_a_damped_step_lowers_every_objective(objective):
    parent, changes = logits_of(60, 3), 0.1 * logits_of(20, 60, 3, seed=1)
    labels = torch.arange(60) % 3
    sums = GaussNewtonSums(make_children(20), objective)
    total = sums([parent, *(parent + change for change in changes)], labels)
    before = objective(parent, labels)
    steps = damped_steps(total[:, :-1], total[:, -1])
    after = [loss_along(parent, changes, labels, torch.from_numpy(step), objective) for step in steps.values()]
    assert min(after) < before


def test_more_damping_makes_shorter_steps_and_nothing_to_go_by_makes_none():
    curvature = np.diag([4.0, 1.0, 0.0])
    steps = list(damped_steps(curvature, np.array([1.0, -1.0, 0.0])).values())
    norms = [np.linalg.norm(step) for step in steps]
    assert norms == sorted(norms, reverse=True)
    assert steps[0] == pytest.approx([-0.25, 1.0, 0.0], rel=0.06)
    assert damped_steps(np.zeros((2, 2)), np.zeros(2)) == {}


def test_objectives_refuse_what_does_not_fit():
    with pytest.raises(SMDError, match="class_weights has 2 numbers"):
        make_loss("cross_entropy", 3, class_weights=[1.0, 2.0])
    with pytest.raises(SMDError, match="cost_matrix of shape"):
        make_loss("expected_cost", 3, cost_matrix=[[0, 1], [1, 0]])
    with pytest.raises(SMDError, match="shape"):
        expected_cost([[0, 1]])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_checkpoint("vit", tmp_path_factory.mktemp("parent"))


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(decomposition="partition"),
        dict(decomposition="dense", mirrored=True),
        dict(decomposition="blocks", allocation="cost", mutable_parameters=["norms", "head"]),
        dict(decomposition="random", density=0.3, label_smoothing_factor=0.1, class_weights=[1.0, 1.0, 2.0, 1.0]),
        dict(decomposition="antirandom", loss="focal"),
    ],
)
def test_a_run_of_every_kind_is_never_worse_on_the_selection_split(kwargs, checkpoint, tmp_path):
    data = make_dataset(80, 1), make_dataset(40, 2)
    trainer = make_trainer(
        checkpoint,
        tmp_path,
        data,
        recombination="gauss_newton",
        population_size=8,
        num_generations=2,
        sigma=0.1,
        **kwargs,
    )
    trainer.train()
    for record in trainer.run.generations:
        fitness = record["selection"]
        assert fitness[record["chosen"]] == max(value for value in fitness.values() if value is not None)
        assert fitness[record["chosen"]] >= fitness["parent"]
        assert sum(name.startswith("step") for name in fitness) == 5


def test_the_step_is_the_same_whatever_fits_into_memory(checkpoint, tmp_path, monkeypatch):
    data = make_dataset(80, 1), make_dataset(16, 2)
    hashes = []
    for number, (tapped, cache, change_cache) in enumerate([(2**27, 2.0, 1.0), (1, 0.0, 0.0)]):
        monkeypatch.setattr("smd_hf.scoring.evaluator.TAPPED_BYTES", tapped)
        trainer = make_trainer(
            checkpoint,
            tmp_path / str(number),
            data,
            recombination="gauss_newton",
            decomposition="partition",
            population_size=6,
            image_cache_gb=cache,
            child_cache_gb=change_cache,
        )
        trainer.train()
        hashes.append(weights_hash(trainer.model))
    assert hashes[0] == hashes[1]


def test_the_preset_can_be_overridden(checkpoint, tmp_path):
    trainer = make_trainer(checkpoint, tmp_path, (make_dataset(40), make_dataset(8)), preset="adapt", sigma=0.05)
    args = trainer.args
    assert args.sigma == 0.05 and args.population_size == 4 and args.recombination == "best"
    assert args.decomposition == "blocks" and args.allocation == "cost" and args.num_generations == 5
    assert {"preset", "decomposition", "num_generations"} <= args.non_default().keys()


def test_a_default_that_is_given_holds_against_a_preset_and_what_other_choices_imply(tmp_path):
    args = plain_arguments(str(tmp_path), preset="adapt", num_generations=1, use_cpu=True)
    assert args.num_generations == 1 and args.population_size == read_recipe("adapt")["population_size"]
    again = EvolutionArguments(**args.non_default())
    assert again.num_generations == 1 and again.non_default() == args.non_default()
    parser = CommandParser("evolve", (EvolutionArguments,), "")
    [args] = parser.parse(["--output_dir", str(tmp_path), "--preset", "adapt", "--num_generations", "1", "--use_cpu"])
    assert args.num_generations == 1 and args.population_size == read_recipe("adapt")["population_size"]
    assert plain_arguments(str(tmp_path), racing="halving", use_cpu=True).recombination == "best"
    with pytest.raises(SMDError, match="gauss_newton"):
        plain_arguments(str(tmp_path), racing="halving", recombination="gauss_newton", use_cpu=True)
    # A plain HfArgumentParser does not say what was given.
    [args] = HfArgumentParser(EvolutionArguments).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--preset", "adapt", "--use_cpu"]
    )
    assert args.num_generations == 5


def test_without_survivors_no_step_is_proposed():
    strategy = GaussNewton(2, cross_entropy())
    sums = strategy.sums(make_children(2))
    sums.total = np.zeros((2, 3))
    rounds = strategy.propose([], sums)
    assert next(rounds) == []
    with pytest.raises(StopIteration):
        rounds.send([])
