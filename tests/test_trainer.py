import json

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from transformers import AutoModelForImageClassification, EarlyStoppingCallback, Trainer, TrainerCallback, pipeline

import smd_hf
from smd_hf import EvolutionTrainer, SMDError
from smd_hf.metrics.statistics import Scores
from smd_hf.models.checkpoints import weights_hash
from smd_hf.models.load import load_image_processor, load_model
from smd_hf.search.subspaces import DECOMPOSITIONS
from tests.plain import plain_arguments
from tests.records import rebuild_child
from tests.tiny import ALL_KINDS, label_names, save_tiny_checkpoint, tiny_images, tiny_model, tiny_processor


def make_dataset(count, seed=0, names=None):
    names = names or label_names(4)
    labels = np.random.default_rng(seed).permutation(np.arange(count) % len(names))
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"image": tiny_images(count, 16, seed), "label": labels.tolist()}, features=features)


@pytest.fixture(scope="module")
def data():
    return make_dataset(40, 1), make_dataset(24, 2)


def make_args(folder, **kwargs):
    defaults = dict(
        population_size=4,
        sigma=0.3,
        recombination="best",
        use_cpu=True,
        disable_tqdm=True,
        per_device_eval_batch_size=16,
    )
    return plain_arguments(str(folder), **defaults | kwargs)


def make_trainer(model, folder, data, callbacks=None, compute_metrics=None, **kwargs):
    train, test = data
    return EvolutionTrainer(
        model if not hasattr(model, "joinpath") else str(model),
        make_args(folder, **kwargs),
        train_dataset=train,
        eval_dataset=test,
        callbacks=callbacks,
        compute_metrics=compute_metrics,
    )


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_a_run_leaves_a_model_that_loads_without_us_and_a_report(checkpoint, data, tmp_path):
    trainer = make_trainer(checkpoint, tmp_path, data, num_generations=2, recombination="top_k_mean", elitism=False)
    output = trainer.train()
    assert output.global_step == 2 and trainer.state.epoch == 2.0
    evolved = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert weights_hash(evolved) == weights_hash(trainer.model) != weights_hash(load_model(checkpoint))
    classify = pipeline("image-classification", str(tmp_path))
    assert {entry["label"] for entry in classify(tiny_images(1)[0])} <= set(label_names(4))

    report = json.loads((tmp_path / "gain_report.json").read_text())
    assert report == trainer.report
    for model in ("parent", "evolved"):
        assert report[model]["n_test"] == 24 and 0 <= report[model]["accuracy"] <= 1
    assert report["difference"]["accuracy"]["estimate"] == pytest.approx(
        report["evolved"]["accuracy"] - report["parent"]["accuracy"]
    )
    # 32 fitness images for the parent and 4 children, 8 selection images for one candidate, twice
    assert report["cost"]["images_forwarded"] == 2 * (5 * 32 + 8)
    assert report["cost"]["parent_passes"] == pytest.approx(2 * (5 + 0.25))
    assert report["data"]["fitness"]["num_images"] == 32 and report["data"]["selection"]["num_images"] == 8
    assert report["arguments"]["sigma"] == 0.3 and report["arguments"]["elitism"] is False
    assert "max_steps" not in report["arguments"] and "logging_steps" not in report["arguments"]
    results = json.loads((tmp_path / "all_results.json").read_text())
    assert results["test_accuracy"] == report["evolved"]["accuracy"] and results["train_runtime"] > 0
    for name in ("gain.png", "fitness.png", "trainer_state.json", "evolution_args.json", "preprocessor_config.json"):
        assert (tmp_path / name).stat().st_size > 0
    assert not list(tmp_path.rglob("*.bin")) and not list(tmp_path.rglob("*.pt*"))


def test_the_report_is_what_a_plain_trainer_measures(checkpoint, data, tmp_path):
    trainer = make_trainer(checkpoint, tmp_path, data)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    for key in ("accuracy", "nll", "calibration_error"):
        assert trainer.report["parent"][key] == pytest.approx(before[f"eval_{key}"], abs=1e-6)
        assert trainer.report["evolved"][key] == pytest.approx(after[f"eval_{key}"], abs=1e-6)
    predictions = trainer.predict(data[1])
    assert predictions.predictions.shape == (24, 4)
    assert predictions.metrics["test_accuracy"] == trainer.report["evolved"]["accuracy"]


@pytest.mark.parametrize("decomposition", DECOMPOSITIONS)
def test_the_same_seed_gives_the_same_bytes(decomposition, checkpoint, data, tmp_path):
    files = []
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        trainer = make_trainer(
            checkpoint, tmp_path / name, data, decomposition=decomposition, seed=seed, elitism=False, mirrored=True
        )
        trainer.train()
        files.append(weights(tmp_path / name))
    assert files[0] == files[1] != files[2]


def test_elitism_keeps_the_parent_to_the_bit_when_no_child_is_better(checkpoint, data, tmp_path):
    trainer = make_trainer(checkpoint, tmp_path, data, sigma=100.0, fitness="accuracy", num_generations=2)
    before = weights_hash(trainer.model)
    trainer.train()
    chosen = [record["chosen"] for record in trainer.run.generations]
    assert (weights_hash(trainer.model) == before) == (chosen == ["parent", "parent"])
    best = [max(record["selection"].values()) for record in trainer.run.generations]
    for record, top in zip(trainer.run.generations, best):
        assert record["selection"][record["chosen"]] == top


@pytest.mark.parametrize("kind", ["vit", "timm_convnext", "custom"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_kind_of_model_in_both_dtypes(kind, dtype, data, tmp_path):
    save_tiny_checkpoint(kind, tmp_path / "parent")
    trainer = make_trainer(
        tmp_path / "parent",
        tmp_path / "out",
        data,
        elitism=False,
        model_init_kwargs={"dtype": dtype, "trust_remote_code": kind == "custom"},
    )
    trainer.train()
    assert trainer.model.dtype == getattr(torch, dtype)
    evolved = load_model(tmp_path / "out", trust_remote_code=kind == "custom")
    assert evolved.dtype == trainer.model.dtype
    assert weights_hash(evolved) == weights_hash(trainer.model)
    assert trainer.evaluate()["eval_accuracy"] == trainer.report["evolved"]["accuracy"]


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_architecture_evolves_and_comes_back(kind, data, tmp_path):
    save_tiny_checkpoint(kind, tmp_path / "parent")
    trainer = make_trainer(
        tmp_path / "parent",
        tmp_path / "out",
        data,
        population_size=2,
        decomposition="blocks",
        elitism=False,
        model_init_kwargs={"trust_remote_code": kind == "custom"},
    )
    before = weights_hash(trainer.model)
    trainer.train()
    evolved = load_model(tmp_path / "out", trust_remote_code=kind == "custom")
    assert weights_hash(evolved) == weights_hash(trainer.model) != before
    assert type(evolved).__name__ == type(trainer.model).__name__


def test_a_resumed_run_ends_in_the_same_bytes(checkpoint, data, tmp_path):
    kwargs = dict(num_generations=3, sigma=None, calibration_samples=16, save_strategy="steps", save_steps=1)
    whole = make_trainer(checkpoint, tmp_path / "whole", data, **kwargs)
    whole.train()

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 1

    make_trainer(checkpoint, tmp_path / "parts", data, callbacks=[Stop()], **kwargs).train()
    resumed = make_trainer(checkpoint, tmp_path / "parts", data, **kwargs)
    resumed.train(resume_from_checkpoint=True)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    reports = [json.loads((tmp_path / name / "gain_report.json").read_text()) for name in ("parts", "whole")]
    for report in reports:
        # The resumed run scores its first parent on the selection split once more.
        report.pop("cost")
    assert reports[0] == reports[1]
    lines = [(tmp_path / name / "children.jsonl").read_text() for name in ("parts", "whole")]
    assert lines[0] == lines[1]


def test_any_recorded_child_can_be_built_again(checkpoint, data, tmp_path):
    trainer = make_trainer(checkpoint, tmp_path, data, num_generations=3, elitism=False, decomposition="random")
    trainer.train()
    records = [json.loads(line) for line in (tmp_path / "children.jsonl").read_text().splitlines()]
    assert len(records) == 3 and all(len(record["children"]) == 4 for record in records)
    # The chosen child of the last generation is the evolved model.
    [[index, coefficient]] = records[2]["parts"]
    assert coefficient == 1.0
    again = make_trainer(
        checkpoint, tmp_path / "again", data, num_generations=3, elitism=False, decomposition="random"
    )
    rebuild_child(again.evolution.mutation, records, 2, index)
    assert weights_hash(again.model) == weights_hash(trainer.model)


def test_a_metric_of_the_users_own_is_the_fitness(checkpoint, data, tmp_path):
    def compute_metrics(prediction):
        share = np.bincount(prediction.predictions.argmax(-1), minlength=4)[0] / len(prediction.label_ids)
        return {"share_of_cats": share}

    trainer = make_trainer(
        checkpoint,
        tmp_path,
        data,
        compute_metrics=compute_metrics,
        fitness="share_of_cats",
        num_generations=2,
        sigma=1.0,
    )
    before = trainer.evaluate()["eval_share_of_cats"]
    trainer.train()
    record = trainer.run.generations[0]
    assert record["selection"]["parent"] <= max(record["selection"].values())
    assert trainer.evaluate()["eval_share_of_cats"] >= before
    with pytest.raises(
        SMDError, match=r"compute_metrics does not return fitness='share_of_dogs'\. It returns: share_of_cats"
    ):
        make_trainer(checkpoint, tmp_path, data, compute_metrics=compute_metrics, fitness="share_of_dogs").train()


def test_callbacks_log_history_and_the_best_checkpoint_behave_as_in_trainer(checkpoint, data, tmp_path):
    events = []

    class Record(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            events.append(("begin", state.global_step))

        def on_step_end(self, args, state, control, **kwargs):
            events.append(("end", state.global_step))

    trainer = make_trainer(
        checkpoint,
        tmp_path,
        data,
        callbacks=[Record(), EarlyStoppingCallback(early_stopping_patience=5)],
        num_generations=3,
        elitism=False,
        sigma=0.5,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="nll",
        greater_is_better=False,
    )
    trainer.train()
    assert events == [("begin", 0), ("end", 1), ("begin", 1), ("end", 2), ("begin", 2), ("end", 3)]
    history = trainer.state.log_history
    evaluations = [entry["eval_nll"] for entry in history if "eval_nll" in entry]
    assert len(evaluations) == 3 and sum("best_nll" in entry for entry in history) == 3
    assert trainer.state.best_metric == min(evaluations)
    assert trainer.evaluate()["eval_nll"] == pytest.approx(min(evaluations))
    assert trainer.report["evolved"]["nll"] == pytest.approx(min(evaluations), abs=1e-6)
    assert trainer.report["data"]["test"]["used_to_choose"]
    assert len(list(tmp_path.glob("checkpoint-*"))) == 1
    assert any("train_runtime" in entry for entry in history)


def test_the_progress_bar_counts_children(checkpoint, data, tmp_path, capfd):
    make_trainer(checkpoint, tmp_path, data, disable_tqdm=False).train()
    err = capfd.readouterr().err
    assert "generation 1/1, child 4/4" in err and "best nll" in err


def test_sigma_is_calibrated_when_it_is_not_given(checkpoint, tmp_path, capfd):
    data = (make_dataset(160, 3), make_dataset(8, 4))
    trainer = make_trainer(checkpoint, tmp_path, data, sigma=None, calibration_target=0.1, calibration_samples=128)
    trainer.train()
    calibration = trainer.run.calibration
    assert calibration.flipped == pytest.approx(0.1, abs=0.05)
    assert trainer.report["sigma"] == calibration.sigma == trainer.run.generations[0]["sigma"]
    assert trainer.report["calibration"]["curve"] and (tmp_path / "calibration.png").is_file()
    assert any("calibrated_sigma" in entry for entry in trainer.state.log_history)


def test_a_head_for_other_labels_is_a_linear_probe(checkpoint, tmp_path):
    names = ["red", "green", "blue"]
    train, test = make_dataset(60, 5, names), make_dataset(30, 6, names)
    trainer = make_trainer(checkpoint, tmp_path, (train, test))
    assert trainer.model.config.id2label == dict(enumerate(names))
    trainer.train()
    evolved = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert evolved.config.label2id == {name: label for label, name in enumerate(names)}
    with pytest.raises(SMDError, match="head_init"):
        make_trainer(checkpoint, tmp_path, (train, test), head_init="keep")


@pytest.mark.parametrize("as_strings", [False, True])
def test_test_images_of_a_class_that_only_the_model_knows_are_scored(as_strings, checkpoint, tmp_path, caplog):
    names = label_names(4)
    train, test = make_dataset(40, 1, names[:3]), make_dataset(24, 2, names[::-1])
    if as_strings:
        train, test = (
            each.cast_column("label", Value("string")).map(lambda row, own=own: {"label": own[int(row["label"])]})
            for each, own in ((train, names[:3]), (test, names[::-1]))
        )
    trainer = make_trainer(checkpoint, tmp_path, (train, test))
    trainer.train()
    assert f"Only test images have these labels: {names[3]}" in caplog.text
    truth = make_dataset(24, 2, names[::-1])["label"]
    with torch.no_grad():
        logits = trainer.model(**tiny_processor()(list(test["image"]), return_tensors="pt")).logits.numpy()
    assert trainer.report["evolved"]["accuracy"] == pytest.approx(np.mean(logits.argmax(-1) == 3 - np.array(truth)))
    assert trainer.report["evolved"]["n_test"] == 24


def test_test_images_of_a_class_that_nobody_knows_are_refused(checkpoint, tmp_path):
    names = label_names(4)
    data = make_dataset(40, 1, names[:3]), make_dataset(24, 2, [*names[:3], "junk"])
    with pytest.raises(SMDError, match=r"labels that the training split does not know: junk"):
        make_trainer(checkpoint, tmp_path, data)


def test_a_label_map_from_python(checkpoint, tmp_path):
    names = ["ship", "kitten", "puppy", "horse"]
    data = make_dataset(40, 5, names), make_dataset(30, 6, names[::-1])
    trainer = make_trainer(checkpoint, tmp_path, data, label_map={"kitten": 0, "puppy": "dog"})
    assert trainer.result.parent.new_head is None and trainer.data_collator.mapping.tolist() == [3, 0, 1, 2]
    trainer.train()
    assert trainer.images.test.labels.tolist() == [[2, 1, 0, 3][label] for label in data[1]["label"]]
    with pytest.raises(SMDError, match="label_map has no effect here"):
        args = make_args(tmp_path, label_map={"kitten": 0})
        EvolutionTrainer(str(checkpoint), args, data_collator=lambda rows: rows, train_dataset=data[0])


def test_children_that_are_not_finite_lose(checkpoint, data, tmp_path, caplog):
    model = load_model(checkpoint).to(torch.float16).float()
    trainer = EvolutionTrainer(
        model,
        make_args(tmp_path, sigma=1e30, elitism=True),
        train_dataset=data[0],
        eval_dataset=data[1],
        processing_class=tiny_processor(),
    )
    before = weights_hash(model)
    trainer.train()
    assert all(child["fitness"] is None for child in trainer.run.generations[0]["children"])
    assert trainer.run.generations[0]["chosen"] == "parent" and weights_hash(model) == before


@pytest.mark.parametrize("warm_start", [False, True])
def test_a_parent_that_is_not_finite_is_an_error(warm_start, data, tmp_path):
    model = tiny_model("resnet")
    model.config.id2label = dict(enumerate(label_names(4)))
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    args = make_args(tmp_path, warm_start=warm_start)
    trainer = EvolutionTrainer(
        model, args, train_dataset=data[0], eval_dataset=data[1], processing_class=tiny_processor()
    )
    with pytest.raises(SMDError, match="parent's logits are not finite"):
        trainer.train()


def test_rows_of_pixel_values_need_no_processor(tmp_path):
    generator = torch.Generator().manual_seed(0)
    rows = [{"pixel_values": torch.rand(3, 32, 32, generator=generator), "labels": i % 4} for i in range(24)]
    trainer = EvolutionTrainer(tiny_model("vit"), make_args(tmp_path), train_dataset=rows[:16], eval_dataset=rows[16:])
    trainer.train()
    assert trainer.report["parent"]["n_test"] == 8


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(population_size=1), "population_size is 1"),
        (dict(sigma=-0.1), "sigma is -0.1"),
        (dict(sigma=float("nan")), "sigma is nan"),
        (dict(density=0.0), "density is 0.0"),
        (dict(density=2.0), "density is 2.0"),
        (dict(decomposition="antirandom", population_size=5), "even"),
        (dict(mirrored=True, population_size=5), "even"),
        (dict(mutable_parameters=["*.nothing.*"]), "matches no parameter"),
        (dict(mutable_parameters=["head"], frozen_parameters=["all"]), "No mutable parameter is left"),
        (dict(max_steps=7), "max_steps is 7"),
        (dict(bf16_full_eval=True), "bf16_full_eval"),
        (dict(model_init_kwargs={"token": "hf_secret"}), "holds a token"),
        (dict(recombination="average"), "recombination is average"),
        (dict(fitness="sharpness"), "no compute_metrics"),
        (dict(output_dir="/proc/nowhere"), "cannot be written"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_scored(kwargs, message, checkpoint, data, tmp_path):
    with pytest.raises(SMDError, match=message) as error:
        folder = kwargs.pop("output_dir", tmp_path)
        make_trainer(checkpoint, folder, data, **kwargs).train()
    assert "hf_secret" not in str(error.value)


def test_an_empty_data_set_and_a_missing_one_are_refused(checkpoint, data, tmp_path):
    with pytest.raises(SMDError, match="train_dataset is empty"):
        make_trainer(checkpoint, tmp_path, (data[0].select([]), data[1]))
    with pytest.raises(SMDError, match="no train_dataset"):
        make_trainer(checkpoint, tmp_path, (None, data[1])).train()


def test_only_three_private_methods_of_trainer_are_overridden():
    bases = EvolutionTrainer.__mro__[: EvolutionTrainer.__mro__.index(Trainer)]
    own = {name for base in bases for name in vars(base) if name.startswith("_") and not name.startswith("__")}
    assert {name for name in own if hasattr(Trainer, name)} == {
        "_inner_training_loop",  # a step that a limit gives up must not count
        "_load_best_model",  # weights have other names in memory than on disk
        "_push_from_checkpoint",  # of output_dir, only some files go to the Hub
    }


def test_the_parts_of_a_run_are_its_own(checkpoint, data, tmp_path):
    """A second run with the same trainer begins with the evolved model, and knows nothing of the first."""
    trainer = make_trainer(checkpoint, tmp_path, data, num_generations=1, elitism=False)
    trainer.train()
    [first], logits = trainer.run.generations, trainer.result.test.evolved
    trainer.train()
    [second] = trainer.run.generations
    assert second["parent"]["nll"] != first["parent"]["nll"]
    assert np.array_equal(trainer.result.parent_score.logits, logits)
    assert trainer.report["parent"]["nll"] == pytest.approx(Scores.from_logits(logits, trainer.images.test.labels).nll)


@pytest.mark.parametrize("changed", ["weights", "head"])
def test_children_of_a_parent_that_is_no_longer_what_its_name_gives_load(changed, checkpoint, data, tmp_path):
    """Their base is the one that was saved beside them: the model still remembers the name it was loaded by."""
    model = AutoModelForImageClassification.from_pretrained(checkpoint)
    if changed == "weights":
        with torch.no_grad():
            model.classifier[1].bias.add_(0.5)
    else:
        data = make_dataset(40, 1, ["a", "b", "c"]), make_dataset(24, 2, ["a", "b", "c"])
        model = str(checkpoint)
    args = make_args(tmp_path, save_children=1, elitism=False, sigma=0.1, head_init="random")
    processor = load_image_processor(str(checkpoint))
    trainer = EvolutionTrainer(model, args, train_dataset=data[0], eval_dataset=data[1], processing_class=processor)
    trainer.train()
    child = smd_hf.load(tmp_path / "children" / "0000")
    scores = Scores.from_logits(
        trainer.evaluator.__class__(child, torch.device("cpu")).logits(trainer.images.test),
        trainer.images.test.labels,
    )
    assert trainer.report["deltas"]["0000"]["scores"]["nll"] == pytest.approx(scores.nll, abs=1e-9)


def test_an_ensemble_and_the_best_children_are_left_beside_the_evolved_model(checkpoint, data, tmp_path):
    trainer = make_trainer(
        checkpoint, tmp_path, data, num_generations=2, elitism=False, sigma=0.1, ensemble_size=3, save_children=2
    )
    trainer.train()
    report = json.loads((tmp_path / "gain_report.json").read_text())
    for name in ("ensemble", "ensemble_difference", "ensemble_members", "deltas", "examples"):
        assert report[name]

    # The ensemble on disk says what was measured.
    ensemble = smd_hf.load(tmp_path / "ensemble")
    logits = trainer.evaluator.__class__(ensemble, torch.device("cpu")).logits(trainer.images.test)
    scores = Scores.from_logits(logits, trainer.images.test.labels)
    assert report["ensemble"]["accuracy"] == scores.accuracy
    assert report["ensemble"]["nll"] == pytest.approx(scores.nll, abs=1e-9)
    members = report["ensemble_members"]
    assert 1 <= members["size"] <= 3 and sum(member["votes"] for member in members["members"]) == 3
    assert members["accuracy_by_size"][-1] == scores.accuracy

    # So do the deltas, against the parent that the run began with.
    children = trainer.run.generations[1]["children"]
    best = sorted(children, key=lambda child: -child["fitness"])[:2]
    for number, child in enumerate(best):
        model = smd_hf.load(tmp_path / "children" / f"{number:04d}")
        logits = trainer.evaluator.__class__(model, torch.device("cpu")).logits(trainer.images.test)
        scores = Scores.from_logits(logits, trainer.images.test.labels)
        entry = report["deltas"][f"{number:04d}"]
        assert entry["child"] == child["index"] and entry["generation"] == 1
        assert entry["scores"]["accuracy"] == scores.accuracy
        assert entry["scores"]["nll"] == pytest.approx(scores.nll, abs=1e-9)
    for folder in (tmp_path, tmp_path / "ensemble", tmp_path / "children"):
        assert "forward passes" in (folder / "README.md").read_text()


def test_the_evolved_model_is_the_same_with_and_without_other_artifacts(checkpoint, data, tmp_path):
    for name, extra in (("plain", {}), ("artifacts", {"ensemble_size": 2, "save_children": 1})):
        make_trainer(checkpoint, tmp_path / name, data, num_generations=2, elitism=False, **extra).train()
    assert weights(tmp_path / "plain") == weights(tmp_path / "artifacts")
