import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from smd_hf import EvolutionArguments, SMDError
from smd_hf.data.batches import ImageBatches
from smd_hf.data.rows import ImageCollator
from smd_hf.models.checkpoints import weights_hash
from smd_hf.models.linear_head import HeadInputs
from smd_hf.run.heads import FOLDER, head_name
from smd_hf.scoring.evaluator import Evaluator
from smd_hf.search.head import features
from smd_hf.search.head.features import features_of
from tests.run.test_warm_start import Stop, evolved, make_trainer
from tests.test_trainer import make_dataset
from tests.tiny import save_tiny_checkpoint, tiny_model, tiny_processor


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parent")
    save_tiny_checkpoint("resnet", folder)
    return folder


def coloured(count, seed):
    """Images of which the colour tells the class, so that there is something to learn."""
    rng, data = np.random.default_rng(seed), make_dataset(count, seed)
    tints = np.array([[90, 0, 0], [0, 90, 0], [0, 0, 90], [60, 60, 0]])
    images = [
        Image.fromarray((rng.integers(0, 160, (16, 16, 3)) + tints[label]).astype(np.uint8)) for label in data["label"]
    ]
    return Dataset.from_dict({"image": images, "label": data["label"]}, features=data.features)


@pytest.fixture(scope="module")
def data():
    return coloured(60, 1), coloured(24, 2)


def solving(checkpoint, folder, data, **kwargs):
    return make_trainer(
        checkpoint,
        folder,
        data,
        warm_start=False,
        solve_head=True,
        mutable_parameters=["norms", "head"],
        sigma=0.05,
        elitism=False,
        **kwargs,
    )


def test_children_leave_the_head_alone_and_every_generation_solves_for_it(checkpoint, data, tmp_path):
    trainer = solving(checkpoint, tmp_path, data)
    head = trainer.evolution.head
    assert head.names and not set(head.names) & set(trainer.evolution.mutation.space.names)
    before = head.layer.numbers()[0]
    trainer.train()
    assert trainer.report["steps"]["warm_start"] != "parent"
    records = [json.loads(line) for line in (tmp_path / "children.jsonl").read_text().splitlines()]
    for record in records:
        assert sum("; head, pull" in name for name in record["selection"]) == 3
        assert sum("step, damping" in name and ";" not in name for name in record["selection"]) == 5
        assert record["chosen"] == max(record["selection"], key=record["selection"].get)
    assert any(record["new_head"] for record in records)
    after = head.layer.numbers()[0]
    assert np.abs(after - before).max() > 1e-3
    # The next generation begins with the score that the last one chose by.
    assert records[1]["parent"]["nll"] < 2 * -records[0]["selection"][records[0]["chosen"]]
    # A pass of 48 images for each fit, of which the warm start has 60.
    assert trainer.report["cost"]["images_forwarded"] >= 60 + 2 * (5 + 1) * 48


def test_features_are_the_same_by_logits_of_unit_weights(data):
    model = tiny_model("resnet").eval()
    evaluator = Evaluator(model, torch.device("cpu"))
    batches = ImageBatches(data[0], ImageCollator(tiny_processor(), "image", "label"), 16)
    head = HeadInputs(model, evaluator.inputs(batches.first_batch()))
    expected, labels = features_of(evaluator, head, batches)
    found, same = features._as_logits(evaluator, head, batches)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(same, labels)
    assert evaluator.images_forwarded == 0 and evaluator.full_passes == 0


def test_features_that_are_kept_are_those_of_the_model(checkpoint, data, tmp_path):
    trainer = solving(checkpoint, tmp_path, data, num_generations=1)
    trainer.train()
    head = trainer.evolution.head
    known = head._features
    fresh = features_of(trainer.evaluator, head.layer, trainer.images.fitness)
    assert known is not None and all(np.array_equal(one, other) for one, other in zip(known, fresh))


@pytest.mark.parametrize("before", [0, 1])
def test_a_run_that_is_stopped_ends_in_the_same_weights(before, checkpoint, data, tmp_path, monkeypatch):
    solving(checkpoint, tmp_path / "whole", data).train()
    trainer = solving(checkpoint, tmp_path / "other", data)
    step = trainer.evolution.step

    def failing(generation, *args):
        if generation == before:
            raise Stop
        return step(generation, *args)

    monkeypatch.setattr(trainer.evolution, "step", failing)
    with pytest.raises(Stop):
        trainer.train()
    again = solving(checkpoint, tmp_path / "other", data)
    again.train(resume_from_checkpoint=True)
    assert evolved(tmp_path / "other") == evolved(tmp_path / "whole")
    costs = [
        json.loads((tmp_path / name / "gain_report.json").read_text())["cost"]["images_forwarded"]
        for name in ("whole", "other")
    ]
    assert costs[0] == costs[1]


def test_a_checkpoint_goes_on_in_another_folder_and_that_run_can_be_resumed(checkpoint, data, tmp_path):
    one = solving(checkpoint, tmp_path / "one", data, save_strategy="steps", save_steps=1)
    one.train()
    two = solving(checkpoint, tmp_path / "two", data)
    two.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-1"))
    assert evolved(tmp_path / "two") == evolved(tmp_path / "one")
    # From the first parent, without the checkpoint.
    three = solving(checkpoint, tmp_path / "two", data)
    three.train(resume_from_checkpoint=True)
    assert weights_hash(three.model) == weights_hash(one.model)


def test_a_lost_head_is_named(checkpoint, data, tmp_path):
    trainer = solving(checkpoint, tmp_path, data, num_generations=1)
    trainer.train()
    assert trainer.run.generations[0]["new_head"]
    (tmp_path / "ledger" / FOLDER / head_name(0)).write_bytes(b"nothing")
    with pytest.raises(SMDError, match="the head that generation 0 has left, is missing or damaged"):
        solving(checkpoint, tmp_path, data, num_generations=1).train(resume_from_checkpoint=True)


def test_deltas_and_ensembles_have_the_head_of_their_own_parent(checkpoint, data, tmp_path):
    trainer = solving(checkpoint, tmp_path, data, save_children=1, ensemble_size=2)
    trainer.train()
    before = weights_hash(trainer.model)
    with trainer.evolution.last_parent():
        assert weights_hash(trainer.model) != before
    assert weights_hash(trainer.model) == before


def test_other_recombinations_fit_the_head_too(checkpoint, data, tmp_path):
    trainer = solving(checkpoint, tmp_path, data, recombination="best", num_generations=1)
    trainer.train()
    assert any("; head, pull" in name for name in trainer.run.generations[0]["selection"])


def test_a_head_of_several_layers_is_left_to_the_children_with_a_warning(data, tmp_path, caplog):
    save_tiny_checkpoint("timm_deit", tmp_path / "parent")
    with caplog.at_level("WARNING"):
        trainer = solving(tmp_path / "parent", tmp_path / "run", data, num_generations=1)
        trainer.train()
    [line] = [record.getMessage() for record in caplog.records if "solve_head" in record.getMessage()]
    assert "solve_head is skipped" in line and "2 layers make its logits" in line
    assert any("head" in name for name in trainer.evolution.mutation.space.names)


def test_the_head_alone_leaves_the_children_nothing(checkpoint, data, tmp_path):
    with pytest.raises(SMDError, match="no child would change anything"):
        make_trainer(checkpoint, tmp_path, data, solve_head=True, mutable_parameters=["head"])


def test_choices_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(SMDError, match="solve_head fits the head on labelled images"):
        EvolutionArguments(str(tmp_path), solve_head=True, fitness="ood_auroc", recombination="best")
    with pytest.raises(SMDError, match="solve_head=True does not fit objectives"):
        EvolutionArguments(str(tmp_path), solve_head=True, objectives=["nll", "accuracy"])
