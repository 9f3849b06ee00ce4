import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics
from transformers import EvalPrediction, default_data_collator

from smd_hf import EvolutionTrainer, SMDError
from smd_hf.metrics.classification import METRICS, EvaluateMetric, builtin_metric, merged, named_metrics
from smd_hf.metrics.sklearn_metrics import sklearn_metric, sklearn_scorers
from smd_hf.search.fitness import Fitness
from tests.plain import plain_arguments
from tests.tiny import tiny_model, tiny_pixels

COSTS = "[[0, 1, 2, 3], [5, 0, 1, 1], [2, 2, 0, 1], [9, 1, 1, 0]]"

SCRIPT = """
import datasets
import evaluate


class Hits(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int32"), "references": datasets.Value("int32")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references, bonus=0):
        return {"hits": sum(p == r for p, r in zip(predictions, references)) + bonus}
"""

SCORES_SCRIPT = (
    SCRIPT.replace(
        '"predictions": datasets.Value("int32")', '"prediction_scores": datasets.Sequence(datasets.Value("float"))'
    )
    .replace(
        "def _compute(self, predictions, references, bonus=0):", "def _compute(self, prediction_scores, references):"
    )
    .replace(
        '{"hits": sum(p == r for p, r in zip(predictions, references)) + bonus}',
        '{"total": sum(map(sum, prediction_scores))}',
    )
)


@pytest.fixture(scope="module")
def rows():
    return [{"pixel_values": pixels, "labels": number % 4} for number, pixels in enumerate(tiny_pixels(40))]


@pytest.fixture
def script(tmp_path):
    (tmp_path / "hits").mkdir()
    (tmp_path / "hits" / "hits.py").write_text(SCRIPT)
    return tmp_path / "hits"


def make_trainer(folder, rows, compute_metrics=None, **kwargs):
    arguments = dict(population_size=4, sigma=0.3, recombination="best", use_cpu=True, disable_tqdm=True)
    return EvolutionTrainer(
        tiny_model("resnet"),
        plain_arguments(str(folder), **arguments | kwargs),
        data_collator=default_data_collator,
        train_dataset=rows[:24],
        eval_dataset=rows[24:],
        compute_metrics=compute_metrics,
    )


@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(3, 9))
@settings(max_examples=40, deadline=None)
def test_the_values_are_those_of_scikit_learn(seed, count, classes):
    random = np.random.default_rng(seed)
    logits, labels = random.integers(-3, 4, (count, classes)).astype(np.float32), random.integers(0, classes, count)
    called = logits.argmax(-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn says so where a class does not appear
        expected = {
            "macro_f1": sklearn_metrics.f1_score(labels, called, average="macro", zero_division=0),
            "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(labels, called),
            "top_2_accuracy": sklearn_metrics.top_k_accuracy_score(labels, logits, k=2, labels=range(classes)),
        }
    for name, value in expected.items():
        assert builtin_metric(name)(logits, labels) == pytest.approx(value, abs=1e-12)


def test_the_expected_cost_is_what_the_calls_cost():
    logits = np.eye(4)[[1, 0, 0, 3]]
    metric = builtin_metric("expected_cost", COSTS)
    assert metric(logits, np.array([0, 0, 3, 3])) == (1 + 0 + 9 + 0) / 4
    with pytest.raises(SMDError, match="2 labels"):
        metric(np.eye(2), np.array([0, 1]))


@pytest.mark.parametrize(
    ("name", "greater"),
    [("macro_f1", True), ("balanced_accuracy", True), ("top_5_accuracy", True), ("calibration_error", False), ("expected_cost", False), ("nll", False), ("rmse", False), ("brier_score", False), ("neg_log_loss", True), ("neg_brier_score", True), ("d2_brier_score", True)],
)  # fmt: skip
def test_the_direction_is_known(name, greater):
    assert Fitness(name, lambda prediction: {}).greater_is_better is greater


@pytest.mark.parametrize(
    "name", ["macro_f1", "matthews_corrcoef", "top_2_accuracy", "calibration_error", "expected_cost"]
)
def test_a_built_in_metric_is_the_fitness_of_a_run(name, rows, tmp_path):
    trainer = make_trainer(tmp_path, rows, fitness=name, cost_matrix=COSTS, elitism=False)
    before = trainer.evaluate()
    assert {"eval_accuracy", "eval_nll", f"eval_{name}"} <= before.keys()
    trainer.train()
    [record] = trainer.run.generations
    sign = 1 if trainer.evolution.fitness.greater_is_better else -1
    assert record["chosen"] != "parent"
    # Of several children on the selection split, the best.
    assert record["selection"][record["chosen"]] == max(record["selection"].values())
    fitness = [child["fitness"] for child in record["children"]]
    assert len(set(fitness)) > 1 and (name == "matthews_corrcoef" or all(sign * value >= 0 for value in fitness))
    # The fitness is the metric itself: on all the fitness images, of the parent, as measured by hand.
    parent = make_trainer(tmp_path / "again", rows, fitness=name, cost_matrix=COSTS)
    logits, labels = parent.evaluator.logits(parent.images.fitness), parent.images.fitness.labels
    assert sign * record["parent"]["fitness"] == pytest.approx(
        (builtin_metric(name, COSTS) or sklearn_metric(name))(logits, labels)
    )


def test_the_users_own_value_comes_first(rows, tmp_path):
    trainer = make_trainer(tmp_path, rows, lambda prediction: {"macro_f1": 7.0}, fitness="macro_f1")
    metrics = trainer.evaluate()
    assert metrics["eval_macro_f1"] == 7.0 and "eval_accuracy" not in metrics
    score = trainer.evolution.fitness.compute_metrics(EvalPrediction(predictions=np.eye(4), label_ids=np.arange(4)))
    assert score == {"macro_f1": 7.0}
    other = make_trainer(tmp_path, rows, lambda prediction: {"mine": 7.0}, fitness="macro_f1")
    assert other.evaluate().keys() >= {"eval_macro_f1", "eval_mine"}


@pytest.mark.parametrize("form", ["folder", "file"])
def test_the_script_of_a_metric_is_the_fitness_of_a_run(form, script, rows, tmp_path):
    path = str(script if form == "folder" else script / "hits.py")
    trainer = make_trainer(tmp_path / "out", rows, metric_name_or_path=path, metric_kwargs='{"bonus": 100}')
    trainer.train()
    assert trainer.evolution.fitness.name == "hits" and trainer.report["arguments"]["fitness"] == "hits"
    [record] = trainer.run.generations
    for child in [record["parent"], *record["children"]]:
        assert child["fitness"] == 100 + round(child["accuracy"] * child["num_images"])
    assert trainer.evaluate()["eval_hits"] == 100 + round(trainer.report["evolved"]["accuracy"] * 16)


def test_a_fitness_that_is_chosen_stays(script, rows, tmp_path):
    trainer = make_trainer(tmp_path / "out", rows, metric_name_or_path=str(script), fitness="accuracy")
    assert trainer.evolution.fitness.name == "accuracy" and "eval_hits" in trainer.evaluate()


def test_a_metric_of_probabilities_gets_probabilities(tmp_path):
    (tmp_path / "total.py").write_text(SCORES_SCRIPT)
    metric = EvaluateMetric(str(tmp_path / "total.py"))
    result = metric(
        EvalPrediction(predictions=np.random.default_rng(0).normal(size=(6, 3)), label_ids=np.arange(6) % 3)
    )
    assert result["total"] == pytest.approx(6)


def test_what_cannot_be_loaded_says_what_to_do(script, rows, tmp_path):
    with pytest.raises(SMDError, match="Turn on trust_remote_code"):
        make_trainer(tmp_path, rows, metric_name_or_path="f1")
    with pytest.raises(
        SMDError, match=r"cannot be loaded .*downloads the script.*give its path.*built-in fitness: macro_f1"
    ):
        make_trainer(tmp_path, rows, metric_name_or_path="f1", model_init_kwargs={"trust_remote_code": True})
    (script / "hits.py").write_text("import no_such_package\n" + SCRIPT)
    with pytest.raises(SMDError, match="no_such_package"):
        EvaluateMetric(str(script))
    (script / "hits.py").write_text(SCRIPT)
    with pytest.raises(SMDError, match=r"rejects its inputs .*metric_kwargs"):
        make_trainer(tmp_path, rows, metric_name_or_path=str(script), metric_kwargs={"average": "macro"})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(fitness="f1"), r"'f1' of scikit-learn does not fit .*4 labels .*multiclass.*for example f1_macro"),
        (dict(fitness="f1_macr"), r"is not a built-in metric .* Did you mean 'f1_macro' .*metric_name_or_path"),
        (dict(fitness="r2"), "is not a built-in metric .*or a classification scorer"),
        (dict(fitness="adjusted_rand_score"), "or a classification scorer"),
        (dict(fitness="top_k_accuracy"), "needs a number"),
        (dict(fitness="expected_cost"), "needs a cost_matrix"),
        (dict(fitness="expected_cost", cost_matrix="[[0, 1]"), "is not a matrix in JSON"),
        (dict(fitness="expected_cost", cost_matrix="[[0, 1]]"), r"shape \(1, 2\)"),
        (dict(fitness="expected_cost", cost_matrix="[[0, 1], [1, 0]]"), "4 labels"),
        (dict(fitness="top_4_accuracy"), "always 1"),
        (dict(metric_name_or_path="x", metric_kwargs="[1]"), "metric_kwargs is list"),
    ],
)
def test_what_cannot_work_is_refused(kwargs, message, rows, tmp_path):
    with pytest.raises(SMDError, match=message):
        make_trainer(tmp_path, rows, **kwargs).train()


def test_every_name_in_the_help_is_a_metric():
    for name in METRICS:
        assert builtin_metric(name.replace("_k_", "_5_"), COSTS) is not None
    assert builtin_metric("f1") is None and merged(None, lambda p: {"a": 1})(None) == {"a": 1} and merged(None) is None


def test_the_scorers_of_scikit_learn_are_those_for_classes():
    scorers = sklearn_scorers().keys()
    assert scorers >= {
        "f1",
        "f1_macro",
        "matthews_corrcoef",
        "roc_auc_ovr",
        "neg_log_loss",
        "cohen_kappa_score",
        "recall",
    }
    assert not scorers & {
        "r2",
        "neg_mean_squared_error",
        "d2_absolute_error_score",
        "rand_score",
        "v_measure_score",
        "f1_samples",
    }
    # Each takes two classes. What scikit-learn calls a scorer is better when greater, whatever its name ends in.
    assert all(Fitness(name, lambda prediction: {}).greater_is_better for name in scorers)
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(50, 4)), np.arange(50) % 4
    assert all(isinstance(sklearn_metric(name)(logits[:, :2], labels % 2), float) for name in scorers)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = {
        "matthews_corrcoef": sklearn_metrics.matthews_corrcoef(labels, logits.argmax(-1)),
        "cohen_kappa_score": sklearn_metrics.cohen_kappa_score(labels, logits.argmax(-1)),
        "roc_auc_ovr": sklearn_metrics.roc_auc_score(labels, probabilities, multi_class="ovr"),
        "neg_log_loss": -sklearn_metrics.log_loss(labels, probabilities),
    }
    assert {name: sklearn_metric(name)(logits, labels) for name in expected} == pytest.approx(expected)
    assert sklearn_metric("f1")(logits[:, :2], labels % 2) == sklearn_metrics.f1_score(
        labels % 2, logits[:, :2].argmax(-1)
    )


@pytest.mark.parametrize("name", ["f1", "roc_auc", "eval_precision"])
def test_a_scorer_of_two_classes_is_refused_for_more_before_anything_is_scored(name, rows, tmp_path):
    with pytest.raises(SMDError, match=f"'{name.removeprefix('eval_')}' of scikit-learn does not fit.*f1_macro"):
        make_trainer(tmp_path, rows, fitness=name)
    make_trainer(tmp_path, rows, lambda prediction: {name: 1.0}, fitness=name)
    make_trainer(tmp_path, rows, fitness="f1_macro")


def test_the_users_own_key_is_not_looked_for_in_scikit_learn(rows, tmp_path):
    """`f1` of scikit-learn refuses four classes; the user's own takes them."""
    trainer = make_trainer(tmp_path, rows, lambda prediction: {"f1": 0.5}, fitness="f1")
    assert trainer.evaluate()["eval_f1"] == 0.5
    assert named_metrics(trainer.args, has_own=True) is None and named_metrics(trainer.args) is not None
