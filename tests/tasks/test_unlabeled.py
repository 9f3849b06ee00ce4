"""Runs on images without labels."""

import json

import numpy as np
import pytest
import torch
from datasets import ClassLabel
from transformers import AutoModelForImageClassification

from smd_hf import EvolutionArguments, EvolutionCallback, EvolutionTrainer, SMDError
from smd_hf.cli.main import main
from smd_hf.models.checkpoints import weights_hash
from smd_hf.search import information
from tests.test_trainer import make_dataset


@pytest.fixture(scope="module")
def data():
    return make_dataset(80, 1).remove_columns("label"), make_dataset(24, 2)


def make_trainer(checkpoint, folder, data, **kwargs):
    defaults = dict(population_size=6, num_generations=2, use_cpu=True, disable_tqdm=True, report_to="none")
    args = EvolutionArguments(str(folder), unlabeled=True, per_device_eval_batch_size=16, **defaults | kwargs)
    train, test = data
    return EvolutionTrainer(str(checkpoint), args, train_dataset=train, eval_dataset=test)


def evolved(folder):
    return weights_hash(AutoModelForImageClassification.from_pretrained(folder))


def test_a_run_needs_no_labels_and_reports_on_test_images_that_have_them(checkpoint, data, tmp_path):
    trainer = make_trainer(checkpoint, tmp_path, data, save_children=1, ensemble_size=2)
    trainer.train()
    report = json.loads((tmp_path / "gain_report.json").read_text())
    assert report["evolved"].keys() >= {"accuracy", "nll"} and "absent_classes" not in report
    assert "expected_optimism" not in report["selection"] and "warm_start" not in report["steps"]
    assert trainer.images.fitness.labels.tolist() == [-1] * 72
    first = json.loads((tmp_path / "children.jsonl").read_text().splitlines()[0])
    assert "accuracy" not in first["parent"] and first["parent"]["fitness"] > 0
    card = (tmp_path / "README.md").read_text()
    assert "They were scored by `information` on 72 images, without their labels" in card
    assert not trainer.args.refit_head and trainer.args.scaling_share == 0
    assert (tmp_path / "ensemble" / "config.json").is_file() and (tmp_path / "gain.png").is_file()


def test_labels_of_training_images_have_no_effect(checkpoint, tmp_path):
    train, test = make_dataset(80, 1), make_dataset(24, 2)
    found = []
    for name, rows in (("without", train.remove_columns("label")), ("with", train)):
        trainer = make_trainer(checkpoint, tmp_path / name, (rows, test))
        trainer.train()
        found.append(evolved(tmp_path / name))
    assert found[0] == found[1]


def test_test_images_are_not_needed_either(checkpoint, data, tmp_path):
    trainer = make_trainer(checkpoint, tmp_path, (data[0], None))
    trainer.train()
    assert trainer.report is None and (tmp_path / "model.safetensors").is_file()


def test_rows_of_pixel_values_do(checkpoint, data, tmp_path):
    class Pixels(torch.utils.data.Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, place):
            return {"pixel_values": torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(place))}

    trainer = make_trainer(checkpoint, tmp_path, (Pixels(), None), num_generations=1)
    trainer.train()
    assert trainer.state.global_step == 1


def test_the_order_of_labels_of_the_test_images_is_matched_by_name(checkpoint, data, tmp_path):
    """The test images have the model's labels in another order."""
    train, test = data
    names = test.features["label"].names
    order = names[::-1]
    turned = test.remove_columns("label").add_column("label", [order.index(names[label]) for label in test["label"]])
    turned = turned.cast_column("label", ClassLabel(names=order))
    reports = []
    for name, rows in (("same", test), ("turned", turned)):
        trainer = make_trainer(checkpoint, tmp_path / name, (train, rows), num_generations=1)
        trainer.train()
        reports.append(trainer.report)
    assert reports[0]["parent"]["accuracy"] == reports[1]["parent"]["accuracy"]
    assert reports[0]["evolved"]["nll"] == pytest.approx(reports[1]["evolved"]["nll"])


class Stop(Exception):
    pass


def test_a_run_that_is_stopped_ends_in_the_same_weights(checkpoint, data, tmp_path, monkeypatch):
    make_trainer(checkpoint, tmp_path / "whole", data).train()
    trainer = make_trainer(checkpoint, tmp_path / "part", data)
    step = trainer.evolution.step
    monkeypatch.setattr(
        trainer.evolution,
        "step",
        lambda number, *args: step(number, *args) if number == 0 else (_ for _ in ()).throw(Stop),
    )
    with pytest.raises(Stop):
        trainer.train()
    make_trainer(checkpoint, tmp_path / "part", data).train(resume_from_checkpoint=True)
    assert evolved(tmp_path / "part") == evolved(tmp_path / "whole")


def test_where_every_candidate_is_refused_the_parent_stays_and_the_log_says_so(
    checkpoint, data, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(information, "AGREEMENT", 1.01)
    trainer = make_trainer(checkpoint, tmp_path, data, num_generations=1)
    trainer.train()
    statistics = trainer.result.statistics
    [generation] = trainer.run.generations
    assert generation["chosen"] == "parent"
    assert "candidates were refused, and the parent stays" in caplog.text
    before = trainer.result.parent_score if statistics.chosen == "parent" else statistics.test[statistics.chosen]
    np.testing.assert_allclose(trainer.result.test.evolved, before.logits, atol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"fitness": "accuracy"}, "fitness='accuracy' does not go with that"),
        ({"refit_head": True}, "refit_head=True"),
        ({"class_weights": [1.0, 1.0]}, "class_weights"),
        ({"racing": "halving"}, "racing='halving'"),
        ({"elitism": False}, "Leave elitism on"),
        ({"selection_fraction": 0.0}, "selection_fraction above 0"),
    ],
)
def test_what_needs_labels_is_refused(tmp_path, options, message):
    with pytest.raises(SMDError, match="unlabeled") as error:
        EvolutionArguments(str(tmp_path), unlabeled=True, **options)
    assert message in str(error.value)


def test_other_tasks_new_heads_and_the_callback_are_refused(checkpoint, data, tmp_path):
    with pytest.raises(SMDError, match="unlabeled is for image classification"):
        make_trainer(checkpoint, tmp_path, data, task="zero-shot-image-classification")
    other = make_dataset(12, 2, names=["a new class", "another new class"])
    with pytest.raises(SMDError, match="a new head would be needed"):
        make_trainer(checkpoint, tmp_path, (data[0], other))
    args = EvolutionArguments(str(tmp_path), unlabeled=True, use_cpu=True)
    trainer = make_trainer(checkpoint, tmp_path, data)
    with pytest.raises(SMDError, match="unlabeled is for EvolutionTrainer"):
        EvolutionCallback(trainer, args, fitness_dataset=data[1])


def test_the_command_line_takes_a_folder_without_classes(checkpoint, data, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for place, row in enumerate(data[0]):
        row["image"].save(tmp_path / "photos" / f"{place}.png")
    command = f"evolve --model_name_or_path {checkpoint} --unlabeled --train_dir {tmp_path / 'photos'} --report_to none --use_cpu"
    assert main(f"{command} --output_dir {tmp_path / 'out'} --population_size 4 --num_generations 1".split()) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()
