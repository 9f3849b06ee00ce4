"""What users of `Trainer` bring along: subclasses, `model_init`, optimizers, metrics, streams, models of other tasks."""

import datasets
import numpy as np
import pytest
import torch
from transformers import EvalPrediction, Trainer

from smd_hf import EvolutionCallback, EvolutionTrainer, SMDError
from smd_hf.models.checkpoints import weights_hash
from tests.arguments.test_inherited_arguments import make_args, rows
from tests.plain import plain_arguments
from tests.tiny import tiny_model


def make_trainer(folder, kind=EvolutionTrainer, model=None, given=None, **kwargs):
    data = {"train_dataset": rows(), "eval_dataset": rows()} | (given or {})
    model = tiny_model("resnet") if model is None and "model_init" not in data else model
    return kind(model, make_args(folder, **kwargs), **data)


# Models


def test_a_model_of_another_problem_type_is_refused_before_anything_is_scored(tmp_path):
    model = tiny_model("resnet")
    model.config.problem_type = "regression"
    with pytest.raises(SMDError, match=r"problem_type is 'regression'.*'single_label_classification'"):
        make_trainer(tmp_path, model=model)
    # Its labels are lists: tests/tasks/test_multi_label.py.
    model.config.problem_type = "multi_label_classification"
    with pytest.raises(SMDError, match="no image processor"):
        make_trainer(tmp_path, model=model)
    model.config.problem_type = "single_label_classification"
    make_trainer(tmp_path, model=model)


def test_a_model_of_one_output_is_refused(tmp_path):
    with pytest.raises(SMDError, match="has 1 output; classification needs at least two"):
        make_trainer(tmp_path, model=tiny_model("resnet", num_labels=1))


def test_the_callback_refuses_other_problem_types_and_streams_too(tmp_path):
    model = tiny_model("resnet")
    args = plain_arguments(str(tmp_path), use_cpu=True, per_device_eval_batch_size=4)
    trainer = Trainer(model, make_args(tmp_path / "trainer"), train_dataset=rows())
    with pytest.raises(SMDError, match="fitness_dataset is a IterableDataset"):
        EvolutionCallback(trainer, args, datasets.Dataset.from_dict({"labels": [0]}).to_iterable_dataset())
    model.config.problem_type = "regression"
    with pytest.raises(SMDError, match="problem_type is 'regression'"):
        EvolutionCallback(trainer, args, rows())


@pytest.mark.parametrize("takes_trial", [False, True])
def test_model_init_is_called_once_and_gives_the_parent(takes_trial, tmp_path):
    calls = []

    def model_init():
        calls.append(None)
        return tiny_model("resnet", seed=3)

    given = {"model_init": (lambda trial: model_init()) if takes_trial else model_init}
    trainer = make_trainer(tmp_path, given=given, elitism=False)
    parent = weights_hash(trainer.model)
    assert parent == weights_hash(tiny_model("resnet", seed=3))
    trainer.train()
    assert len(calls) == 1 and weights_hash(trainer.model) != parent
    with pytest.raises(SMDError, match="hyperparameter_search is not available"):
        trainer.hyperparameter_search()


def test_a_model_and_a_model_init_are_one_too_many_and_none_is_one_too_few(tmp_path):
    model_init = lambda: tiny_model("resnet")  # noqa: E731
    with pytest.raises(SMDError, match="Both model and model_init are given"):
        EvolutionTrainer(tiny_model("resnet"), make_args(tmp_path), model_init=model_init)
    with pytest.raises(SMDError, match="Neither model nor model_init is given"):
        EvolutionTrainer(args=make_args(tmp_path))
    with pytest.raises(SMDError, match="model_init returned None"):
        EvolutionTrainer(args=make_args(tmp_path), model_init=lambda: None)


def test_an_optimizer_is_refused_and_the_defaults_of_trainer_are_not(tmp_path):
    model = tiny_model("resnet")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(SMDError, match=r"optimizers is given.*sigma.*EvolutionCallback"):
        make_trainer(tmp_path, model=model, given={"optimizers": (optimizer, None)})
    with pytest.raises(SMDError, match="optimizer_cls_and_kwargs is given"):
        make_trainer(tmp_path, given={"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1})})
    make_trainer(tmp_path, given={"optimizers": (None, None), "optimizer_cls_and_kwargs": None})


# Data


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(rows())


def test_a_stream_that_nothing_bounds_is_refused_with_the_way_to_take_rows_from_it(tmp_path):
    stream = datasets.Dataset.from_dict({"labels": [0, 1]}).to_iterable_dataset()
    for each in (stream, Stream()):
        with pytest.raises(
            SMDError, match=r"fitness_samples_per_generation.*Dataset.from_list\(list\(stream.take\(2000\)\)"
        ):
            make_trainer(tmp_path, given={"train_dataset": each})
    for which in ("train_dataset", "eval_dataset", "ood_dataset"):
        with pytest.raises(SMDError, match=rf"{which} is a .*Dataset.from_list\(list\(stream.take\(2000\)\)"):
            make_trainer(tmp_path, given={which: iter(rows())})


def test_the_remedy_for_a_stream_works(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    stored = datasets.Dataset.from_dict({"image": [image] * 6, "label": [0, 1] * 3}, features=features)
    stream = stored.to_iterable_dataset()
    taken = datasets.Dataset.from_list(list(stream.take(4)), features=stream.features)
    assert len(taken) == 4 and taken.features == features and taken[3]["image"].size == (4, 4)


def test_several_splits_where_one_is_expected_are_refused(tmp_path):
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"labels": [0]})})
    with pytest.raises(SMDError, match=r"several splits \(train\).*train_dataset=splits\['train'\]"):
        make_trainer(tmp_path, given={"train_dataset": splits})


# Metrics


def test_preprocess_logits_for_metrics_is_honoured_in_evaluation_and_as_fitness(tmp_path):
    seen = []

    def preprocess(logits, labels):
        return logits.argmax(-1)

    def compute_metrics(prediction):
        seen.append(prediction.predictions.shape)
        return {"right": float((prediction.predictions == prediction.label_ids).mean())}

    given = {"preprocess_logits_for_metrics": preprocess, "compute_metrics": compute_metrics}
    trainer = make_trainer(tmp_path, given=given, fitness="right", selection_fraction=0.0)
    trainer.train()
    # 12 images: what is preprocessed are the classes called, not logits.
    assert seen and set(seen) == {(12,)}
    record = trainer.run.generations[0]
    assert max(record["selection"].values()) == trainer.evaluate()["eval_right"]
    assert trainer.predict(rows()).predictions.shape == (12,)


def test_built_in_metrics_are_fitness_beside_preprocess_logits_for_metrics(tmp_path, warned):
    given = {"preprocess_logits_for_metrics": lambda logits, labels: logits.argmax(-1)}
    trainer = make_trainer(tmp_path, given=given, fitness="macro_f1")
    trainer.train()
    assert 0 <= max(trainer.run.generations[0]["selection"].values()) <= 1
    assert "eval_loss" in trainer.evaluate() and "eval_macro_f1" not in trainer.evaluate()
    assert warned("preprocess_logits_for_metrics changes what metrics are computed from")


def test_inputs_and_losses_reach_compute_metrics_in_evaluation(tmp_path):
    def compute_metrics(prediction: EvalPrediction):
        return {"brightness": float(prediction.inputs.mean()), "mean_loss": float(prediction.losses.mean())}

    kwargs = dict(include_for_metrics=["inputs", "loss"], per_device_eval_batch_size=4)
    trainer = make_trainer(tmp_path, given={"compute_metrics": compute_metrics}, **kwargs)
    metrics = trainer.evaluate()
    pixels = torch.stack([row["pixel_values"] for row in rows()])
    assert metrics["eval_brightness"] == pytest.approx(float(pixels.mean()), abs=1e-6)
    assert metrics["eval_mean_loss"] == pytest.approx(metrics["eval_loss"])
    trainer.train()
    for fitness in ("brightness", "macro_f1"):
        with pytest.raises(SMDError, match=rf"include_for_metrics=\['inputs', 'loss'\].*{fitness} comes from"):
            make_trainer(tmp_path, given={"compute_metrics": compute_metrics}, fitness=fitness, **kwargs)


def test_metrics_of_a_list_of_batches(tmp_path):
    """`eval_do_concat_batches=False` gives compute_metrics lists, as fitness too, and the built-in metrics are the same."""
    kinds = set()

    def compute_metrics(prediction):
        kinds.add(type(prediction.predictions))
        right = [(logits.argmax(-1) == labels).sum() for logits, labels in zip(*prediction)]
        return {"right": float(sum(right))}

    kwargs = dict(eval_do_concat_batches=False, per_device_eval_batch_size=5)
    trainer = make_trainer(tmp_path, given={"compute_metrics": compute_metrics}, fitness="right", **kwargs)
    trainer.train()
    assert trainer.evaluate()["eval_right"] == pytest.approx(12 * trainer.report["evolved"]["accuracy"])
    assert kinds == {list}
    plain = make_trainer(tmp_path / "plain", fitness="macro_f1", **kwargs).evaluate()
    again = make_trainer(tmp_path / "again", fitness="macro_f1", per_device_eval_batch_size=5).evaluate()
    for key in ("eval_accuracy", "eval_nll", "eval_macro_f1"):
        assert plain[key] == pytest.approx(again[key])


# Subclasses


class OwnEvaluation(EvolutionTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        return (loss * 0 + 7.0, outputs) if return_outputs else loss * 0 + 7.0

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        loss, _, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        return loss, torch.nn.functional.one_hot(labels, 4).float(), labels

    def get_eval_dataloader(self, eval_dataset=None):
        return super().get_eval_dataloader(rows(8))

    def get_test_dataloader(self, test_dataset):
        return super().get_test_dataloader(test_dataset[:5])


def test_overridden_methods_of_evaluation_are_called_there_and_told_of_once(tmp_path, warned):
    trainer = make_trainer(tmp_path, kind=OwnEvaluation)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == 7.0 and metrics["eval_accuracy"] == 1.0
    assert (
        trainer.callback_handler.eval_dataloader.dataset[7]
        and len(trainer.callback_handler.eval_dataloader.dataset) == 8
    )
    assert trainer.predict(rows()).predictions.shape == (5, 4)
    [message] = warned("overrides methods")
    assert message.startswith(
        "OwnEvaluation overrides methods that do not take part in scoring: compute_loss (only evaluate()"
    )
    for name in ("compute_loss_func", "prediction_step", "get_eval_dataloader", "get_test_dataloader"):
        assert name in message


@pytest.mark.parametrize("name", ["get_train_dataloader", "training_step"])
def test_an_overridden_method_of_training_is_refused_with_what_to_use_instead(name, tmp_path):
    kind = type("Own", (EvolutionTrainer,), {name: lambda self, *args, **kwargs: None})
    with pytest.raises(SMDError, match=f"Own overrides {name}, which EvolutionTrainer never calls"):
        make_trainer(tmp_path, kind=kind)


def test_a_subclass_that_overrides_nothing_of_these_is_not_warned(tmp_path, warned):
    make_trainer(tmp_path, kind=type("Own", (EvolutionTrainer,), {"log": lambda self, *args, **kwargs: None}))
    assert not warned("overrides")
