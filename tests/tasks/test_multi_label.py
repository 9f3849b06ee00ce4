"""Multi-label classification: metrics, lists and columns of labels, and runs from the command line to a pipeline."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, log_loss
from transformers import pipeline

from smd_hf import EvolutionTrainer, SMDError
from smd_hf.cli.main import main
from smd_hf.metrics.multi_label import MultiLabelMeasure, average_precisions, label_sums
from smd_hf.metrics.resampling import differences, values
from smd_hf.models.load import load_image_processor
from tests.plain import PLAIN_OPTIONS, plain_arguments
from tests.tasks import runs
from tests.tasks.tagged import NAMES, make_rows, save_tiny

evolve = partial(runs.evolve, recombination="best", fitness="f1_macro", per_device_eval_batch_size=8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("multi"))


@pytest.fixture(scope="module")
def data():
    return make_rows(20), make_rows(12, seed=1)


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_metrics_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    # Rounded, so that some scores tie; the first image has all labels, so that none is absent.
    logits = torch.from_numpy(np.round(rng.normal(size=(15, 4)), 1).astype(np.float32))
    targets = torch.from_numpy((rng.random((15, 4)) < 0.3).astype(np.float32))
    targets[0] = 1
    found = values(MultiLabelMeasure(label_sums(logits, targets), logits.numpy()), 15)
    predicted = (logits > 0).numpy()
    assert found["f1_macro"] == pytest.approx(f1_score(targets, predicted, average="macro", zero_division=0))
    assert found["f1_micro"] == pytest.approx(f1_score(targets, predicted, average="micro"))
    assert found["mean_average_precision"] == pytest.approx(average_precision_score(targets, logits))
    shares = [log_loss(targets[:, label], logits[:, label].sigmoid().double(), labels=[0, 1]) for label in range(4)]
    assert found["loss"] == pytest.approx(np.mean(shares), rel=1e-5)


@given(st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_average_precision_counts_images_as_often_as_they_are_drawn(seed):
    rng = np.random.default_rng(seed)
    scores, targets = np.round(rng.normal(size=(20, 2)), 1), rng.integers(0, 2, (20, 2)).astype(float)
    targets[0] = 1
    weights = rng.multinomial(20, np.full(20, 1 / 20), size=4).astype(float)
    weights[:, 0] += 1
    expected = [
        [average_precision_score(targets[:, label], scores[:, label], sample_weight=row) for label in range(2)]
        for row in weights
    ]
    assert average_precisions(scores, targets, weights) == pytest.approx(np.array(expected))


def test_a_label_that_no_image_has_does_not_count():
    logits = np.array([[1.0, -1.0], [-1.0, -1.0]])
    sums = label_sums(torch.from_numpy(logits), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    found = values(MultiLabelMeasure(sums, logits), 2)
    assert (found["f1_macro"], found["mean_average_precision"]) == (1.0, 1.0)


def test_equal_models_differ_by_nothing():
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(30, 3)))
    measure = MultiLabelMeasure(label_sums(logits, (logits > 0.3).float()), logits.numpy())
    found = differences(measure, measure, 30)
    assert all(entry == {"estimate": 0.0, "interval": [0.0, 0.0]} for entry in found.values())


@pytest.mark.parametrize(
    "options",
    [{}, {"fitness": "mean_average_precision"}, {"recombination": "gauss_newton", "fitness": "nll"}],
    ids=["f1", "map", "newton"],
)
def test_a_run_goes_from_the_trainer_to_a_pipeline(options, checkpoint, data, tmp_path):
    trainer = evolve(checkpoint, tmp_path, data, **options)
    report = json.loads((tmp_path / "gain_report.json").read_text())
    assert {"mean_average_precision", "f1_macro", "f1_micro", "loss"} == report["difference"].keys()
    assert trainer.evaluate()["eval_f1_micro"] == pytest.approx(report["evolved"]["f1_micro"])
    card = (tmp_path / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card and "mean average precision (%)" in card
    assert 'pipeline("image-classification"' in card
    image = data[1][0]["image"]
    found = {each["label"]: each["score"] for each in pipeline("image-classification", str(tmp_path))(image)}
    trainer.model.eval()
    with torch.no_grad():
        logits = trainer.model(**load_image_processor(tmp_path)(image, return_tensors="pt")).logits[0]
    assert [found[name] for name in NAMES] == pytest.approx(logits.sigmoid().tolist(), abs=1e-6)
    if options.get("recombination") == "gauss_newton":
        chosen = [record["chosen"] for record in trainer.run.generations]
        assert len(chosen) == 1 and report["evolved"]["loss"] < report["parent"]["loss"]


@pytest.mark.parametrize(
    "form",
    [{"label_column_name": "labels"}, {"label_column_name": "numbers"}, {"label_columns": NAMES[::-1]}],
    ids=["names", "numbers", "columns"],
)
def test_labels_in_any_form_are_the_same(form, checkpoint, data, tmp_path):
    args = plain_arguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, **form)
    trainer = EvolutionTrainer(str(checkpoint), args, train_dataset=data[0])
    targets = trainer.data_collator([data[0][row] for row in range(20)])["labels"]
    assert targets.dtype == torch.float32
    assert torch.equal(targets, torch.tensor([[row[name] for name in NAMES] for row in data[0]]).float())


def test_columns_are_taken_in_order_where_the_model_has_no_names(data, tmp_path):
    folder = save_tiny(tmp_path / "model", [f"LABEL_{place}" for place in range(3)])
    args = plain_arguments(str(tmp_path / "out"), use_cpu=True, report_to="none", label_columns=NAMES)
    trainer = EvolutionTrainer(str(folder), args, train_dataset=data[0])
    targets = trainer.data_collator([data[0][0]])["labels"]
    assert targets[0].tolist() == [data[0][0][name] for name in NAMES]


@pytest.mark.parametrize(
    "value, says",
    [
        (
            ["red", "rad"],
            "It has the label 'rad', which is none of the model's 3 labels (red, green, blue). Did you mean 'red'?",
        ),
        ("red", "Its labels are 'red'; expected a list of labels"),
        (None, "Its labels are None; expected a list of labels"),
        ([0, "red"], "which mixes or holds int, str; expected a list of names"),
        ([3], "It has the label 3; there are 3 labels, 0 to 2."),
    ],
)
def test_bad_labels_are_refused_before_scoring_or_skipped(value, says, checkpoint, data, tmp_path):
    rows = [{"image": row["image"], "labels": row["labels"]} for row in data[0]]
    rows[5]["labels"] = value
    with pytest.raises(SMDError, match="At index 5") as error:
        evolve(checkpoint, tmp_path / "refused", (rows, None))
    assert says in str(error.value)
    args = plain_arguments(str(tmp_path), use_cpu=True, report_to="none", on_bad_images="skip", disable_tqdm=True)
    assert len(EvolutionTrainer(str(checkpoint), args, train_dataset=rows).images.train_dataset) == 19


@pytest.mark.parametrize("runtime", ["eager", pytest.param("openvino", marks=pytest.mark.slow)])
def test_the_head_is_fitted_before_and_after_the_generations(runtime, checkpoint, data, tmp_path):
    options = {
        "warm_start": True,
        "refit_head": True,
        "recombination": "gauss_newton",
        "mutable_parameters": ["norms"],
    }
    trainer = evolve(checkpoint, tmp_path, data, fitness="nll", runtime=runtime, **options)
    report, steps = trainer.report, trainer.report["steps"]
    kinds = {name.partition(",")[0] for name in steps["baselines"]}
    heads = {"temperature", "class prior", "class prior and temperature", "head"}
    assert kinds == {"parent", "statistics re-estimated"} | heads
    tested = [name for name, entry in steps["baselines"].items() if name.startswith("head") and "test" in entry]
    assert tested and steps["baselines"][tested[0]]["test"].keys() == report["parent"].keys()
    last = trainer.result.refit_head
    assert last.chosen.startswith("head") and last.fitness[last.chosen] > last.fitness["parent"]
    assert steps["refit_head"]["test"] == report["evolved"]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(report["evolved"]["loss"], rel=1e-4)
    assert (
        "| step | mean average precision (%) | binary cross-entropy (nats) |" in (tmp_path / "README.md").read_text()
    )


def test_columns_hold_zeros_and_ones(checkpoint, data, tmp_path):
    bad = data[0].map(lambda row, place: {"green": 2 if place == 3 else row["green"]}, with_indices=True)
    with pytest.raises(SMDError, match="At index 3: Its column green holds 2; expected 1 if the image has this label"):
        evolve(checkpoint, tmp_path, (bad, None), label_columns=NAMES)


@pytest.mark.parametrize(
    "options, says",
    [
        ({"label_columns": ["red", "grin"]}, "no label column 'grin'"),
        ({"label_columns": ["red", "red"]}, "label_columns names 'red' twice"),
        ({"label_columns": ["red", "numbers"]}, "label_columns: 'numbers' is none of the model's 3 labels"),
        ({"fitness": "accuracy"}, "no metric of multi-label classification. Choose one of mean_average_precision"),
        ({"class_weights": [1, 1, 1]}, "class_weights is for image classification with one label an image"),
    ],
)
def test_what_does_not_fit_is_refused(options, says, checkpoint, data, tmp_path):
    with pytest.raises(SMDError) as error:
        evolve(checkpoint, tmp_path, data, **options)
    assert says in str(error.value)


def test_columns_of_labels_are_for_multi_label_models(data, tmp_path):
    folder = save_tiny(tmp_path / "model", problem_type=None)
    with pytest.raises(SMDError, match="label_columns is for multi-label classification, and the model has one label"):
        evolve(folder, tmp_path / "out", data, label_columns=NAMES, fitness="nll")


def test_a_collator_makes_one_number_a_label(checkpoint, data, tmp_path):
    def collate(rows):
        return {"pixel_values": torch.zeros(len(rows), 3, 32, 32), "labels": torch.zeros(len(rows)).long()}

    args = plain_arguments(str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(SMDError, match=r"makes labels of type torch.int64 of shape \(1,\).* shape \(images, 3\)"):
        EvolutionTrainer(str(checkpoint), args, collate, train_dataset=data[0])


def test_a_finished_run_is_resumed_to_the_same_bytes(checkpoint, data, tmp_path):
    options = {"recombination": "gauss_newton", "fitness": "mean_average_precision"}
    evolve(checkpoint, tmp_path / "whole", data, **options, num_generations=2)
    evolve(checkpoint, tmp_path / "parts", data, **options)
    args = plain_arguments(
        str(tmp_path / "parts"), use_cpu=True, report_to="none", disable_tqdm=True, per_device_eval_batch_size=8,
        population_size=4, num_generations=2, **options,
    )  # fmt: skip
    trainer = EvolutionTrainer(str(checkpoint), args, train_dataset=data[0], eval_dataset=data[1])
    trainer.train(resume_from_checkpoint=True)
    first, second = (tmp_path / name / "model.safetensors" for name in ("whole", "parts"))
    assert first.read_bytes() == second.read_bytes()


def test_the_command_line_evolves_and_evaluates(checkpoint, data, tmp_path, capsys):
    columns = ["--label_columns", *NAMES]
    for split, rows in zip(("train", "test"), data):
        rows.remove_columns("labels").to_parquet(tmp_path / f"{split}.parquet")
    given = ["--validation_file", str(tmp_path / "test.parquet"), *columns]
    out = str(tmp_path / "out")
    run = [
        *PLAIN_OPTIONS,
        "--population_size",
        "4",
        "--num_generations",
        "1",
        "--fitness",
        "f1_macro",
        "--recombination",
        "best",
    ]
    named = ["--model_name_or_path", str(checkpoint), "--train_file", str(tmp_path / "train.parquet")]
    code = main(["evolve", *named, *given, "--output_dir", out, *run, "--report_to", "none", "--disable_tqdm"])
    assert code == 0 and "F1, mean over labels (%)" in capsys.readouterr().out
    assert main(["evaluate", "--model_name_or_path", out, "--against", str(checkpoint), *given]) == 0
    printed = capsys.readouterr().out
    assert "mean average precision (%)" in printed and "12 test images" in printed
