import csv
import json
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from transformers import Trainer, TrainingArguments, default_data_collator

import smd_hf
from smd_hf import EvolutionCallback, EvolutionTrainer, SMDError
from smd_hf.metrics.classification import named_metrics
from smd_hf.metrics.statistics import Scores, calibration_error
from smd_hf.models.checkpoints import weights_hash
from smd_hf.reports.cards.model_card import render_card
from smd_hf.scoring.changes import applied, commit
from smd_hf.scoring.evaluator import Evaluator
from smd_hf.scoring.scores import Cell, Score
from smd_hf.search.mutation import Mutation
from smd_hf.search.parameter_space import parameter_space
from smd_hf.search.pareto.coordinates import CoordinateCounts
from smd_hf.search.pareto.objectives import Objectives, distances_to_ideal, fittest_of, front_of
from smd_hf.search.pareto.pareto_evolution import candidates_of, nondominated
from smd_hf.search.subspaces import make_decomposition
from tests.plain import plain_arguments
from tests.records import rebuild_child
from tests.tiny import tiny_model, tiny_pixels

# Few different values, so that some are equal; and some that are not finite.
VALUES = arrays.arrays(
    np.float64,
    st.tuples(st.integers(1, 12), st.integers(2, 4)),
    elements=st.sampled_from([-2.0, -0.5, 0.0, 0.25, 1.0, 3.0, -np.inf]),
)


def dominates(one, other):
    return (one >= other).all() and (one > other).any()


@given(VALUES)
def test_the_front_is_what_nothing_dominates_each_value_once(values):
    finite = [number for number, row in enumerate(values) if np.isfinite(row).all()]
    expected = [
        number
        for number in finite
        if not any(dominates(values[other], values[number]) for other in finite)
        and not any((values[other] == values[number]).all() for other in finite if other < number)
    ]
    assert front_of(values) == expected


@given(VALUES, st.integers(1, 6))
def test_the_fittest_are_never_dominated_by_one_that_is_left_out(values, count):
    chosen = fittest_of(values, count)
    finite = [number for number, row in enumerate(values) if np.isfinite(row).all()]
    assert len(chosen) == len(set(chosen)) == min(count, len(finite)) and set(chosen) <= set(finite)
    left = set(finite) - set(chosen)
    assert not any(dominates(values[other], values[number]) for other in left for number in chosen)


def test_of_one_rank_the_extremes_and_the_most_solitary_come_first():
    values = np.array([[0.0, 10.0], [1.0, 9.0], [2.0, 8.5], [6.0, 5.0], [10.0, 0.0], [0.0, 0.0]])
    assert fittest_of(values, 6) == [0, 4, 3, 2, 1, 5]


@given(VALUES)
def test_distances_are_of_the_scaled_front(values):
    front = values[front_of(values)]
    if not len(front):
        return
    distances = distances_to_ideal(front)
    assert (distances >= 0).all() and (distances <= np.sqrt(front.shape[1]) + 1e-12).all()
    # The units of an objective have no effect.
    assert np.allclose(distances_to_ideal(front * np.array([1000.0] + [1.0] * (front.shape[1] - 1)) + 5), distances)


def test_the_compromise_is_nearest_to_the_best_of_each():
    values = np.array([[0.0, 1.0, 7.0], [0.8, 0.8, 7.0], [1.0, 0.0, 7.0]])
    assert distances_to_ideal(values) == pytest.approx([1, np.hypot(0.2, 0.2), 1])


def test_objectives_have_directions_and_come_back_from_their_records():
    args = plain_arguments("unused", objectives=["error", "accuracy"], use_cpu=True)
    names = ["eval_error", "accuracy", "mutated_fraction", "zero_fraction"]
    objectives = Objectives(names, named_metrics(args))
    assert objectives.greater_is_better == [False, True, False, True] and objectives.needs_logits
    values = [-0.25, 0.75, -0.5, 0.125]
    raw = objectives.raw(values)
    assert raw == {"error": 0.25, "accuracy": 0.75, "mutated_fraction": 0.5, "zero_fraction": 0.125}
    assert objectives.signed(json.loads(json.dumps(raw))) == values
    assert objectives.raw([-np.inf, 0, 0, 0])["error"] is None
    assert objectives.signed(objectives.raw([-np.inf, 0, 0, 0]))[0] == -np.inf


def test_candidates_of_records_have_an_order_of_their_own_and_models_are_counted_once():
    """A record that was read from a file has its names in another order."""
    objectives = Objectives(["nll", "accuracy"])
    children = [{"index": index} for index in range(3)]
    one, two = {"nll": 1.0, "accuracy": 0.5}, {"nll": 2.0, "accuracy": 0.5}
    records = [
        {"generation": 0, "children": children, "chosen": "child 2"}
        | {"objectives": {"selection": {"child 2": one, "parent": two, "child 0": one}}},
        {"generation": 1, "children": children, "chosen": "parent"}
        | {"objectives": {"selection": {"child 1": two, "parent": one}}},
    ]
    found, parent = candidates_of(records, objectives)
    assert list(found) == [None, (0, 0), (0, 2), (1, 1)] and parent == (0, 2)
    assert found[None] == [-2.0, 0.5] and found[(0, 2)] == [-1.0, 0.5]
    assert nondominated(found) == {(0, 0): 0.0}


@pytest.mark.parametrize("prune", [False, True])
@pytest.mark.parametrize("name", ["partition", "random", "blocks", "dense"])
def test_mutated_and_zero_coordinates_are_counted_exactly(name, prune):
    # In bfloat16 some noise is lost in rounding, and that is no mutation.
    model = tiny_model("resnet").to(torch.bfloat16)
    mutation = Mutation(model, make_decomposition(name, parameter_space(model), 4), prune=prune)
    first = {name: each.detach().clone() for name, each in mutation.parameters.items()}
    counts = CoordinateCounts(mutation, first)
    assert counts.shares(None)["mutated_fraction"] == 0
    for generation in range(2):
        children = mutation.children(generation, 0.004)
        for child in (None, *children):
            with applied(mutation.parameters, [] if child is None else mutation.changes(child)):
                weights = list(mutation.parameters.items())
                mutated = sum(int((each != first[name]).sum()) for name, each in weights)
                zeros = sum(int((each == 0).sum()) for _, each in weights)
            total = mutation.space.total
            shares = counts.shares(child)
            assert shares == {"mutated_fraction": mutated / total, "zero_fraction": zeros / total}
            assert counts.shares(child) == shares
        commit(mutation.parameters, mutation.changes(children[1]))
        mutation.parent_changed()
        counts.parent_changed()


@pytest.fixture(scope="module")
def rows():
    return [{"pixel_values": pixels, "labels": number % 4} for number, pixels in enumerate(tiny_pixels(64))]


def make_trainer(folder, rows, objectives, kind="vit", **kwargs):
    arguments = dict(
        population_size=6, num_generations=3, sigma=0.002, decomposition="blocks", use_cpu=True, disable_tqdm=True
    )
    if kwargs.get("mutation") == "prune":
        arguments["sigma"] = None
    return EvolutionTrainer(
        tiny_model(kind),
        plain_arguments(str(folder), objectives=objectives, **arguments | kwargs),
        data_collator=default_data_collator,
        train_dataset=rows[:44],
        eval_dataset=rows[44:],
    )


OBJECTIVES = ["nll", "calibration_error", "mutated_fraction"]


@pytest.fixture(scope="module")
def run(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    extra = dict(ensemble_size=3, ensemble_selection="front", save_strategy="steps", save_steps=1)
    trainer = make_trainer(folder, rows, OBJECTIVES, **extra)
    trainer.train()
    return trainer, folder


def signed(values):
    return np.array([-values["nll"], -values["calibration_error"], -values["mutated_fraction"]])


def test_no_parent_is_ever_replaced_by_a_candidate_that_another_dominates(run):
    trainer, _ = run
    records = trainer.run.generations
    seen = []
    for record in records:
        values = {name: signed(each) for name, each in record["objectives"]["selection"].items()}
        seen += values.values()
        assert set(values) == set(record["selection"]) and "parent" in values
        chosen = values[record["chosen"]]
        assert not any(dominates(other, chosen) for other in seen)
        undominated = {name for name, each in values.items() if not any(dominates(other, each) for other in seen)}
        assert record["chosen"] in record["objectives"]["front"] and set(record["objectives"]["front"]) <= undominated
        # No child that was left out beats one that was tried, on the fitness images.
        children = list(map(signed, record["objectives"]["children"]))
        tried = {int(name.removeprefix("child ")) for name in values if name != "parent"}
        assert len(tried) == 4
        assert not any(
            dominates(children[left], children[number]) for left in set(range(6)) - tried for number in tried
        )
    assert any(record["chosen"] != "parent" for record in records)


def test_the_saved_front_is_what_its_models_say(run, rows):
    trainer, folder = run
    table = json.loads((folder / "front.json").read_text())
    assert table == trainer.report["front"] == trainer.front.table
    assert table["objectives"] == [{"name": name, "better": "lower"} for name in OBJECTIVES]
    assert table["images"] == {"selection": trainer.images.selection.num_images, "test": 20}
    members = table["members"]
    front = [signed(member["selection"]) for member in members if member["on_front"]]
    everyone = [signed(each["selection"]) for each in (*members, *table["others"])]
    assert len(front) >= 2
    assert not any(dominates(other, one) for one in front for other in everyone)
    assert all(any(dominates(one, signed(each["selection"])) for one in front) for each in table["others"])
    assert [member["generation"] for member in members].count(None) == 1
    [evolved] = [member for member in members if member["chosen"]]
    assert evolved["on_front"]

    # Every member, built again by hand from the records, has the values of the table on both splits.
    records = [json.loads(line) for line in (folder / "children.jsonl").read_text().splitlines()]
    for member in members:
        model = tiny_model("vit")
        before = {name: each.detach().clone() for name, each in model.named_parameters()}
        mutation = make_trainer(folder / "other", rows, OBJECTIVES).evolution.mutation.decomposition
        mutation = Mutation(model, mutation, seed=trainer.args.seed)
        if member["generation"] is not None:
            rebuild_child(mutation, records, member["generation"], member["child"])
        mutated = sum(int((each != before[name]).sum()) for name, each in model.named_parameters())
        for split, batches in (("selection", trainer.images.selection), ("test", trainer.images.test)):
            logits = Evaluator(model, torch.device("cpu")).logits(batches)
            assert member[split]["nll"] == pytest.approx(Scores.from_logits(logits, batches.labels).nll, abs=1e-6)
            assert member[split]["calibration_error"] == pytest.approx(
                calibration_error(logits, batches.labels), abs=1e-6
            )
            assert member[split]["mutated_fraction"] == mutated / mutation.space.total
        if member["chosen"]:
            assert weights_hash(model) == weights_hash(trainer.model)
            assert member["test"]["nll"] == pytest.approx(trainer.report["evolved"]["nll"], abs=1e-6)
    assert [row["generation"] for row in csv.DictReader((folder / "front.csv").open())] == [
        "" if member["generation"] is None else str(member["generation"]) for member in members
    ]
    assert (folder / "front.png").stat().st_size > 1000
    card = (folder / "README.md").read_text()
    # A card can be written again from the report as it was saved.
    assert str(render_card("child", folder, json.loads((folder / "gain_report.json").read_text()))) == card
    assert "## Front" in card and "`nll`, `calibration_error`, `mutated_fraction`" in card and "front.png" in card


def test_the_ensemble_holds_the_models_of_the_front_that_are_nearest_to_the_ideal(run):
    trainer, folder = run
    on_front = [member for member in trainer.front.table["members"] if member["on_front"]]
    distances = distances_to_ideal(np.array([signed(member["selection"]) for member in on_front]))
    members = trainer.report["ensemble_members"]["members"]
    assert len(members) == min(3, len(on_front)) and {member["votes"] for member in members} == {1}
    places = [(member["generation"], member["child"]) for member in members]
    chosen = [on_front.index(next(m for m in on_front if (m["generation"], m["child"]) == place)) for place in places]
    assert list(distances[chosen]) == sorted(distances)[: len(chosen)]
    ensemble = smd_hf.load(folder / "ensemble")
    batches = trainer.images.test
    with torch.inference_mode():
        member_logits = torch.cat(
            [ensemble(**batch.stored, output_members=True).member_logits for batch in batches]
        ).numpy()
    for number, place in enumerate(chosen):
        nll = Scores.from_logits(member_logits[:, number], batches.labels).nll
        assert nll == pytest.approx(on_front[place]["test"]["nll"], abs=1e-6)


def test_the_same_seed_gives_the_same_files_and_a_resumed_run_too(run, rows, tmp_path):
    _, folder = run
    again = make_trainer(tmp_path / "again", rows, OBJECTIVES, ensemble_size=3, ensemble_selection="front")
    again.train()
    resumed = make_trainer(tmp_path / "resumed", rows, OBJECTIVES, ensemble_size=3, ensemble_selection="front")
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    for name in ("model.safetensors", "front.json", "front.csv", "front.png", "ensemble/model.safetensors"):
        for other in ("again", "resumed"):
            assert (tmp_path / other / name).read_bytes() == (folder / name).read_bytes(), (other, name)


@pytest.mark.parametrize("against", ["zero_fraction", "mutated_fraction"])
def test_pruning_moves_towards_sparser_models_and_keeps_the_front(against, rows, tmp_path):
    trainer = make_trainer(
        tmp_path,
        rows,
        ["accuracy", against],
        kind="resnet",
        mutation="prune",
        decomposition="random",
        density=0.02,
        selection_fraction=0.3,
    )
    trainer.train()
    table = trainer.front.table
    better = {"zero_fraction": 1, "mutated_fraction": -1}[against]
    points = [
        (m["selection"]["accuracy"], better * m["selection"][against]) for m in table["members"] if m["on_front"]
    ]
    # Along a front of two objectives, what is better in one is worse in the other.
    points.sort()
    assert [each for _, each in points] == sorted((each for _, each in points), reverse=True)
    shares = trainer.report["zero_share"]
    if against == "zero_fraction":
        assert shares["after"] > shares["before"]
        [evolved] = [member for member in table["members"] if member["chosen"]]
        assert evolved["selection"]["zero_fraction"] == evolved["test"]["zero_fraction"] == shares["after"]


def test_equal_candidates_leave_the_parent_and_failed_ones_are_no_candidates(rows, tmp_path):
    # So little noise changes no prediction: every child equals the parent in both.
    objectives = ["accuracy", "balanced_accuracy"]
    trainer = make_trainer(tmp_path, rows, objectives, sigma=1e-9, num_generations=1)
    trainer.train()
    assert [record["chosen"] for record in trainer.run.generations] == ["parent"]
    assert [member["generation"] for member in trainer.front.table["members"]] == [None]
    broken = make_trainer(tmp_path, rows, ["nll", "mutated_fraction"], sigma=1e20, num_generations=1)
    broken.train()
    [record] = broken.run.generations
    assert None in [values["nll"] for values in record["objectives"]["children"]]
    assert all(values["nll"] is not None for values in record["objectives"]["selection"].values())


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({"objectives": ["nll"]}, "objectives are nll; expected two or more"),
        ({"objectives": ["nll", "eval_nll"]}, "each once"),
        ({"objectives": ["mutated_fraction", "zero_fraction"]}, "only measure weights"),
        ({"recombination": "top_k_mean"}, "recombination=top_k_mean does not fit objectives"),
        ({"racing": "halving"}, "racing=halving does not fit objectives"),
        ({"fitness": "accuracy"}, "fitness=accuracy does not fit objectives"),
        ({"elitism": False}, "elitism=False does not fit objectives"),
        ({"fitness_greater_is_better": True}, "fitness_greater_is_better=True does not fit objectives"),
        ({"selection_fraction": 0.0, "fitness_samples_per_generation": 10}, "Set aside a selection_fraction"),
        ({"objectives": None, "ensemble_size": 2, "ensemble_selection": "front"}, "and none are given"),
    ],
)
def test_what_does_not_go_together_is_refused(kwargs, expected, tmp_path):
    with pytest.raises(SMDError, match=expected):
        plain_arguments(str(tmp_path), **{"objectives": ["nll", "zero_fraction"], "use_cpu": True} | kwargs)


def test_an_unknown_objective_is_refused(rows, tmp_path):
    with pytest.raises(SMDError, match="fitness='wisdom' is not a built-in metric"):
        make_trainer(tmp_path, rows, ["nll", "wisdom"])


def test_the_callback_refuses_objectives(rows, tmp_path):
    args = plain_arguments(str(tmp_path), objectives=["nll", "accuracy"], use_cpu=True)
    trainer = Trainer(tiny_model("vit"), TrainingArguments(str(tmp_path), use_cpu=True), train_dataset=rows)
    with pytest.raises(SMDError, match=r"objectives, .* are for EvolutionTrainer"):
        EvolutionCallback(trainer, args, fitness_dataset=rows)


def test_without_pymoo_the_error_names_the_extra(monkeypatch, tmp_path):
    # What an import of a package that is not there meets.
    monkeypatch.setitem(sys.modules, "pymoo", None)
    plain_arguments(str(tmp_path), use_cpu=True)
    with pytest.raises(SMDError, match=r"pip install 'smd-hf\[pareto\]'"):
        plain_arguments(str(tmp_path), objectives=["nll", "accuracy"], use_cpu=True)


def test_a_score_that_is_not_finite_outside_loses():
    inside = tiny_score(np.zeros((3, 2), dtype=np.float32))
    inside.ood = tiny_score(np.array([[0.0, np.nan]], dtype=np.float32))
    objectives = Objectives(["nll", "accuracy", "ood_auroc"])
    assert objectives(inside, np.zeros(3, dtype=np.int64), {}) == [-np.inf] * 3
    inside.ood = tiny_score(np.zeros((1, 2), dtype=np.float32))
    assert objectives(inside, np.zeros(3, dtype=np.int64), {}) == pytest.approx([-np.log(2), 1.0, 0.5])


def tiny_score(logits):
    labels = torch.zeros(len(logits), dtype=torch.int64)
    return Score({0: Cell.from_logits(torch.from_numpy(logits), labels, keep_logits=True)})
