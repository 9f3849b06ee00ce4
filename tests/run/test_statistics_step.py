"""A parent whose BatchNorm statistics fit other images than those at hand."""

import json

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from transformers import AutoModelForImageClassification

from smd_hf import EvolutionTrainer, SMDEnsembleForImageClassification
from smd_hf.models.checkpoints import weights_hash
from smd_hf.models.norm_statistics import NormStatistics
from smd_hf.reports.steps import steps_lines
from smd_hf.run import statistics_step
from smd_hf.run.statistics_step import FILE_NAME
from tests.plain import plain_arguments
from tests.tiny import label_names, save_tiny_checkpoint, tiny_images, tiny_processor


def labelled(model, count, seed):
    """Images, with the classes that the model predicts for them."""
    images = tiny_images(count, 16, seed)
    with torch.inference_mode():
        labels = model(**tiny_processor()(images, return_tensors="pt")).logits.argmax(-1).tolist()
    features = Features({"image": Image(), "label": ClassLabel(names=label_names(4))})
    return Dataset.from_dict({"image": images, "label": labels}, features=features)


@pytest.fixture(scope="module")
def shifted(tmp_path_factory):
    """A model that is right about all images, but for its statistics, and images to adapt to and to test on."""
    folder = tmp_path_factory.mktemp("parent")
    save_tiny_checkpoint("resnet", folder)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    images = tiny_processor()(tiny_images(80, 16, 5), return_tensors="pt")
    statistics = NormStatistics(model)
    with statistics.by_batch() as seen, torch.inference_mode():
        logits = model(**images).logits
    statistics.write(statistics_step.pooled([seen]))
    # Sure of its predictions, and of each class as often.
    with torch.no_grad():
        weight, bias = model.classifier[1].weight, model.classifier[1].bias
        bias -= logits.mean(0)
        weight *= 20
        bias *= 20
    train, test = labelled(model, 60, 1), labelled(model, 24, 2)
    rng = np.random.default_rng(0)
    before = statistics.arrays()
    statistics.write({name: array * rng.uniform(0.3, 3, array.shape) for name, array in before.items()})
    model.save_pretrained(folder)
    return folder, train, test


def make_trainer(shifted, folder, **kwargs):
    parent, train, test = shifted
    defaults = dict(warm_start=True, population_size=4, sigma=0.01, num_generations=1, use_cpu=True, disable_tqdm=True)
    args = plain_arguments(str(folder), per_device_eval_batch_size=16, **defaults | kwargs)
    return EvolutionTrainer(str(parent), args, train_dataset=train, eval_dataset=test)


@pytest.fixture(scope="module")
def run(shifted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    trainer = make_trainer(shifted, folder, save_children=1, ensemble_size=2)
    trainer.train()
    return trainer, folder


def evolved(folder):
    return AutoModelForImageClassification.from_pretrained(folder).eval()


def test_statistics_are_re_estimated_chosen_and_reported(run):
    trainer, folder = run
    steps = trainer.report["steps"]
    chosen = steps["statistics"]
    assert chosen.startswith("statistics re-estimated, share ")
    tried = {name: entry for name, entry in steps["baselines"].items() if name.startswith("statistics")}
    assert len(tried) == 4 and chosen == min(tried, key=lambda name: tried[name]["selection"])
    assert tried[chosen]["test"]["nll"] < trainer.report["parent"]["nll"] - 0.5
    # 48 images for the estimate, 12 that choose among five models; then the head, on all 60.
    assert steps["images_forwarded"] == 48 + 5 * 12 + 60
    # What was reported is in the model that was saved.
    arrays = NormStatistics(evolved(folder)).arrays()
    expected = trainer.result.statistics.arrays
    assert all(np.array_equal(arrays[name], array.astype(np.float32)) for name, array in expected.items())
    lines, card = "\n".join(steps_lines(trainer.report)), (folder / "README.md").read_text()
    assert f"{chosen} alone" in lines and "statistics re-estimated, then class prior" in lines
    assert "the statistics of BatchNorm layers were re-estimated" in card


def test_the_parts_of_the_gain_add_up(run):
    report = run[0].report
    steps = report["steps"]
    before = steps["evolution"]["before"]["nll"]
    last = steps["baselines"][steps["warm_start" if steps["warm_start"] != "parent" else "statistics"]]
    assert before == last["test"]["nll"]
    whole = last["difference"]["nll"]["estimate"] + steps["evolution"]["difference"]["nll"]["estimate"]
    assert whole == pytest.approx(report["difference"]["nll"]["estimate"])


def test_ensembles_and_deltas_have_the_statistics(run, shifted):
    trainer, folder = run
    ensemble = SMDEnsembleForImageClassification.from_pretrained(folder / "ensemble")
    expected = {name.rsplit(".", 1)[-1]: array for name, array in trainer.result.statistics.arrays.items()}
    found = [array.double().numpy() for name, array in ensemble.state_dict().items() if name.endswith("running_mean")]
    assert any(np.array_equal(array, expected["running_mean"].astype(np.float32)) for array in found)
    [delta] = trainer.result.artifacts.deltas
    with delta.apply_to(evolved(shifted[0])) as _:
        assert any(name.endswith("running_var") for name in delta.changes)


@pytest.mark.parametrize("found", [True, False])
def test_a_run_that_goes_on_has_the_same_bytes(run, shifted, tmp_path, monkeypatch, found):
    make_trainer(shifted, tmp_path / "whole", num_generations=2).train()
    make_trainer(shifted, tmp_path / "part").train()
    if found:
        # Nothing is estimated again.
        monkeypatch.setattr(statistics_step, "pooled", None)
    else:
        (tmp_path / "part" / "ledger" / FILE_NAME).write_bytes(b"nothing")
    make_trainer(shifted, tmp_path / "part", num_generations=2).train(resume_from_checkpoint=True)
    assert weights_hash(evolved(tmp_path / "part")) == weights_hash(evolved(tmp_path / "whole"))
    whole, again = (
        json.loads((tmp_path / name / "gain_report.json").read_text())["steps"] for name in ("whole", "part")
    )
    assert whole == again


def test_a_compiled_graph_takes_the_new_statistics(run, shifted, tmp_path):
    trainer = make_trainer(shifted, tmp_path, runtime="openvino")
    trainer.train()
    steps, eager = trainer.report["steps"], run[0].report["steps"]
    assert trainer.evaluator.runtime.name == "openvino" and steps["statistics"] == eager["statistics"]
    for name in (steps["statistics"], "class prior"):
        assert steps["baselines"][name]["test"]["nll"] == pytest.approx(
            eager["baselines"][name]["test"]["nll"], rel=1e-3
        )
    first = json.loads((tmp_path / "children.jsonl").read_text().splitlines()[0])
    chosen = steps["warm_start"] if steps["warm_start"] != "parent" else steps["statistics"]
    assert -first["selection"]["parent"] == pytest.approx(steps["baselines"][chosen]["selection"], rel=1e-3)


def test_a_parent_that_fits_the_images_keeps_its_statistics(shifted, tmp_path):
    """No statistics are better than those by which the labels were made."""
    parent, train, _test = shifted
    model = evolved(parent)
    statistics = NormStatistics(model)
    images = tiny_processor()([row["image"] for row in train], return_tensors="pt")
    with statistics.by_batch() as seen, torch.inference_mode():
        model(**images)
    statistics.write(statistics_step.pooled([seen]))
    right = tuple(labelled(model, count, seed) for count, seed in ((60, 1), (24, 2)))
    tiny_processor().save_pretrained(tmp_path / "parent")
    model.save_pretrained(tmp_path / "parent")
    trainer = make_trainer((tmp_path / "parent", *right), tmp_path / "run", fitness="accuracy")
    trainer.train()
    assert trainer.report["steps"]["statistics"] == "parent"
    arrays = NormStatistics(evolved(tmp_path / "run")).arrays()
    assert all(np.array_equal(arrays[name], array) for name, array in statistics.arrays().items())


def test_without_warm_start_and_for_models_without_such_layers_there_is_no_such_step(shifted, tmp_path):
    trainer = make_trainer(shifted, tmp_path / "off", warm_start=False)
    trainer.train()
    assert trainer.result.statistics is None and "steps" not in trainer.report
    save_tiny_checkpoint("vit", tmp_path / "vit")
    trainer = make_trainer((tmp_path / "vit", *shifted[1:]), tmp_path / "run")
    trainer.train()
    assert trainer.result.statistics is None and "statistics" not in trainer.report["steps"]
