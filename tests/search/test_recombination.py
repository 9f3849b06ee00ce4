import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smd_hf import SMDError
from smd_hf.scoring.scores import Cell, Score
from smd_hf.search.build import RECOMBINATIONS, make_recombination
from smd_hf.search.fitness import Fitness, ScoredChild, ranked
from smd_hf.search.mutation import Child
from smd_hf.search.recombination import Best, GreedySoup, TopKMean, TopKSum
from tests.plain import plain_arguments


def make_scored(fitness, eliminated=()):
    score = Score({0: Cell(np.array([True]), 0.0, True)})
    return [
        ScoredChild(Child(0, index, index, 1, 0.1, 0.1, 1, 0.1), score, value, index in eliminated)
        for index, value in enumerate(fitness)
    ]


def play(strategy, children, judge):
    """All candidates of all rounds, each judged by its children and coefficients."""
    rounds, seen = strategy.propose(children), []
    proposed = next(rounds, None)
    while proposed is not None:
        seen += proposed
        try:
            proposed = rounds.send([judge(dict_of(candidate)) for candidate in proposed])
        except StopIteration:
            proposed = None
    return [dict_of(candidate) for candidate in seen]


def dict_of(candidate):
    return {child.index: coefficient for child, coefficient in candidate.parts}


def test_children_are_ranked_by_fitness_without_the_failed_and_the_eliminated():
    children = make_scored([0.1, float("-inf"), 0.3, 0.3, 0.9], eliminated={4})
    assert [scored.child.index for scored in ranked(children)] == [2, 3, 0]


def test_best_proposes_the_fittest_and_top_k_mean_their_mean():
    children = make_scored([0.1, 0.4, 0.3, 0.2])
    assert play(Best(2), children, lambda parts: 0) == [{1: 1.0}, {2: 1.0}]
    assert play(TopKMean(2), children, lambda parts: 0) == [{1: 0.5, 2: 0.5}]


def test_greedy_soup_keeps_what_does_not_harm():
    children = make_scored([0.1, 0.4, 0.3, 0.2])
    # Child 2 harms every soup that it is in.
    seen = play(GreedySoup(4), children, lambda parts: -1.0 if 2 in parts else float(len(parts)))
    third = pytest.approx(1 / 3)
    assert seen == [{1: 1.0}, {1: 0.5, 2: 0.5}, {1: 0.5, 3: 0.5}, {0: third, 1: third, 3: third}]


def test_sums_of_more_and_more_of_the_fittest_are_proposed():
    children = make_scored([0.1, 0.4, 0.3, 0.2, 0.5, 0.6])
    seen = play(TopKSum(5), children, lambda parts: 0)
    assert seen == [dict.fromkeys(chosen, 1.0) for chosen in ([5], [4, 5], [1, 2, 4, 5], [1, 2, 3, 4, 5])]


@given(st.integers(1, 70), st.integers(1, 70))
def test_no_more_sums_are_proposed_than_are_foreseen(top_k, count):
    seen = play(TopKSum(top_k), make_scored(np.arange(count) / 10), lambda parts: 0)
    assert len(seen) == TopKSum(top_k).most_candidates(count)
    assert [len(parts) for parts in seen] == sorted({len(parts) for parts in seen})
    assert len(seen[0]) == 1 and len(seen[-1]) == min(top_k, count)


@pytest.mark.parametrize("strategy", [Best(3), TopKMean(3), TopKSum(3), GreedySoup(3)])
def test_nothing_is_proposed_where_every_child_failed(strategy):
    assert play(strategy, make_scored([float("-inf")] * 3), lambda parts: 0) == []


def test_every_strategy_goes_by_its_name(tmp_path):
    for name in RECOMBINATIONS:
        args = plain_arguments(str(tmp_path), recombination=name, use_cpu=True)
        assert make_recombination(args, 4).name == name
    args = plain_arguments(
        output_dir=str(tmp_path),
        recombination="gauss_newton",
        loss="expected_cost",
        cost_matrix="[[0",
        use_cpu=True,
    )
    with pytest.raises(SMDError, match="cost_matrix is not a matrix in JSON"):
        make_recombination(args, 2)


def make_score(nll, correct=(True, False)):
    return Score({0: Cell(np.array(correct), nll * len(correct), np.isfinite(nll))})


def test_fitness_is_better_when_greater():
    labels = np.array([0, 1])
    assert Fitness("nll")(make_score(0.5), labels) == -0.5
    assert Fitness("accuracy")(make_score(0.5), labels) == 0.5
    assert Fitness("nll")(make_score(float("nan")), labels) == float("-inf")
    assert Fitness("nll").raw(-0.5) == 0.5


@pytest.mark.parametrize(
    ("name", "greater", "expected"),
    [("f1", None, 2.0), ("eval_loss", None, -2.0), ("f1", False, -2.0), ("cost", True, 2.0)],
)
def test_the_direction_of_a_metric_is_known_or_given(name, greater, expected):
    fitness = Fitness(name, lambda prediction: {name.removeprefix("eval_"): np.float32(2.0)}, greater)
    score = make_score(0.5)
    score.cells[0] = Cell(np.array([True, False]), 1.0, True, np.zeros((2, 2), np.float32))
    assert fitness(score, np.array([0, 1])) == expected


def test_a_metric_that_is_no_number_is_an_error():
    fitness = Fitness("f1", lambda prediction: {"f1": [1, 2]})
    score = Score({0: Cell(np.array([True]), 0.1, True, np.zeros((1, 2), np.float32))})
    with pytest.raises(SMDError, match="list for 'f1'"):
        fitness(score, np.array([0]))
