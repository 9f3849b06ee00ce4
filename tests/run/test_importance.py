"""Runs whose generations see more of the images on which the loss is steep."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import TrainerCallback

from smd_hf import SMDError
from smd_hf.data.fitness_samples import inclusion_chances
from smd_hf.search.image_slopes import slope_norms
from smd_hf.search.losses import cross_entropy
from tests.run.test_warm_start import evolved, make_trainer
from tests.test_trainer import make_dataset

IMPORTANCE = dict(
    fitness_sampling="importance",
    fitness_samples_per_generation=12,
    recombination="gauss_newton",
    mutable_parameters=["norms"],
    sigma=0.1,
    elitism=False,
)


@pytest.fixture(scope="module")
def data():
    return make_dataset(60, 1), make_dataset(24, 2)


class Slopes(TrainerCallback):
    """Measures the slopes with the model that the first generation begins with."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.found = None

    def on_train_begin(self, args, state, control, **kwargs):
        evaluator, fitness = self.trainer.evaluator, self.trainer.images.fitness
        with evaluator.aside():
            self.found = slope_norms(cross_entropy(), evaluator.logits(fitness), fitness.labels)


@pytest.mark.parametrize("warm_start", [True, False], ids=["by features of the head", "by a pass"])
def test_images_are_drawn_by_their_slopes_with_the_first_parent(checkpoint, data, tmp_path, warm_start, caplog):
    trainer = make_trainer(checkpoint, tmp_path / "whole", data, warm_start=warm_start, **IMPORTANCE)
    trainer.add_callback(slopes := Slopes(trainer))
    trainer.train()
    images = trainer.images
    np.testing.assert_allclose(images.fresh.chances, inclusion_chances(slopes.found, 12), rtol=1e-4)
    assert np.ptp(images.fresh.chances) > 0.01 and "on which the loss is steep" in caplog.text
    assert {record["parent"]["num_images"] for record in trainer.run.generations} == {12}
    # Each image of a batch has its own weight, and a part of the batches too.
    batches = images.of_generation(1)
    chances = dict(zip(images.fresh.all, images.fresh.chances))
    assert len(set(batches.indices)) == 12 and set(batches.indices) <= set(images.fitness.indices)
    for part in (batches, batches.head(5)):
        weights = np.concatenate([batch.weights.numpy() for batch in part])
        assert weights == pytest.approx([12 / (48 * chances[row]) for row in part.indices])
    # The loss is weighted, so that it is that of all images on average.
    score, plain = trainer.evaluator.score_model(batches), images.of_training(np.array(batches.indices))
    losses = F.cross_entropy(
        torch.from_numpy(score.logits).double(), torch.from_numpy(batches.labels), reduction="none"
    )
    weights = images.fresh.sample(1)[1]
    assert score.nll == pytest.approx(float(losses @ torch.from_numpy(weights)) / 12, rel=1e-6)
    assert trainer.evaluator.score_model(plain).nll == pytest.approx(float(losses.mean()), rel=1e-5)
    # A pass over the 48 fitness images, unless the head's features have told already.
    other = make_trainer(
        checkpoint, tmp_path / "balanced", data, warm_start=warm_start, **IMPORTANCE | {"fitness_sampling": "balanced"}
    )
    other.train()
    costs = [each.report["cost"]["images_forwarded"] for each in (trainer, other)]
    assert costs[0] - costs[1] == (0 if warm_start else 48)
    assert evolved(tmp_path / "whole") != evolved(tmp_path / "balanced")


@pytest.mark.parametrize("warm_start", [True, False], ids=["by features of the head", "by a pass"])
def test_a_run_that_goes_on_sees_the_same_images(checkpoint, data, tmp_path, warm_start):
    make_trainer(checkpoint, tmp_path / "whole", data, warm_start=warm_start, **IMPORTANCE).train()
    folder = tmp_path / "parts"
    first = make_trainer(
        checkpoint, folder, data, warm_start=warm_start, save_strategy="steps", save_steps=1, **IMPORTANCE
    )
    first.train()
    again = make_trainer(checkpoint, folder, data, warm_start=warm_start, **IMPORTANCE)
    again.train(resume_from_checkpoint=str(folder / "checkpoint-1"))
    assert np.array_equal(again.images.fresh.chances, first.images.fresh.chances)
    assert evolved(folder) == evolved(tmp_path / "whole")
    assert again.report["cost"]["images_forwarded"] == first.report["cost"]["images_forwarded"]


def test_where_every_generation_sees_all_images_none_weighs_more(checkpoint, data, tmp_path, caplog):
    folders = {sampling: tmp_path / sampling for sampling in ("importance", "balanced")}
    for sampling, folder in folders.items():
        few = IMPORTANCE | {"fitness_sampling": sampling, "fitness_samples_per_generation": 100}
        make_trainer(checkpoint, folder, data, num_generations=1, **few).train()
    assert evolved(folders["importance"]) == evolved(folders["balanced"])
    assert "on which the loss is steep" not in caplog.text


def test_a_run_that_drew_its_images_otherwise_does_not_go_on(checkpoint, data, tmp_path):
    make_trainer(checkpoint, tmp_path, data, **IMPORTANCE).train()
    balanced = make_trainer(checkpoint, tmp_path, data, **IMPORTANCE | {"fitness_sampling": "balanced"})
    with pytest.raises(SMDError, match='fitness_sampling was "importance" and is "balanced"'):
        balanced.train(resume_from_checkpoint=True)
