import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smd_hf.scoring.scores import Cell, Score
from smd_hf.search.information import Guard, InformationFitness, InformationLoss, information


def score(logits):
    logits = np.asarray(logits, dtype=np.float32)
    return Score({0: Cell(None, 0.0, bool(np.isfinite(logits).all()), logits, np.zeros((len(logits), 1)))})


def test_information_is_the_entropy_of_the_mean_minus_the_mean_entropy():
    sure = 50 * np.eye(4)
    assert information(sure) == pytest.approx(np.log(4))
    # Sure of one class for all images, and sure of nothing: no information.
    assert information(sure[[0, 0, 0]]) == pytest.approx(0, abs=1e-9)
    assert information(np.zeros((5, 4))) == pytest.approx(0, abs=1e-9)
    fitness = InformationFitness()
    assert fitness(score(sure), np.full(4, -1)) == pytest.approx(np.log(4))
    assert fitness(score([[np.nan, 0.0]]), np.full(1, -1)) == -np.inf


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 12), st.integers(2, 5), st.integers(0, 2**31))
def test_the_loss_has_minus_the_information_as_its_mean_and_the_gradient_of_it(images, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, classes, generator=generator, dtype=torch.float64)
    loss = InformationLoss()
    loss.prepare(logits.numpy())
    leaf, other = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    total = loss(leaf, torch.full((images,), -1))
    assert float(total.detach()) / images == pytest.approx(-information(logits.numpy()), abs=1e-9)
    chances = other.softmax(-1)
    whole = torch.special.entr(chances.mean(0)).sum() - torch.special.entr(chances).sum(-1).mean()
    torch.testing.assert_close(
        torch.autograd.grad(total, leaf)[0] / images, -torch.autograd.grad(whole, other)[0], atol=1e-9, rtol=1e-6
    )


def test_the_guard_refuses_other_predictions_and_says_so_once(caplog):
    classes = np.arange(40) % 4
    guard = Guard(classes)
    guard.begin()
    assert guard(score(np.eye(4)[classes]))
    changed = classes.copy()
    changed[:5] = (changed[:5] + 1) % 4
    assert not guard(score(np.eye(4)[changed]))
    assert not guard(score(np.full((40, 4), np.nan)))
    guard.tell(0, 3)
    assert not caplog.records
    guard.begin()
    assert not guard(score(np.eye(4)[np.zeros(40, int)]))
    guard.tell(1, 1)
    [record] = caplog.records
    assert (
        "Generation 2: all 1 candidates were refused" in record.getMessage()
        and "25% of the images" in record.getMessage()
    )


def test_the_guard_refuses_a_loss_of_classes_though_most_predictions_agree():
    """Nine images of ten of one class: agreement alone would let a collapse pass."""
    classes = np.array([0] * 95 + [1, 2, 3, 4, 5])
    guard = Guard(classes)
    assert guard(score(np.eye(6)[classes]))
    assert not guard(score(np.eye(6)[np.zeros(100, int)])) and "variety" in guard.refused[0]
