"""Zero-shot image classification: candidates, and runs from the command line to a pipeline."""

import inspect
import json
from functools import partial

import pytest
import torch
from datasets import Value
from transformers import (
    AutoModel,
    CLIPImageProcessor,
    Trainer,
    TrainingArguments,
    ZeroShotImageClassificationPipeline,
    pipeline,
)

from smd_hf import EvolutionCallback, EvolutionTrainer, SMDError
from smd_hf.cli.main import main
from smd_hf.models.load import load_image_processor, load_model
from smd_hf.tasks.zero_shot import DEFAULT_TEMPLATE, check_candidates
from tests.tasks import runs

from .two_towers import NAMES, make, make_rows, save_two_towers

OPTIONS = {"recombination": "best", "per_device_eval_batch_size": 8}
arguments, evolve = partial(runs.arguments, **OPTIONS), partial(runs.evolve, **OPTIONS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_two_towers(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def data():
    return make_rows(18), make_rows(12, seed=1)


def test_the_template_is_that_of_the_pipeline():
    parameters = inspect.signature(ZeroShotImageClassificationPipeline.preprocess).parameters
    assert parameters["hypothesis_template"].default == DEFAULT_TEMPLATE


@pytest.mark.parametrize("options", [{}, {"recombination": "gauss_newton"}], ids=["best", "newton"])
def test_a_run_goes_from_the_trainer_to_a_pipeline(options, checkpoint, data, tmp_path):
    trainer = evolve(checkpoint, tmp_path, data, hypothesis_template="a {} photo", **options)
    report = json.loads((tmp_path / "gain_report.json").read_text())
    assert report["task"] == "zero-shot-image-classification" and "mcnemar" in report["difference"]
    assert report["zero_shot"] == {"candidate_labels": NAMES, "hypothesis_template": "a {} photo"}
    assert trainer.evaluate()["eval_accuracy"] == pytest.approx(report["evolved"]["accuracy"])
    card = (tmp_path / "README.md").read_text()
    assert "pipeline_tag: zero-shot-image-classification" in card and "candidate_labels=labels" in card
    before, after = (
        AutoModel.from_pretrained(checkpoint).state_dict(),
        AutoModel.from_pretrained(tmp_path).state_dict(),
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith("text_") for name in changed)
    if options:
        assert any(name.startswith("vision_model") for name in changed) and "visual_projection.weight" in changed
    # In the pipeline, the evolved model gives the probabilities that were measured.
    classify = pipeline("zero-shot-image-classification", str(tmp_path))
    logits = trainer.predict(data[1]).predictions
    for row in range(3):
        found = classify(data[1][row]["image"], candidate_labels=NAMES, hypothesis_template="a {} photo")
        scores = {each["label"]: each["score"] for each in found}
        expected = torch.from_numpy(logits[row]).softmax(-1)
        assert [scores[name] for name in NAMES] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.slow
def test_a_finished_run_is_resumed_to_the_same_bytes(checkpoint, data, tmp_path):
    evolve(checkpoint, tmp_path / "whole", data, recombination="gauss_newton", num_generations=2)
    evolve(checkpoint, tmp_path / "parts", data, recombination="gauss_newton")
    args = arguments(tmp_path / "parts", recombination="gauss_newton", num_generations=2)
    trainer = EvolutionTrainer(str(checkpoint), args, train_dataset=data[0], eval_dataset=data[1])
    trainer.train(resume_from_checkpoint=True)
    first, second = (tmp_path / name / "model.safetensors" for name in ("whole", "parts"))
    assert first.read_bytes() == second.read_bytes()


def test_other_candidates_are_another_run(checkpoint, data, tmp_path):
    evolve(checkpoint, tmp_path, data)
    args = arguments(tmp_path, num_generations=2, candidate_labels=["red", "green", "blue", "cat"])
    trainer = EvolutionTrainer(str(checkpoint), args, train_dataset=data[0], eval_dataset=data[1])
    with pytest.raises(SMDError, match="candidate_labels was null and is"):
        trainer.train(resume_from_checkpoint=True)


def test_labels_are_matched_to_candidates_by_name(checkpoint, data, tmp_path):
    candidates = ["cat", "blue", "green", "red"]
    args = arguments(tmp_path, candidate_labels=candidates)
    trainer = EvolutionTrainer(str(checkpoint), args, train_dataset=data[0])
    assert trainer.data_collator([data[0][row] for row in range(3)])["labels"].tolist() == [3, 2, 1]
    assert trainer.predict(data[1]).predictions.shape == (12, 4)


def test_the_command_line_evolves_and_evaluates(checkpoint, data, tmp_path, capsys):
    argv, given, out = runs.command(checkpoint, data, tmp_path)
    candidates = ["--candidate_labels", "red", "green", "blue", "cat", "--hypothesis_template", "a {}"]
    assert main([*argv, *candidates, "--recombination", "best"]) == 0
    printed = capsys.readouterr().out
    assert "accuracy (%)" in printed and "AutoModelForZeroShotImageClassification.from_pretrained" in printed
    compared = ["--model_name_or_path", out, "--against", str(checkpoint), *candidates]
    assert main(["evaluate", *compared, *given]) == 0
    report = json.loads((tmp_path / "out" / "gain_report.json").read_text())
    printed = capsys.readouterr().out
    assert "exact McNemar" in printed and f"{100 * report['evolved']['accuracy']:.2f}" in printed


@pytest.mark.parametrize(
    "labels, template, says",
    [
        (["cat"], "{}", "candidate_labels has 1 label; expected at least two"),
        (["cat", "dog", "cat"], "{}", "candidate_labels names 'cat' twice"),
        (["cat", " "], "{}", "candidate_labels holds ' '; expected texts that are not empty"),
        (["cat", "dog"], "a photo", "hypothesis_template is 'a photo'; expected a text with {} where the label goes"),
        (["cat", "dog"], "a {photo}", "hypothesis_template is 'a {photo}'"),
    ],
)
def test_candidates_that_cannot_be_told_apart_are_refused(labels, template, says):
    with pytest.raises(SMDError) as error:
        check_candidates(labels, template)
    assert says in str(error.value)


@pytest.mark.parametrize(
    "options, says",
    [
        ({"save_children": 2}, "save_children is for classifiers with a head, and the task is zero-shot"),
        ({"label_columns": NAMES}, "label_columns is for multi-label classification"),
        ({"candidate_labels": ["red", "green"]}, "1 of the data set's 3 labels are not among the model's 2 classes"),
        ({"mutable_parameters": ["text_model.*"]}, "No mutable parameter is left"),
    ],
)
def test_what_does_not_fit_is_refused(options, says, checkpoint, data, tmp_path):
    with pytest.raises(SMDError) as error:
        evolve(checkpoint, tmp_path, data, **options)
    assert says in str(error.value)


def test_numbers_without_names_need_candidates(checkpoint, data, tmp_path):
    rows = data[0].cast_column("label", Value("int64"))
    with pytest.raises(SMDError, match="no candidate_labels, and the data set's labels are numbers without names"):
        EvolutionTrainer(str(checkpoint), arguments(tmp_path), train_dataset=rows)


def test_a_model_in_memory_needs_a_tokenizer(data, tmp_path):
    processor = CLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    with pytest.raises(SMDError, match="has no image_processor; a zero-shot model needs both"):
        EvolutionTrainer(make(), arguments(tmp_path), train_dataset=data[0], processing_class=processor)


def test_a_callback_evolves_among_the_candidates(checkpoint, data, tmp_path):
    model = load_model(checkpoint)
    processor = load_image_processor(checkpoint, model=model)
    evolution = arguments(tmp_path, candidate_labels=["red", "green", "blue"])
    trainer = Trainer(
        model, TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"), processing_class=processor
    )
    [generation] = EvolutionCallback(trainer, evolution, data[1]).evolve()
    assert generation.parent.num_images > 0 and model.config.id2label == {0: "red", 1: "green", 2: "blue"}
