"""Semantic segmentation: metrics, masks, and runs from the command line to a pipeline."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage
from sklearn.metrics import confusion_matrix
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments, pipeline

import smd_hf
from smd_hf import EvolutionCallback, EvolutionTrainer, SMDError
from smd_hf.cli.main import main
from smd_hf.data.batches import Batch, ImageBatches
from smd_hf.data.masks import MaskCollator
from smd_hf.hub.space.stage_space import page_task
from smd_hf.metrics.resampling import differences, values
from smd_hf.metrics.segmentation import SegmentationMeasure, pixel_sums
from smd_hf.models.load import load_image_processor, load_model
from smd_hf.reports.steps import step_title, steps_lines
from smd_hf.scoring.evaluator import Evaluator, Variant
from smd_hf.scoring.runtimes.choose import RuntimeChoice
from smd_hf.tasks.segmentation import PIXELS, SemanticSegmentation
from tests.plain import plain_arguments
from tests.tasks import runs
from tests.tasks.segmenter import CLASSES, make_rows, save_segmenter

evolve = partial(runs.evolve, recombination="best", fitness="mean_iou", per_device_eval_batch_size=4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_segmenter(tmp_path_factory.mktemp("segmenter"))


@pytest.fixture(scope="module")
def data():
    return make_rows(16), make_rows(10, seed=1)


@given(st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_metrics_are_those_of_the_confusion_matrix(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, CLASSES, 5, 7, generator=generator)
    labels = torch.randint(0, CLASSES + 1, (3, 10, 14), generator=generator)
    labels[labels == CLASSES] = 255
    sums = pixel_sums(logits, labels, 255)
    found = values(SegmentationMeasure(sums), 3)
    large = F.interpolate(logits, (10, 14), mode="bilinear", align_corners=False)
    known = labels != 255
    confusion = confusion_matrix(labels[known], large.argmax(1)[known], labels=range(CLASSES)).astype(float)
    hits = confusion.diagonal()
    ious = hits / (confusion.sum(0) + confusion.sum(1) - hits)
    assert found["mean_iou"] == pytest.approx(np.nanmean(ious))
    assert found["mean_accuracy"] == pytest.approx(np.nanmean(hits / confusion.sum(1)))
    assert found["overall_accuracy"] == pytest.approx(hits.sum() / confusion.sum())
    single = [float(F.cross_entropy(large[i : i + 1], labels[i : i + 1], ignore_index=255)) for i in range(3)]
    assert found["loss"] == pytest.approx(np.mean(single), rel=1e-5)


@pytest.mark.parametrize("fitness, balanced", [("nll", False), ("mean_iou", False), ("eval_mean_accuracy", True)])
def test_the_loss_of_a_step_counts_classes_as_the_fitness_does(fitness, balanced):
    task = SemanticSegmentation()
    task.classes = 3
    logits = torch.randn(2, 10, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0] * 8 + [1, 255], [2] * 10])
    single = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=255, reduction="none")
    first = (single[0, :8].mean() + single[0, 8]) / 2 if balanced else single[0, :9].mean()
    found = task.loss(SimpleNamespace(fitness=fitness, label_smoothing_factor=0.0))(logits, labels)
    assert found == pytest.approx(float(first + single[1].mean()), rel=1e-6)


def test_intervals_count_images_as_often_as_they_are_drawn():
    rng = np.random.default_rng(0)
    first = np.concatenate([rng.random((40, 1)), rng.integers(0, 50, (40, 9))], 1)
    better = first.copy()
    better[:, 1:4] += 5
    measure = SegmentationMeasure(first)
    weights = rng.multinomial(40, np.full(40, 1 / 40), size=3).astype(float)
    repeated = [values(SegmentationMeasure(np.repeat(first, row.astype(int), 0)), 40)["mean_iou"] for row in weights]
    assert measure(weights)["mean_iou"] == pytest.approx(repeated)
    found = differences(measure, SegmentationMeasure(better), 40)["mean_iou"]
    assert 0 < found["interval"][0] < found["estimate"] < found["interval"][1]
    assert differences(measure, measure, 40)["mean_iou"] == {"estimate": 0.0, "interval": [0.0, 0.0]}


def test_pixels_of_a_step_are_those_of_the_resized_prediction(checkpoint):
    task = SemanticSegmentation()
    task.configure(load_model(checkpoint), None)
    logits, labels = torch.randn(2, CLASSES, 8, 12), torch.randint(0, CLASSES, (2, 32, 48))
    batch = Batch(5, {}, labels)
    found = task.sampled(logits, batch)
    assert found.shape == (2, PIXELS, CLASSES)
    rows, columns = task._pixels(batch)
    large = F.interpolate(logits, (32, 48), mode="bilinear", align_corners=False)
    assert torch.allclose(found, large[:, :, rows, columns].transpose(1, 2), atol=1e-5)
    assert torch.equal(task.sampled_labels(batch), labels[:, rows, columns])


@pytest.mark.parametrize("options", [{}, {"recombination": "gauss_newton", "fitness": "nll"}], ids=["best", "newton"])
def test_a_run_goes_from_the_trainer_to_a_pipeline(options, checkpoint, data, tmp_path):
    trainer = evolve(checkpoint, tmp_path, data, **options)
    report = json.loads((tmp_path / "gain_report.json").read_text())
    assert report["task"] == "image-segmentation" and report["evolved"]["n_test"] == 10
    assert {"mean_iou", "loss"} <= report["difference"].keys() and "mean IoU" in report["verdict"]
    evaluated = trainer.evaluate()
    assert evaluated["eval_mean_iou"] == pytest.approx(report["evolved"]["mean_iou"])
    card = (tmp_path / "README.md").read_text()
    assert "pipeline_tag: image-segmentation" in card and "mean IoU (%)" in card and "McNemar" not in card
    image = data[1][0]["image"]
    found = {
        each["label"]: np.array(each["mask"]) > 0 for each in pipeline("image-segmentation", str(tmp_path))(image)
    }
    trainer.model.eval()
    with torch.no_grad():
        logits = trainer.model(**load_image_processor(tmp_path)(image, return_tensors="pt")).logits
    classes = F.interpolate(logits, image.size[::-1], mode="bilinear", align_corners=False)[0].argmax(0).numpy()
    names = trainer.model.config.id2label
    assert found.keys() == {names[each] for each in np.unique(classes)}
    assert all(np.array_equal(mask, classes == trainer.model.config.label2id[name]) for name, mask in found.items())


FITTED = {"warm_start": True, "refit_head": True, "recombination": "gauss_newton", "mutable_parameters": ["norms"]}


@pytest.mark.parametrize("runtime", ["eager", pytest.param("openvino", marks=pytest.mark.slow)])
def test_the_head_is_fitted_on_pixels_before_and_after_the_generations(runtime, checkpoint, data, tmp_path):
    trainer = evolve(checkpoint, tmp_path, data, runtime=runtime, elitism=False, **FITTED)
    report = json.loads((tmp_path / "gain_report.json").read_text())
    steps, found = report["steps"], trainer.result.warm_start
    assert steps["warm_start"] == found.chosen and not found.chosen.startswith("head")
    assert max(found.fitness.values()) > found.fitness["parent"] and any("balance" in name for name in found.fitness)
    # What a head brings by itself is measured on all pixels of the test images.
    alone = next(name for name, entry in steps["baselines"].items() if name.startswith("head") and "test" in entry)
    assert not any(
        "temperature" in name and "test" in entry and name != found.chosen
        for name, entry in steps["baselines"].items()
    )
    before = report["parent"] if steps["statistics"] == "parent" else steps["baselines"][steps["statistics"]]["test"]
    parent = {"n_test": 10, **values(SegmentationMeasure(found.test["parent"].sums), 10)}
    assert parent == pytest.approx(before, rel=1e-4)
    assert (
        steps["baselines"][alone]["test"]["mean_iou"]
        == values(SegmentationMeasure(found.test[alone].sums), 10)["mean_iou"]
    )
    # The last head is in the model that is saved, and what was measured is what it gets.
    last = steps["refit_head"]
    assert last["chosen"].startswith("head") and last["test"]["mean_iou"] == report["evolved"]["mean_iou"]
    weight = load_model(tmp_path).decode_head.classifier.weight
    torch.testing.assert_close(
        weight.flatten(1).double(), torch.from_numpy(trainer.result.refit_head.arrays["weight"]), rtol=1e-6, atol=1e-6
    )
    assert trainer.evaluate()["eval_mean_iou"] == pytest.approx(report["evolved"]["mean_iou"], abs=1e-3)
    lines = "\n".join(steps_lines(report))
    assert (
        "(mean IoU (%), pixel cross-entropy (nats))" in lines
        and step_title(alone, steps) in lines
        and "the head after them" in lines
    )
    card = (tmp_path / "README.md").read_text()
    assert (
        "| step | mean IoU (%) | pixel cross-entropy (nats) |" in card and "| after the last fit of the head" in card
    )


def test_a_model_without_such_a_head_says_so_and_evolves(checkpoint, data, tmp_path, caplog):
    model = load_model(checkpoint)
    model.decode_head.register_forward_hook(lambda layer, args, output: output.tanh())
    args = runs.arguments(tmp_path, fitness="mean_iou", **FITTED)
    trainer = EvolutionTrainer(
        model, args, train_dataset=data[0], eval_dataset=data[1], processing_class=load_image_processor(checkpoint)
    )
    trainer.train()
    assert "The head of SegformerForSemanticSegmentation cannot be fitted" in caplog.text
    # Its BatchNorm statistics are re-estimated all the same.
    assert "statistics" in trainer.report["steps"] and "warm_start" not in trainer.report["steps"]
    assert trainer.state.global_step == 1


@pytest.mark.parametrize("more", [pytest.param({}, id="children"), pytest.param(FITTED, id="head")])
@pytest.mark.slow  # that of detection is not
def test_a_stopped_run_goes_on_to_the_same_bytes(more, checkpoint, data, tmp_path):
    options = {"num_generations": 2, "recombination": "gauss_newton", **more}
    evolve(checkpoint, tmp_path / "whole", data, **options)

    folder = tmp_path / "stopped"
    options |= {"fitness": "mean_iou", "per_device_eval_batch_size": 4}
    trainer = runs.make_trainer(checkpoint, folder, data, **options)
    runs.stop_in_its_midst(trainer)
    again = runs.make_trainer(checkpoint, folder, data, **options)
    again.train(resume_from_checkpoint=True)
    first, second = (tmp_path / name / "model.safetensors" for name in ("whole", "stopped"))
    assert first.read_bytes() == second.read_bytes()


def test_the_command_line_evolves_and_evaluates(checkpoint, data, tmp_path, capsys):
    argv, given, out = runs.command(checkpoint, data, tmp_path)
    code = main([*argv, "--fitness", "mean_iou", "--recombination", "best", "--max_train_samples", "12"])
    printed = capsys.readouterr().out
    assert code == 0 and "mean IoU (%)" in printed and "AutoModelForSemanticSegmentation.from_pretrained" in printed
    assert main(["evaluate", "--model_name_or_path", out, "--against", str(checkpoint), *given]) == 0
    printed = capsys.readouterr().out
    assert "mean IoU (%)" in printed and "10 test images" in printed
    assert main(["inspect", out]) == 0 and "mean IoU (%)" in capsys.readouterr().out
    assert main(["compare", out, out]) == 0 and "mean IoU, parent (%)" in capsys.readouterr().out
    # The page shows it, by the pipeline of the run's task.
    assert page_task(Path(out)) == ("image-segmentation", {})


@pytest.mark.parametrize(
    "mask, says",
    [
        (np.zeros((10, 36), np.uint8), "Its mask has 36 x 10 pixels, and its image 36 x 24"),
        (np.full((24, 36), 7, np.uint8), "Its mask holds the value 7; the model has 3 classes, 0 to 2"),
        (np.zeros((24, 36, 3), np.uint8), "expected one channel of integers"),
        (None, "Its mask is missing"),
    ],
)
def test_a_bad_mask_is_refused_before_scoring_or_skipped(mask, says, checkpoint, data, tmp_path):
    rows = [dict(row) for row in data[0]]
    rows[5]["annotation"] = None if mask is None else PILImage.fromarray(mask)
    bad = Dataset.from_list(rows, features=data[0].features)
    with pytest.raises(SMDError, match="At index 5") as error:
        evolve(checkpoint, tmp_path / "refused", (bad, data[1]))
    assert says in str(error.value)
    if mask is None:
        trainer = evolve(checkpoint, tmp_path / "skipped", (bad, data[1]), on_bad_images="skip")
        assert trainer.report["data"]["left_out"]["train_dataset"] == 1


def test_reduced_labels_leave_out_the_background(checkpoint):
    processor = load_image_processor(checkpoint)
    processor.do_reduce_labels = True
    collator = MaskCollator(processor, "image", "annotation", classes=CLASSES)
    mask = PILImage.fromarray(np.repeat(np.arange(4, dtype=np.uint8)[:, None], 4, 1))
    row = {"image": PILImage.new("RGB", (4, 4)), "annotation": mask}
    assert collator.problem(row) is None
    assert collator([row])["labels"].unique().tolist() == [0, 1, 2, 255]


@pytest.mark.parametrize("name", ["compute_metrics", "objectives", "save_children", "cost_matrix", "fitness_sampling"])
def test_what_is_for_classification_is_refused(name, checkpoint, data, tmp_path):
    own = {"compute_metrics": lambda prediction: {"a": 1.0}} if name == "compute_metrics" else {}
    options = {"objectives": {"objectives": ["nll", "accuracy"]}, "save_children": {"save_children": 2}}
    options["cost_matrix"] = {"cost_matrix": "[[0, 1], [1, 0]]"}
    options["fitness_sampling"] = {"fitness_sampling": "importance", "fitness_samples_per_generation": 8}
    args = plain_arguments(str(tmp_path), use_cpu=True, report_to="none", **options.get(name, {}))
    with pytest.raises(SMDError, match=f"{name} is for image classification, and the task is image-segmentation"):
        EvolutionTrainer(str(checkpoint), args, train_dataset=data[0], eval_dataset=data[1], **own)


def test_a_wrong_fitness_names_those_there_are(checkpoint, data, tmp_path):
    with pytest.raises(
        SMDError, match=r"no metric of image-segmentation\. Choose one of mean_iou, .*Did you mean 'mean_iou'"
    ):
        evolve(checkpoint, tmp_path, data, fitness="mean_iuo")


def test_a_checkpoint_of_another_task_is_refused(checkpoint, data, tmp_path):
    args = plain_arguments(str(tmp_path), use_cpu=True, report_to="none", task="image-classification")
    with pytest.raises(SMDError, match=r"for semantic segmentation .* \(--task image-segmentation\)"):
        EvolutionTrainer(str(checkpoint), args, train_dataset=data[0], eval_dataset=data[1])


def test_a_trainer_of_segmentation_evolves_after_its_epoch(checkpoint, data, tmp_path):
    model, processor = load_model(checkpoint), load_image_processor(checkpoint)
    collator = MaskCollator(processor, "image", "annotation", classes=CLASSES)
    evolution = plain_arguments(
        str(tmp_path), population_size=4, fitness="mean_iou", recombination="best", use_cpu=True, report_to="none"
    )
    arguments = TrainingArguments(
        str(tmp_path),
        num_train_epochs=1,
        use_cpu=True,
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, data_collator=collator, train_dataset=data[0], processing_class=processor)
    callback = EvolutionCallback(trainer, evolution, data[1])
    trainer.add_callback(callback)
    trainer.train()
    [generation] = callback.generations
    assert 0 < generation["parent"]["fitness"] <= max(child["fitness"] for child in generation["children"]) + 1
    assert any("evolution_parent_mean_iou" in entry for entry in trainer.state.log_history)


@pytest.mark.slow
def test_openvino_scores_as_eager_does(checkpoint, data):
    model, task = load_model(checkpoint), SemanticSegmentation()
    task.configure(model, None)
    collator = MaskCollator(load_image_processor(checkpoint), "image", "annotation", classes=CLASSES)
    scores = []
    for runtime in ("eager", "openvino"):
        choice = RuntimeChoice(model, runtime, batch_size=5, read=task.prediction)
        evaluator = Evaluator(model, torch.device("cpu"), choice=choice, reading=task)
        [score] = evaluator.score([Variant("model")], ImageBatches(data[1], collator, 5, keep_labels=False))
        scores.append(values(task.measured(score), 10))
        assert evaluator.runtime.name == runtime
    assert scores[0]["loss"] == pytest.approx(scores[1]["loss"], rel=1e-4)
    assert scores[0]["mean_iou"] == pytest.approx(scores[1]["mean_iou"], abs=0.01)


PREDICT = """
import sys
sys.modules["smd_hf"] = None
import numpy as np
from PIL import Image
from transformers import pipeline

predict = pipeline("image-segmentation", sys.argv[1], trust_remote_code=True)
found = {each["label"]: int((np.array(each["mask"]) > 0).sum()) for each in predict(Image.open(sys.argv[2]))}
print(sorted(found.items()))
"""


@pytest.mark.slow
def test_an_ensemble_predicts_without_smd_hf_what_was_measured(checkpoint, data, tmp_path):
    trainer = evolve(checkpoint, tmp_path, data, ensemble_size=3)
    report, ensemble = trainer.report, smd_hf.load(tmp_path / "ensemble")
    assert report["ensemble"]["n_test"] == 10 and "mean_iou" in report["ensemble_difference"]
    assert report["ensemble_members"]["size"] == 3 and (tmp_path / "ensemble" / "README.md").is_file()
    processor = load_image_processor(checkpoint)
    image = data[1][0]["image"]
    inputs = processor(image, return_tensors="pt")
    logits = ensemble(**inputs).logits
    members = torch.stack([ensemble.member(i)(**inputs).logits.softmax(1) for i in range(3)])
    assert torch.allclose(logits.exp(), members.mean(0), atol=1e-5)
    labels = torch.randint(0, CLASSES, (1, 32, 48))
    assert ensemble(**inputs, labels=labels).loss > 0
    image.save(tmp_path / "image.png")
    command = [sys.executable, "-c", PREDICT, str(tmp_path / "ensemble"), str(tmp_path / "image.png")]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout.splitlines()[-1]
    [classes] = processor.post_process_semantic_segmentation(ensemble(**inputs), [image.size[::-1]])
    names = ensemble.config.id2label
    assert printed == str(sorted((names[int(each)], int((classes == each).sum())) for each in classes.unique()))
