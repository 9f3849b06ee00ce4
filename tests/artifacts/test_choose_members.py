import numpy as np
import pytest

from smd_hf.artifacts.choose_members import choose_members
from smd_hf.metrics.statistics import nll


def make_candidates(count=6, images=80, classes=4, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, images)
    logits = generator.normal(size=(count, images, classes)).astype(np.float32)
    logits[:, np.arange(images), labels] += generator.uniform(0, 2, count)[:, None]
    return logits, labels


def mean_probability_nll(logits, labels, votes):
    probabilities = np.exp(logits - np.logaddexp.reduce(logits, -1, keepdims=True))
    mean = sum(weight * probabilities[member] for member, weight in votes) / sum(weight for _, weight in votes)
    return nll(np.log(mean), labels).mean()


def test_top_k_and_all_go_by_the_order_given():
    logits, labels = make_candidates()
    assert choose_members(logits, labels, 3, "top_k") == [(0, 1), (1, 1), (2, 1)]
    assert choose_members(logits, labels, 9, "top_k") == [(member, 1) for member in range(6)]
    assert choose_members(logits, labels, 1, "all") == [(member, 1) for member in range(6)]


def test_greedy_picks_are_each_the_best_there_is():
    logits, labels = make_candidates()
    picks: dict[int, int] = {}
    for size in range(1, 6):
        options = {
            member: mean_probability_nll(logits, labels, list({**picks, member: picks.get(member, 0) + 1}.items()))
            for member in range(6)
        }
        best = min(options, key=options.get)
        picks[best] = picks.get(best, 0) + 1
        assert dict(choose_members(logits, labels, size, "greedy")) == picks
    assert sum(picks.values()) == 5


def test_greedy_is_no_worse_than_its_best_member():
    logits, labels = make_candidates(seed=3)
    chosen = choose_members(logits, labels, 8, "greedy")
    best = min(mean_probability_nll(logits, labels, [(member, 1)]) for member in range(6))
    assert mean_probability_nll(logits, labels, chosen) <= best


@pytest.mark.parametrize("combination", ["mean_logits", "majority_vote"])
def test_a_useless_candidate_is_left_out_by_every_combination(combination):
    logits, labels = make_candidates(4)
    logits[2] = -logits[2] * 3
    chosen = dict(choose_members(logits, labels, 5, "greedy", combination))
    assert 2 not in chosen and sum(chosen.values()) == 5
