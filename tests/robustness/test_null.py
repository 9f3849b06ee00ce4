"""
The winner's curse, with children that are all truly null: choosing among them makes wins that are not there.

The model adds noise to the evidence for each class. Its weights say in which direction of the noise, never how much of it:
any weights whatever, of a child or of a Gauss-Newton step, have the same expected accuracy, NLL and calibration. Mutation,
scoring, selection with elitism, recombination and report are those of every run.
"""

from dataclasses import dataclass
from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from smd_hf.data.batches import ImageBatches
from smd_hf.metrics.statistics import compare
from smd_hf.reports.gain_report import gain_report
from smd_hf.run.state import RunState
from smd_hf.scoring.evaluator import Evaluator
from smd_hf.search.evolution import Evolution, Generation
from smd_hf.search.fitness import Fitness
from smd_hf.search.gauss_newton import GaussNewton
from smd_hf.search.losses import cross_entropy
from smd_hf.search.mutation import Mutation
from smd_hf.search.parameter_space import parameter_space
from smd_hf.search.recombination import Best
from smd_hf.search.subspaces import make_decomposition

CLASSES, DIMENSIONS, RUNS = 4, 24, 200
SIZES = {"fitness": 200, "selection": 400, "test": 200}


class Exchangeable(nn.Module):
    """logits = evidence + noise along a direction: the length of the weights has no effect."""

    dtype = torch.float32
    config = SimpleNamespace(num_labels=CLASSES)

    def __init__(self):
        super().__init__()
        self.direction = nn.Linear(DIMENSIONS, 1, bias=False)

    def forward(self, pixel_values):
        noise, evidence = pixel_values[:, 0, :, :-1], pixel_values[:, 0, :, -1]
        return SimpleNamespace(logits=evidence + self.direction(noise)[..., 0] / self.direction.weight.norm())


def image_batches(size, generator):
    """Images with a row for each class: independent noise, and the evidence at the end."""
    labels = torch.arange(size) % CLASSES
    pixels = torch.randn(size, 1, CLASSES, DIMENSIONS + 1, generator=generator)
    pixels[:, 0, :, -1] = 2.0 * nn.functional.one_hot(labels, CLASSES)
    return ImageBatches(
        range(size),
        lambda rows: {"pixel_values": pixels[rows], "labels": labels[rows]},
        batch_size=size,
        cache_bytes=10**9,
    )


@dataclass(eq=False)
class NullRun:
    """One generation of null children: logits of the parent and of what was chosen, by split; and the generation itself."""

    parent: dict[str, np.ndarray]
    chosen: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    generation: Generation

    def wins(self, split):
        """Whether what was chosen looks significantly better than the parent on a split."""
        return self.comparison(split).verdict.startswith("significant gain")

    def lowers_nll(self, split):
        """Whether the interval of the difference in NLL is below 0."""
        return self.comparison(split).nll.interval[1] < 0

    @cache  # noqa: B019
    def comparison(self, split):
        return compare(self.parent[split], self.chosen[split], self.labels[split], resamples=200)


def null_run(seed, children, recombination, fitness, elitism=True):
    torch.manual_seed(seed)
    model = Exchangeable().eval()
    generator = torch.Generator().manual_seed(seed)
    batches = {name: image_batches(size, generator) for name, size in SIZES.items()}
    evaluator = Evaluator(model, torch.device("cpu"), prefix_replay=False)
    mutation = Mutation(model, make_decomposition("dense", parameter_space(model), children), seed)
    splits = batches["fitness"], batches["selection"]
    evolution = Evolution(model, mutation, evaluator, Fitness(fitness), recombination, *splits, elitism)
    parent = {name: evaluator.logits(each) for name, each in batches.items()}
    generation = evolution.step(0, sigma=0.6)
    chosen = {name: evaluator.logits(each) for name, each in batches.items()}
    return NullRun(parent, chosen, {name: each.labels for name, each in batches.items()}, generation)


@pytest.mark.slow
def test_the_best_of_64_null_children_is_no_false_win(monkeypatch):
    # Fewer resamples: intervals take no part in the verdict on accuracy, which is McNemar's.
    monkeypatch.setattr("smd_hf.reports.gain_report.compare", partial(compare, resamples=200))
    runs = [null_run(seed, 64, Best(64), "accuracy") for seed in range(RUNS)]
    reports = [
        gain_report(
            run.parent["test"],
            run.chosen["test"],
            run.labels["test"],
            arguments={},
            method={},
            cost={},
            data={},
            candidates=RunState([run.generation.record()]).candidates(SIZES["selection"]),
        )
        for run in runs
    ]
    verdicts = [report["verdict"] for report in reports]
    assert np.mean([verdict.startswith("significant gain") for verdict in verdicts]) <= 0.05
    # Where they were chosen, the same winners look better than chance allows: what the test split guards against.
    assert np.mean([run.wins("selection") for run in runs]) >= 0.2

    # The report says how much of that to expect. The children err on the same images as their parent, so they are
    # correlated, and what is expected of independent ones is too much: the mean is 70 to 100 % of it.
    assert {report["selection"]["n_candidates"] for report in reports} == {64}
    apparent = np.mean([run.comparison("selection").accuracy.estimate for run in runs])
    expected = np.mean([report["selection"]["expected_optimism"] for report in reports])
    assert 0.025 < 0.7 * expected <= apparent <= expected
    # On the test split there is no gain: 0 within three standard errors.
    gains = [report["difference"]["accuracy"]["estimate"] for report in reports]
    assert abs(np.mean(gains)) <= 3 * np.std(gains) / np.sqrt(RUNS)


@pytest.mark.slow
def test_a_gauss_newton_step_on_noise_is_no_false_win():
    # Without elitism, so that a step is taken wherever it beats the fittest child.
    runs = [null_run(seed, 16, GaussNewton(1, cross_entropy()), "nll", elitism=False) for seed in range(RUNS)]
    steps = [run for run in runs if run.generation.chosen.name.startswith("step")]
    assert len(steps) >= RUNS / 2
    assert np.mean([run.wins("test") for run in runs]) <= 0.05
    # On the images that it was fitted to, a step learns noise by heart.
    assert np.mean([run.lowers_nll("test") for run in steps]) <= 0.05
    assert np.mean([run.lowers_nll("fitness") for run in steps]) >= 0.2
