"""Successive halving: less work, and for those that come through the scores that they have without it."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smd_hf import EvolutionTrainer
from smd_hf.scoring.evaluator import Evaluator, Variant
from smd_hf.scoring.racing import race, rounds
from smd_hf.search.mutation import Mutation
from smd_hf.search.parameter_space import parameter_space
from smd_hf.search.subspaces import make_decomposition
from tests.plain import plain_arguments
from tests.scoring.test_evaluator import make_batches
from tests.test_trainer import make_dataset
from tests.tiny import tiny_model, tiny_processor

CPU = torch.device("cpu")
NAME = "classifier.1.bias"


@pytest.fixture(scope="module")
def model():
    return tiny_model("resnet")


def population(model, count, sigma=0.1, decomposition="random"):
    mutation = Mutation(model, make_decomposition(decomposition, parameter_space(model), count))
    children = [
        Variant(str(child.index), lambda child=child: mutation.changes(child), mutation.changed_names(child))
        for child in mutation.children(0, sigma)
    ]
    return [Variant("parent", changed=frozenset()), *children]


def broken(value=float("nan")):
    return Variant("broken", lambda: [(NAME, (None, torch.full((4,), value)))], frozenset([NAME]))


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300))
def test_rounds_end_on_more_and_more_images(children, batches, survivors):
    ends = rounds(children, batches, survivors)
    assert ends == sorted(set(ends)) and ends[0] >= 1 and ends[-1] == batches
    assert len(ends) - 1 <= max(0, np.log2(children / survivors))


def test_64_children_and_8_survivors_cost_14_passes():
    ends, left, start, cost = rounds(64, 64, 8), 64, 0, 0
    for end in ends:
        cost, start, left = cost + left * (end - start), end, max(8, (left + 1) // 2)
    assert ends == [4, 8, 16, 64] and cost == 14 * 64


@pytest.mark.parametrize("decomposition", ["random", "blocks"])
@pytest.mark.parametrize("children, survivors", [(12, 3), (9, 2), (5, 5), (4, 9)])
def test_survivors_score_as_without_a_race(model, decomposition, children, survivors):
    variants, batches = population(model, children, decomposition=decomposition), make_batches(64, 4)
    evaluator = Evaluator(model, CPU)
    alone = evaluator.score(variants, batches, keep_logits=True)
    before, reported = evaluator.images_forwarded, {}
    scores = race(
        evaluator, variants, batches, survivors, True, lambda number, score: reported.update({number: score})
    )
    through = [number for number, score in enumerate(scores) if score.num_images == 64]
    # The parent stays; of the children never fewer than asked for.
    assert through[0] == 0 and len(through) - 1 >= min(survivors, children)
    for number in through:
        assert np.array_equal(scores[number].logits, alone[number].logits) and scores[number].nll == alone[number].nll
    for number, score in enumerate(scores):
        seen = score.num_images
        assert np.array_equal(score.logits, alone[number].logits[:seen])
    assert reported == dict(enumerate(scores))
    spent = evaluator.images_forwarded - before
    assert spent == sum(score.num_images for score in scores)
    if children > survivors * 2:
        assert spent < 0.7 * 64 * (children + 1)
    else:
        assert len(through) == children + 1


def test_of_each_round_the_better_half_by_nll_goes_on(model):
    variants, batches = population(model, 8), make_batches(64, 4)
    scores = race(Evaluator(model, CPU), variants, batches, 2)
    alone = Evaluator(model, CPU).score(variants, batches)
    for end in sorted({score.num_images for score in scores})[:-1]:
        seen = [score for score in scores[1:] if score.num_images >= end]
        out = [number for number, score in enumerate(scores) if score.num_images == end]
        nll = {
            number: sum(alone[number].cells[batch].nll_sum for batch in range(end // 4))
            for number, score in enumerate(scores)
            if number and score.num_images >= end
        }
        worst = sorted(nll, key=nll.get)[(len(seen) + 1) // 2 :]
        assert sorted(out) == sorted(worst)


def test_children_that_are_not_finite_leave_and_nobody_else_for_them(model):
    variants = population(model, 6)
    variants[2:2] = [broken(), broken(float("inf"))]
    scores = race(Evaluator(model, CPU), variants, make_batches(64, 4), 2)
    assert all(not scores[number].finite and scores[number].num_images < 64 for number in (2, 3))
    assert sum(score.num_images == 64 for score in scores) == 3


def test_the_parent_runs_alone_where_every_child_failed(model):
    variants = [Variant("parent", changed=frozenset()), broken(), broken(), broken(), broken()]
    scores = race(Evaluator(model, CPU), variants, make_batches(64, 4), 1)
    assert scores[0].num_images == 64 and all(score.num_images < 64 for score in scores[1:])


def run(folder, **kwargs):
    kwargs = dict(population_size=12, sigma=0.2, elitism=False, per_device_eval_batch_size=4) | kwargs
    trainer = EvolutionTrainer(
        tiny_model("resnet"),
        plain_arguments(str(folder), use_cpu=True, disable_tqdm=True, **kwargs),
        train_dataset=make_dataset(80, 1),
        eval_dataset=make_dataset(16, 2),
        processing_class=tiny_processor(),
    )
    trainer.train()
    [record] = [json.loads(line) for line in (folder / "children.jsonl").read_text().splitlines()]
    return trainer, record


def test_a_run_records_who_was_eliminated_and_what_was_saved(tmp_path):
    raced, record = run(tmp_path / "raced", racing="halving", recombination_top_k=2)
    whole, plain = run(tmp_path / "whole", recombination_top_k=2)
    out = [child for child in record["children"] if child.get("eliminated")]
    through = [child for child in record["children"] if not child.get("eliminated")]
    assert out and len(through) >= 2 and len(out) + len(through) == 12
    assert all(child["num_images"] < 64 and child["fitness"] is not None for child in out)
    for child in through:
        assert child == plain["children"][child["index"]] and child["num_images"] == 64
    assert {index for index, _ in record["parts"]} <= {child["index"] for child in through}
    [logs] = [entry for entry in raced.state.log_history if "racing_saved" in entry]
    assert logs["racing_saved"] == pytest.approx(1 - sum(child["num_images"] for child in record["children"]) / 768)
    assert logs["racing_saved"] > 0.3
    assert raced.report["cost"]["images_forwarded"] < 0.75 * whole.report["cost"]["images_forwarded"]


def test_a_race_leaves_as_many_as_the_ensemble_and_the_deltas_ask_for(tmp_path):
    trainer, record = run(
        tmp_path, racing="halving", recombination_top_k=1, ensemble_size=6, ensemble_selection="top_k", save_children=3
    )
    assert sum(not child.get("eliminated", False) for child in record["children"]) >= 6
    assert trainer.report["ensemble_members"]["size"] == 6
