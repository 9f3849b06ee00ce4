import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from transformers import Trainer, TrainingArguments, default_data_collator

import smd_hf
from smd_hf import EvolutionCallback, SMDError
from smd_hf.models.checkpoints import weights_hash
from tests.plain import plain_arguments
from tests.tiny import tiny_images, tiny_model, tiny_pixels, tiny_processor


@pytest.fixture(scope="module")
def rows():
    return [{"pixel_values": pixels, "labels": number % 4} for number, pixels in enumerate(tiny_pixels(48))]


def make_trainer(folder, rows, kind="resnet", **kwargs):
    arguments = dict(
        num_train_epochs=2,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        logging_strategy="epoch",
        save_strategy="no",
        eval_strategy="epoch",
        seed=3,
    )
    return Trainer(
        tiny_model(kind),
        TrainingArguments(output_dir=str(folder), **arguments | kwargs),
        data_collator=default_data_collator,
        train_dataset=rows[:16],
        eval_dataset=rows[16:24],
    )


def features_of(names):
    return Features({"image": Image(), "label": ClassLabel(names=names)})


def evolution_args(folder, **kwargs):
    defaults = dict(population_size=4, sigma=0.2, recombination="best", elitism=False, use_cpu=True, report_to="none")
    return plain_arguments(str(folder), **defaults | kwargs)


def test_a_generation_after_each_epoch(rows, tmp_path):
    evolution = evolution_args(tmp_path)
    trainer = make_trainer(tmp_path, rows)
    callback = EvolutionCallback(trainer, evolution, rows[24:])
    trainer.add_callback(callback)
    tensors = {name: id(parameter) for name, parameter in trainer.model.named_parameters()}
    modes = []
    evolve = callback.evolve

    def watched(control):
        before = weights_hash(trainer.model)
        trainer.model.resnet.embedder.eval()  # frozen by its owner
        result = evolve(control)
        modes.append({name: module.training for name, module in trainer.model.named_modules()})
        trainer.model.resnet.embedder.train()
        assert weights_hash(trainer.model) != before
        return result

    callback.evolve = watched
    trainer.train()
    assert [record["generation"] for record in callback.generations] == [0, 1] and len(modes) == 2
    for mode in modes:
        assert {name for name, training in mode.items() if not training} == {
            name for name in mode if name.startswith("resnet.embedder")
        }
    # The same tensors, and an optimizer with a state for each.
    assert {name: id(parameter) for name, parameter in trainer.model.named_parameters()} == tensors
    assert all(trainer.optimizer.state[parameter]["step"] == 4 for parameter in trainer.model.parameters())
    # Trainer's own logs are all there, and so are ours, which come before the evaluation of the epoch.
    keys = [next(key for key in ("evolution_parent_nll", "eval_loss", "loss", "train_loss") if key in entry) for entry in trainer.state.log_history]  # fmt: skip
    assert sorted(keys) == sorted(["evolution_parent_nll", "loss", "eval_loss"] * 2 + ["train_loss"])
    assert keys.index("evolution_parent_nll") < keys.index("eval_loss")
    entry = trainer.state.log_history[keys.index("evolution_parent_nll")]
    assert entry["epoch"] == 1.0 and entry["evolution_accepted"] == 1.0 and entry["evolution_best_nll"] > 0


def test_without_a_better_child_training_goes_as_without_the_callback(rows, tmp_path):
    plain = make_trainer(tmp_path, rows)
    plain.train()
    # Children of such a sigma are no better than the parent, which stays.
    evolution = evolution_args(tmp_path, sigma=1e30, elitism=True)
    evolved = make_trainer(tmp_path, rows)
    callback = EvolutionCallback(evolved, evolution, rows[24:])
    evolved.add_callback(callback)
    evolved.train()
    assert [record["chosen"] for record in callback.generations] == ["parent", "parent"]
    assert weights_hash(plain.model) == weights_hash(evolved.model)


def test_several_generations_at_the_end_of_training(rows, tmp_path):
    plain = make_trainer(tmp_path, rows, kind="vit")
    plain.train()
    args = evolution_args(
        tmp_path, num_generations=3, sigma=None, calibration_target=0.2, fitness="macro_f1", elitism=True,
        recombination="top_k_mean", mutable_parameters=["norms", "head"], fitness_samples_per_generation=8,
    )  # fmt: skip
    trainer = make_trainer(tmp_path, rows, kind="vit")
    callback = EvolutionCallback(trainer, args, rows[24:], when="train_end")
    trainer.add_callback(callback)
    trainer.train()
    assert len(callback.generations) == 3
    assert all(record["parent"]["num_images"] == 8 for record in callback.generations)
    assert sum("evolution_best_macro_f1" in entry for entry in trainer.state.log_history) == 3
    changed = {
        name
        for (name, before), after in zip(plain.model.named_parameters(), trainer.model.parameters())
        if not torch.equal(before, after)
    }
    assert changed <= {name for name in changed if "norm" in name or "classifier" in name}
    # By hand once more: the generations go on.
    callback.evolve()
    assert [record["generation"] for record in callback.generations] == list(range(6))


def test_a_data_set_of_images_and_a_gauss_newton_step_by_cost(tmp_path, rows):
    args = evolution_args(tmp_path, recombination="gauss_newton", decomposition="blocks", allocation="cost")
    trainer = make_trainer(tmp_path, rows, num_train_epochs=1)
    trainer.processing_class = tiny_processor()
    names = [trainer.model.config.id2label[number] for number in range(4)]
    features = features_of(names)
    dataset = Dataset.from_dict(
        {"image": tiny_images(24, 16), "label": (np.arange(24) % 4).tolist()}, features=features
    )
    callback = EvolutionCallback(trainer, args, dataset)
    assert trainer.model.training is False  # as it was built
    trainer.add_callback(callback)
    trainer.train()
    assert len(callback.generations) == 1 and callback.generations[0]["chosen"] != "parent"
    others = dataset.cast_column("label", features_of(["red", "green", "blue", "grey", "white"])["label"])
    with pytest.raises(SMDError, match=r"5 of the data set's 5 labels.*label_map.*config.id2label"):
        EvolutionCallback(trainer, args, others)


def test_images_are_drawn_by_their_slopes_with_the_model_as_trained(tmp_path, rows):
    args = evolution_args(
        tmp_path,
        recombination="gauss_newton",
        fitness_samples_per_generation=6,
        selection_fraction=0.25,
        fitness_sampling="importance",
    )
    trainer = make_trainer(tmp_path, rows)
    callback = EvolutionCallback(trainer, args, rows[24:])
    evolve, chances = callback.evolve, []

    def watched(control):
        result = evolve(control)
        chances.append(callback.images.fresh.chances)
        return result

    callback.evolve = watched
    trainer.add_callback(callback)
    trainer.train()
    assert [record["parent"]["num_images"] for record in callback.generations] == [6, 6]
    # The model has been trained in between.
    assert len(chances) == 2 and not np.array_equal(*chances)


@pytest.mark.parametrize(
    ("kwargs", "options", "message"),
    [
        ({}, {"when": "step_end"}, "when='step_end'"),
        ({"ensemble_size": 2}, {}, "make files"),
        ({"fitness": "f2"}, {}, "is not a built-in metric"),
    ],
)
def test_what_cannot_work_is_refused(kwargs, options, message, rows, tmp_path):
    args = evolution_args(tmp_path, **kwargs)
    with pytest.raises(SMDError, match=message):
        EvolutionCallback(make_trainer(tmp_path, rows), args, rows[24:], **options)


def test_arguments_that_were_made_after_the_trainer_are_refused(rows, tmp_path):
    trainer = make_trainer(tmp_path, rows)
    with pytest.raises(SMDError, match="Make EvolutionArguments first"):
        EvolutionCallback(trainer, evolution_args(tmp_path), rows[24:])


def test_it_is_exported():
    assert smd_hf.EvolutionCallback is EvolutionCallback and "EvolutionCallback" in dir(smd_hf)
