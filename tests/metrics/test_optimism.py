"""The winner's curse against simulation, closed forms, and children that are no better than their parent."""

import math

import numpy as np
import pytest

from smd_hf.errors import SMDError
from smd_hf.metrics.optimism import expected_maximum, expected_optimism
from smd_hf.metrics.statistics import mcnemar_exact


def null_answers(rng, images, children, base=0.8, flip=0.03):
    """A parent and children that are no better: each differs from the parent's answers on 3 % of images, in balance."""
    parent = rng.random(images) < base
    easy = rng.random((children, images)) < np.where(parent, flip / 2 / base, flip / 2 / (1 - base))
    return parent, parent ^ easy


def test_the_best_of_null_children_wins_at_most_5_percent_of_test_splits():
    rng = np.random.default_rng(9)
    wins, runs, apparent = 0, 400, []
    for _ in range(runs):
        parent, children = null_answers(rng, 600, 32)
        gains = children.mean(axis=1) - parent.mean()
        apparent.append(gains.max())
        parent, children = null_answers(rng, 1000, 1)  # the chosen child, on a test split that was not looked at
        only_parent, only_child, p_value = mcnemar_exact(parent, children[0])
        wins += p_value < 0.05 and only_child > only_parent
    assert wins / runs <= 0.05
    assert np.mean(apparent) > 0.01  # where it was chosen, the same child seems a percentage point better
    predicted = expected_optimism(32, 600, 0.8, discordance=0.03)
    assert np.mean(apparent) <= predicted * 1.02  # an upper bound,
    assert np.mean(apparent) >= predicted * 0.8  # and a close one


@pytest.mark.parametrize("k", [1, 2, 5, 64])
def test_expected_maximum_agrees_with_simulation(k):
    draws = np.random.default_rng(10).normal(size=(40_000, k)).max(axis=1)
    assert expected_maximum(k) == pytest.approx(draws.mean(), abs=4 * draws.std() / 200)
    floored = np.maximum(draws, 0)
    assert expected_maximum(k, floor=True) == pytest.approx(floored.mean(), abs=4 * floored.std() / 200)


def test_expected_maximum_agrees_with_closed_forms():
    assert expected_maximum(1) == pytest.approx(0, abs=1e-9)
    assert expected_maximum(2) == pytest.approx(1 / math.sqrt(math.pi))
    assert expected_maximum(3) == pytest.approx(1.5 / math.sqrt(math.pi))
    assert expected_maximum(1, floor=True) == pytest.approx(1 / math.sqrt(2 * math.pi))
    assert expected_maximum(10**6) == pytest.approx(4.863, abs=0.001)


def test_expected_optimism():
    assert expected_optimism(64, 2000, 0.8, discordance=0.03) == pytest.approx(0.009, abs=3e-4)
    assert expected_optimism(64, 2000, 0.8) == expected_optimism(64, 2000, 0.8, discordance=0.32)
    assert expected_optimism(64, 8000, 0.8) == pytest.approx(expected_optimism(64, 2000, 0.8) / 2)
    assert (
        expected_optimism(1, 100, 0.5, keeps_parent=True)
        > expected_optimism(1, 100, 0.5)
        == pytest.approx(0, abs=1e-9)
    )
    for bad in ((0, 10, 0.5), (2, 0, 0.5), (2, 10, 1.5)):
        with pytest.raises(SMDError):
            expected_optimism(*bad)
    with pytest.raises(SMDError, match="discordance"):
        expected_optimism(2, 10, 0.5, discordance=-0.1)
