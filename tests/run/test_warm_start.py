import json
import re

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from transformers import AutoModelForImageClassification

from smd_hf import EvolutionTrainer, SMDError
from smd_hf.models.checkpoints import weights_hash
from smd_hf.models.linear_head import HeadInputs
from smd_hf.reports.steps import steps_lines
from smd_hf.run import warm_start
from smd_hf.run.cost_model import CostModel
from smd_hf.run.warm_start import FILE_NAME, WarmStart
from smd_hf.search.head import baselines
from tests.plain import plain_arguments
from tests.test_trainer import make_dataset
from tests.tiny import ALL_KINDS, label_names, save_tiny_checkpoint, tiny_images, tiny_model, tiny_processor


@pytest.fixture(scope="module")
def data():
    return make_dataset(60, 1), make_dataset(24, 2)


@pytest.fixture(scope="module")
def telling():
    """Images as bright as their label says, so that a head can learn something."""

    def part(count, seed):
        rng, labels = np.random.default_rng(seed), np.arange(count) % 4
        pixels = rng.integers(0, 60, (count, 16, 16, 3)) + 60 * labels[:, None, None, None]
        features = Features({"image": Image(), "label": ClassLabel(names=label_names(4))})
        return Dataset.from_dict({"image": [*pixels.astype(np.uint8)], "label": labels.tolist()}, features=features)

    return part(60, 1), part(24, 2)


def make_trainer(checkpoint, folder, data, model=None, **kwargs):
    defaults = dict(warm_start=True, population_size=4, sigma=0.01, num_generations=2, use_cpu=True, disable_tqdm=True)
    args = plain_arguments(str(folder), per_device_eval_batch_size=16, **defaults | kwargs)
    train, test = data
    return EvolutionTrainer(model or str(checkpoint), args, train_dataset=train, eval_dataset=test)


def evolved(folder):
    return weights_hash(AutoModelForImageClassification.from_pretrained(folder))


@pytest.mark.parametrize("kind", [kind for kind in ALL_KINDS if kind not in ("timm_deit", "custom")])
def test_features_times_the_head_are_the_logits_of_every_kind_of_model(kind):
    model = tiny_model(kind).eval()
    pixels = tiny_processor()(tiny_images(3), return_tensors="pt")["pixel_values"]
    head = HeadInputs(model, pixels)
    with head.recorded() as seen, torch.inference_mode():
        logits = model(pixel_values=pixels).logits
    weight, bias = head.numbers()
    np.testing.assert_allclose(seen[0].numpy() @ weight.T + bias, logits.numpy(), atol=1e-4)
    head.write(2 * weight, 2 * bias)
    with torch.inference_mode():
        np.testing.assert_allclose(model(pixel_values=pixels).logits.numpy(), 2 * logits.numpy(), rtol=1e-3, atol=1e-4)


def test_a_run_reports_what_each_step_brought(checkpoint, data, tmp_path):
    trainer = make_trainer(checkpoint, tmp_path, data)
    trainer.train()
    report = json.loads((tmp_path / "gain_report.json").read_text())
    steps = report["steps"]
    # The statistics on 48 images, the parent's and the first others measured on 12; the head on all.
    assert steps["statistics"] == "parent" and steps["images_forwarded"] == 48 + 2 * 12 + 60
    assert report["cost"]["images_forwarded"] >= steps["images_forwarded"] + 2 * 4 * 48
    heads = {name: each for name, each in steps["baselines"].items() if not name.startswith("statistics")}
    assert {name.split(",")[0] for name in heads} == {
        "parent", "temperature", "class prior", "class prior and temperature", "head",
    }  # fmt: skip
    # 48 images choose by cross-validation, not 12 by chance.
    best, crossed = steps["warm_start"], trainer.result.first_steps[1].crossed
    assert best == max(crossed, key=crossed.get) and crossed.keys() == heads.keys()
    assert heads[best]["selection"] < heads["parent"]["selection"] - 0.5
    # The generations begin where the warm start ended.
    first = json.loads((tmp_path / "children.jsonl").read_text().splitlines()[0])
    assert -first["selection"]["parent"] == pytest.approx(steps["baselines"][best]["selection"], rel=1e-4)
    assert steps["evolution"]["before"]["nll"] == steps["baselines"][best]["test"]["nll"]
    total = report["difference"]["nll"]["estimate"]
    parts = (
        steps["baselines"][best]["difference"]["nll"]["estimate"],
        steps["evolution"]["difference"]["nll"]["estimate"],
    )
    assert sum(parts) == pytest.approx(total)
    over = steps["baselines"][best]["evolved_over_it"]
    assert over["nll"] == steps["evolution"]["difference"]["nll"]
    lines = "\n".join(steps_lines(report))
    assert f"{best} alone" in lines and f"is at {100 * over['accuracy']['estimate']:+.2f} points (" in lines
    assert "class prior alone" in lines and ", chosen;" in lines and "the generations" in lines
    card = (tmp_path / "README.md").read_text()
    assert steps["cross_validated"] and "Cross-validation on the fitness images chose one of them." in card
    # Of a report whose names are sorted, too: simple heads first, as in the terminal.
    shown = re.findall(r"^\| `(.*) alone`", card, re.MULTILINE)
    told = re.findall(r"^  (.*) alone:", lines, re.MULTILINE)
    assert shown == told and len(shown) == len([name for name, each in steps["baselines"].items() if "test" in each])


class Stop(Exception):
    pass


def test_a_run_that_is_stopped_ends_in_the_same_weights(checkpoint, data, tmp_path, monkeypatch):
    make_trainer(checkpoint, tmp_path / "whole", data).train()
    for name, before in {"in the first generation": 0, "in the second": 1}.items():
        folder = tmp_path / name
        trainer = make_trainer(checkpoint, folder, data)
        step = trainer.evolution.step

        def failing(generation, *args, step=step, before=before):
            if generation == before:
                raise Stop
            return step(generation, *args)

        monkeypatch.setattr(trainer.evolution, "step", failing)
        with pytest.raises(Stop):
            trainer.train()
        with monkeypatch.context() as patch:
            # Nothing is fitted again.
            patch.setattr(baselines, "HeadFits", None)
            resumed = make_trainer(checkpoint, folder, data)
            resumed.train(resume_from_checkpoint=True)
        assert evolved(folder) == evolved(tmp_path / "whole")
        whole, again = (json.loads((place / "gain_report.json").read_text()) for place in (tmp_path / "whole", folder))
        assert again["steps"] == whole["steps"]
        assert again["cost"]["images_forwarded"] == whole["cost"]["images_forwarded"]


def test_a_damaged_file_is_found_out_and_the_head_fitted_again(checkpoint, data, tmp_path, monkeypatch):
    trainer = make_trainer(checkpoint, tmp_path, data)
    trainer.train()
    hash_before = evolved(tmp_path)
    (tmp_path / "ledger" / FILE_NAME).write_bytes(b"nothing")
    make_trainer(checkpoint, tmp_path, data).train(resume_from_checkpoint=True)
    assert evolved(tmp_path) == hash_before


def test_a_checkpoint_of_the_run_goes_on_from_its_own_weights(checkpoint, data, tmp_path):
    make_trainer(checkpoint, tmp_path / "one", data, save_strategy="steps", save_steps=1).train()
    other = make_trainer(checkpoint, tmp_path / "two", data, save_strategy="steps", save_steps=1)
    other.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-1"))
    assert evolved(tmp_path / "two") == evolved(tmp_path / "one")


def test_without_selection_images_the_fitness_images_choose(checkpoint, data, tmp_path):
    trainer = make_trainer(checkpoint, tmp_path, data, selection_fraction=0.0, num_generations=1)
    trainer.train()
    steps = trainer.report["steps"]
    assert steps["warm_start"] != "parent" and steps["images_forwarded"] == 60 + 2 * 60 + 60


def test_deltas_are_relative_to_the_parent_before_the_warm_start(checkpoint, data, tmp_path):
    trainer = make_trainer(checkpoint, tmp_path, data, save_children=1, mutable_parameters=["norms"])
    trainer.train()
    [delta] = trainer.result.artifacts.deltas
    parent = AutoModelForImageClassification.from_pretrained(checkpoint).eval()
    images = trainer.images.test
    with torch.inference_mode(), delta.apply_to(parent):
        logits = np.concatenate(
            [
                parent(**batch.inputs("cpu", torch.float32)).logits.numpy()
                for group in images.groups()
                for batch in group
            ]
        )
    np.testing.assert_allclose(logits, trainer.result.artifacts.delta_logits[0], atol=1e-4)


def test_logits_of_several_layers_are_left_alone_with_one_warning(data, tmp_path, caplog):
    save_tiny_checkpoint("timm_deit", tmp_path / "parent")
    trainer = make_trainer(tmp_path / "parent", tmp_path / "run", data, num_generations=1)
    with caplog.at_level("WARNING"):
        trainer.train()
    [line] = [record.getMessage() for record in caplog.records if "The head" in record.getMessage()]
    assert "cannot be fitted on features" in line and "2 layers make its logits" in line
    assert "steps" not in trainer.report and trainer.state.global_step == 1


def test_a_fitness_without_labels_is_refused(tmp_path):
    with pytest.raises(SMDError, match="warm_start fits the head on labelled images"):
        plain_arguments(str(tmp_path), warm_start=True, fitness="ood_auroc", recombination="best")


# ---- refit_head -------------------------------------------------------------------------------------------------------


def refitting(checkpoint, folder, data, **kwargs):
    defaults = dict(refit_head=True, mutable_parameters=["norms"], recombination="gauss_newton", elitism=False)
    return make_trainer(checkpoint, folder, data, warm_start=False, **defaults | kwargs)


def test_the_whole_head_is_fitted_after_the_last_generation_and_not_before(checkpoint, telling, tmp_path):
    trainer = refitting(checkpoint, tmp_path, telling, save_children=1, ensemble_size=2)
    trainer.train()
    steps, report = trainer.report["steps"], trainer.report
    assert steps["warm_start"] in ("parent", "temperature", "class prior", "class prior and temperature")
    assert any("test" in entry for name, entry in steps["baselines"].items() if name.startswith("head"))
    last = steps["refit_head"]
    crossed = trainer.result.first_steps[1].crossed
    assert last["chosen"] == max(crossed, key=crossed.get) and last["chosen"].startswith("head")
    assert last["test"]["nll"] == report["evolved"]["nll"] < report["parent"]["nll"] - 0.1
    parts = (
        steps["evolution"]["before"]["nll"] - report["parent"]["nll"],
        steps["evolution"]["difference"]["nll"]["estimate"],
        last["difference"]["nll"]["estimate"],
    )
    assert sum(parts) == pytest.approx(report["difference"]["nll"]["estimate"], abs=1e-5)
    # What was reported is what was saved.
    model = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    logits = np.concatenate(
        [
            model(**batch.inputs("cpu", torch.float32)).logits.detach().numpy()
            for group in trainer.images.test.groups()
            for batch in group
        ]
    )
    assert (logits.argmax(1) == trainer.images.test.labels).mean() == pytest.approx(report["evolved"]["accuracy"])
    assert "the head after them" in "\n".join(steps_lines(report))
    card = (tmp_path / "README.md").read_text()
    assert "after the last fit of the head" in card and "after the generations" in card
    costs = CostModel(trainer.evolution, trainer.images, trainer.args)
    assert costs.ahead(1).images == costs.ahead(0).images + 60
    # Two passes of all images, before and after.
    assert report["cost"]["images_forwarded"] >= 2 * 60 + 2 * 4 * 48


@pytest.mark.parametrize("selection", [0.2, 0.0])
def test_the_head_is_fitted_on_all_images_though_a_generation_sees_some(checkpoint, telling, tmp_path, selection):
    """Once, the last fit saw the images of the last generation alone."""
    options = dict(fitness_samples_per_generation=12, selection_fraction=selection, elitism=True)
    trainer = refitting(checkpoint, tmp_path / "one", telling, **options)
    trainer.train()
    assert trainer.result.refit_head.images == trainer.result.first_steps[1].images == 60


def test_the_last_head_stays_where_none_was_better_in_cross_validation(checkpoint, data, tmp_path, caplog):
    """The labels are drawn by chance."""
    trainer = refitting(checkpoint, tmp_path, data, num_generations=1)
    trainer.train()
    crossed = trainer.result.first_steps[1].crossed
    assert not max(crossed, key=crossed.get).startswith("head") and "refit_head" not in trainer.report["steps"]
    assert "better than all heads in cross-validation" in caplog.text


def test_many_images_choose_the_head_on_the_selection_images(checkpoint, telling, tmp_path, monkeypatch):
    monkeypatch.setattr(warm_start, "MOST_CROSSED", 10)
    trainer = refitting(checkpoint, tmp_path, telling, num_generations=1)
    trainer.train()
    _, first = trainer.result.first_steps
    assert not first.crossed and trainer.result.refit_head.chosen != "parent"
    without_heads = {name: each for name, each in first.fitness.items() if not name.startswith("head")}
    assert first.chosen == max(without_heads, key=without_heads.get)


def test_a_run_that_is_stopped_before_its_last_head_is_fitted_ends_in_the_same_weights(
    checkpoint, telling, tmp_path, monkeypatch
):
    refitting(checkpoint, tmp_path / "whole", telling).train()
    folder = tmp_path / "other"
    trainer = refitting(checkpoint, folder, telling)
    monkeypatch.setattr(WarmStart, "after", lambda steps: (_ for _ in ()).throw(Stop))
    with pytest.raises(Stop):
        trainer.train()
    monkeypatch.undo()
    for _ in ("goes on", "is finished already"):
        resumed = refitting(checkpoint, folder, telling)
        resumed.train(resume_from_checkpoint=True)
        assert evolved(folder) == evolved(tmp_path / "whole")
        whole, again = (json.loads((place / "gain_report.json").read_text()) for place in (tmp_path / "whole", folder))
        assert again["steps"] == whole["steps"]
        assert again["cost"]["images_forwarded"] == whole["cost"]["images_forwarded"]
