"""Object detection: runs from the command line to a pipeline, and what is refused before scoring."""

import json
import shutil
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, concatenate_datasets
from transformers import YolosImageProcessor, pipeline

from smd_hf import SMDError
from smd_hf.cli.main import main
from smd_hf.metrics.resampling import values
from smd_hf.models.load import load_image_processor, load_model
from smd_hf.tasks.detection import ObjectDetection
from tests.tasks import runs
from tests.tasks.detector import NAMES, make_rows, save_detector

make_trainer = partial(runs.make_trainer, per_device_eval_batch_size=4)
evolve = partial(runs.evolve, per_device_eval_batch_size=4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_detector(tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="module")
def data():
    return make_rows(12), make_rows(8, seed=1)


@pytest.mark.parametrize("fitness", ["nll", pytest.param("map", marks=pytest.mark.slow)])
def test_a_run_goes_from_the_trainer_to_a_pipeline(fitness, checkpoint, data, tmp_path):
    trainer = make_trainer(checkpoint, tmp_path, data, fitness=fitness)
    trainer.train()
    report = json.loads((tmp_path / "gain_report.json").read_text())
    assert report["task"] == "object-detection" and report["evolved"]["n_test"] == 8
    assert {"map", "map_50", "loss"} <= report["difference"].keys() and report["recombination"] == "top_k_sum"
    assert trainer.evaluate()["eval_loss"] == pytest.approx(report["evolved"]["loss"])
    assert "pipeline_tag: object-detection" in (tmp_path / "README.md").read_text()
    image = data[1][0]["image"]
    found = pipeline("object-detection", str(tmp_path))(image, threshold=0.0)
    processor = load_image_processor(tmp_path)
    with torch.no_grad():
        outputs = load_model(tmp_path)(**processor(image, return_tensors="pt"))
    [expected] = processor.post_process_object_detection(outputs, 0.0, [image.size[::-1]])
    assert sorted(each["score"] for each in found) == pytest.approx(sorted(expected["scores"].tolist()), abs=1e-6)
    assert {each["label"] for each in found} <= set(NAMES)


FITTED = {"warm_start": True, "refit_head": True, "mutable_parameters": ["norms"]}


@pytest.mark.parametrize("runtime", ["eager", pytest.param("openvino", marks=pytest.mark.slow)])
def test_the_head_is_fitted_on_queries_before_and_after_the_generations(runtime, checkpoint, data, tmp_path):
    trainer = evolve(checkpoint, tmp_path, data, runtime=runtime, elitism=False, **FITTED)
    report = json.loads((tmp_path / "gain_report.json").read_text())
    steps, found = report["steps"], trainer.result.warm_start
    assert steps["warm_start"] == found.chosen and not found.chosen.startswith("head")
    assert max(found.fitness.values()) > found.fitness["parent"]
    # What a head brings by itself is measured by passes over the test images.
    alone = next(name for name, entry in steps["baselines"].items() if name.startswith("head") and "test" in entry)
    parent, best = (values(trainer.task.measured(found.test[name]), 8) for name in ("parent", alone))
    assert parent["loss"] == pytest.approx(report["parent"]["loss"], rel=1e-4)
    assert steps["baselines"][alone]["test"]["loss"] == best["loss"]
    # The last head is in the model that is saved, and what was measured is what it gets.
    last = steps["refit_head"]
    assert last["chosen"].startswith("head") and last["test"]["loss"] == report["evolved"]["loss"]
    weight = load_model(tmp_path).class_labels_classifier.layers[-1].weight
    expected = torch.from_numpy(trainer.result.refit_head.arrays["weight"])
    torch.testing.assert_close(weight.double(), expected, rtol=1e-6, atol=1e-6)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(report["evolved"]["loss"], abs=1e-3)
    card = (tmp_path / "README.md").read_text()
    assert "| step | mAP (%) | set loss |" in card and "), set loss " in card


def test_a_stopped_run_with_a_fitted_head_goes_on_to_the_same_bytes(checkpoint, data, tmp_path):
    options = {"num_generations": 2, **FITTED}
    evolve(checkpoint, tmp_path / "whole", data, **options)
    runs.stop_in_its_midst(make_trainer(checkpoint, tmp_path / "stopped", data, **options))
    make_trainer(checkpoint, tmp_path / "stopped", data, **options).train(resume_from_checkpoint=True)
    first, second = (tmp_path / name / "model.safetensors" for name in ("whole", "stopped"))
    assert first.read_bytes() == second.read_bytes()


def test_the_command_line_evolves_and_evaluates(checkpoint, data, tmp_path, capsys):
    argv, given, out = runs.command(checkpoint, data, tmp_path)
    assert main([*argv, "--recombination", "best"]) == 0
    printed = capsys.readouterr().out
    assert "mAP" in printed and "AutoModelForObjectDetection.from_pretrained" in printed
    assert main(["evaluate", "--model_name_or_path", out, "--against", str(checkpoint), *given]) == 0
    assert "mAP" in capsys.readouterr().out


def test_gauss_newton_is_refused_with_the_reason(checkpoint, data, tmp_path):
    with pytest.raises(SMDError, match="which query answers for which object is decided anew"):
        make_trainer(checkpoint, tmp_path, data, recombination="gauss_newton", decomposition="random")


@pytest.mark.parametrize(
    "objects, says",
    [
        ({"bbox": [[1, 2, 0, 5]], "category": [0]}, "has no area"),
        ({"bbox": [[30, 2, 30, 5]], "category": [0]}, "reaches beyond the image of 40 x 30 pixels"),
        ({"bbox": [[1, 2, 5, 5]], "category": []}, "1 boxes and 0 classes"),
        (None, "missing"),
    ],
)
def test_bad_boxes_are_refused_before_scoring_or_skipped(objects, says, checkpoint, data, tmp_path):
    rows = [dict(row) for row in data[0]]
    rows[3]["objects"] = objects
    bad = Dataset.from_list(rows, features=data[0].features)
    with pytest.raises(SMDError, match="At index 3") as error:
        make_trainer(checkpoint, tmp_path, (bad, data[1])).train()
    assert says in str(error.value)
    trainer = make_trainer(checkpoint, tmp_path, (bad, data[1]), on_bad_images="skip")
    assert trainer.images.left_out["train_dataset"] == 1


def test_classes_are_matched_by_name(checkpoint, data, tmp_path):
    renamed = data[0].features.copy()
    names = ["red", "green", "yellow"]
    renamed["objects"] = {**renamed["objects"], "category": type(renamed["objects"]["category"])(_classes(names))}
    with pytest.raises(SMDError, match="yellow"):
        make_trainer(checkpoint, tmp_path, (data[0].cast(renamed), None))


def _classes(names):
    from datasets import ClassLabel

    return ClassLabel(names=names)


def test_images_of_several_sizes_are_scored_one_at_a_time(checkpoint, tmp_path, caplog):
    model = shutil.copytree(checkpoint, tmp_path / "parent")
    YolosImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}).save_pretrained(model)
    train = concatenate_datasets([make_rows(3, width=60), make_rows(3, width=30, height=60)])
    trainer = make_trainer(model, tmp_path, (train, None))
    assert trainer.args.per_device_eval_batch_size == 1
    assert "scored one at a time" in caplog.text
    alike = make_trainer(model, tmp_path, (make_rows(3), None))
    assert alike.args.per_device_eval_batch_size == 4


def test_a_model_without_boxes_of_queries_is_refused():
    with pytest.raises(SMDError, match="has no boxes of queries"):
        ObjectDetection().prediction(SimpleNamespace(logits=torch.zeros(1, 2, 3)))
