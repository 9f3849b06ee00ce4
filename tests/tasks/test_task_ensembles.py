"""Ensembles of multi-label, zero-shot and depth models: what is measured is what `pipeline` predicts where smd_hf is not installed."""

import json

import numpy as np
import pytest
import torch
from transformers import DepthProConfig, pipeline

import smd_hf
from smd_hf import SMDError
from smd_hf.cli.main import main
from smd_hf.models.load import load_image_processor
from smd_hf.tasks.depth_estimation import DepthEstimation
from tests.tasks import depth, runs, tagged, two_towers
from tests.tasks.stranger import stranger  # noqa: F401

TEXTS = {"candidate_labels": two_towers.NAMES, "hypothesis_template": "a {}"}
# How a checkpoint and its images are made, the arguments of a run, the task of its pipeline and what that is called with.
CASES = {
    "multi_label": (tagged.save_tiny, tagged.make_rows, {"fitness": "f1_macro"}, "image-classification", {}),
    "zero_shot": (two_towers.save_two_towers, two_towers.make_rows, TEXTS, "zero-shot-image-classification", TEXTS),
    "depth": (depth.save_depth_model, depth.make_rows, {"fitness": "rmse"}, "depth-estimation", {}),
}


@pytest.fixture(scope="module", params=CASES)
def run(request, tmp_path_factory):
    """Name of the case, its test images, and the output folder and report of a run with an ensemble of three children."""
    save, make_rows, options, _, _ = CASES[request.param]
    checkpoint, folder = save(tmp_path_factory.mktemp("parent")), tmp_path_factory.mktemp("out")
    data = make_rows(16), make_rows(10, seed=1)
    options = {
        "recombination": "best",
        "sigma": 0.1,
        "ensemble_selection": "top_k",
        "per_device_eval_batch_size": 5,
    } | options
    trainer = runs.evolve(checkpoint, folder, data, ensemble_size=3, **options)
    return request.param, data[1], folder, trainer.report, checkpoint


def expected(case, members, inputs):
    """The mean of the members' predictions for one image, as each task means it."""
    found = [member(**inputs) for member in members]
    if case == "depth":
        return torch.stack([each.predicted_depth for each in found]).mean(0)[0]
    if case == "zero_shot":
        return torch.stack([each.logits_per_image.softmax(-1) for each in found]).mean(0)[0]
    return torch.stack([each.logits.sigmoid() for each in found]).mean(0)[0]


def inputs_of(case, folder, image):
    processor = load_image_processor(folder)
    inputs = dict(getattr(processor, "image_processor", processor)(image, return_tensors="pt"))
    if case == "zero_shot":
        tokenizer = load_image_processor(folder, model=smd_hf.load(folder.parent)).tokenizer
        inputs |= tokenizer([f"a {name}" for name in TEXTS["candidate_labels"]], return_tensors="pt", padding=True)
    return inputs


@torch.no_grad()
def test_a_pipeline_predicts_the_mean_of_the_members(run):
    case, images, folder, report, _ = run
    assert report["ensemble"]["n_test"] == 10 and report["ensemble_members"]["size"] == 3
    card = (folder / "ensemble" / "README.md").read_text()
    tag, given = CASES[case][3:]
    assert f"pipeline_tag: {tag}" in card and "trust_remote_code=True)" in card
    ensemble = smd_hf.load(folder / "ensemble")
    inputs = inputs_of(case, folder / "ensemble", images[0]["image"])
    mean = expected(case, [ensemble.member(number) for number in range(3)], inputs)
    found = pipeline(tag, str(folder / "ensemble"), trust_remote_code=True)(images[0]["image"], **given)
    if case == "depth":
        torch.testing.assert_close(ensemble(**inputs).predicted_depth[0], mean)
        assert found["predicted_depth"].shape == (depth.HEIGHT, depth.WIDTH)
    else:
        scores = {each["label"]: each["score"] for each in found}
        names = report["zero_shot"]["candidate_labels"] if case == "zero_shot" else tagged.NAMES
        assert [scores[name] for name in names] == pytest.approx(mean.tolist(), abs=1e-6)


@pytest.mark.slow
def test_a_stranger_gets_the_same_from_the_hub(run, stranger):  # noqa: F811
    case, images, folder, _, _ = run
    tag, given = CASES[case][3:]
    found = stranger.predict(tag, folder / "ensemble", images[0]["image"], **given)
    here = pipeline(tag, str(folder / "ensemble"))(images[0]["image"], **given)
    if case == "depth":
        np.testing.assert_allclose(found["predicted_depth"], here["predicted_depth"], rtol=1e-5)
    else:
        scores = {each["label"]: each["score"] for each in here}
        assert {each["label"]: each["score"] for each in found} == pytest.approx(scores, abs=1e-6)


def test_the_command_line_evaluates_what_was_measured(run, tmp_path):
    case, images, folder, report, checkpoint = run
    images.to_parquet(tmp_path / "test.parquet")
    argv = ["evaluate", "--model_name_or_path", str(folder / "ensemble"), "--against", str(checkpoint)]
    argv += ["--validation_file", str(tmp_path / "test.parquet"), "--output_file", str(tmp_path / "found.json")]
    if case == "zero_shot":
        argv += [
            "--candidate_labels",
            *TEXTS["candidate_labels"],
            "--hypothesis_template",
            TEXTS["hypothesis_template"],
        ]
    assert main([*argv, "--disable_tqdm", "True"]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    scores = found["candidate"] if case == "zero_shot" else found["scores"]
    for key in {"multi_label": ["f1_macro", "loss"], "zero_shot": ["nll"], "depth": ["rmse", "loss"]}[case]:
        assert scores[key] == pytest.approx(report["ensemble"][key], rel=1e-4)


def test_an_ensemble_of_depths_has_no_loss(run):
    case, images, folder, _, _ = run
    if case == "zero_shot":
        return
    ensemble = smd_hf.load(folder / "ensemble")
    inputs = inputs_of(case, folder / "ensemble", images[0]["image"])
    if case == "depth":
        with pytest.raises(ValueError, match="no loss: leave labels out"):
            ensemble(**inputs, labels=torch.zeros(1))
        return
    output = ensemble(**inputs, labels=torch.tensor([[1, 0, 1]]))
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(output.logits, torch.tensor([[1.0, 0.0, 1.0]]))
    assert output.loss == wanted


def test_combinations_are_those_of_the_task(run, tmp_path):
    case, images, _, _, checkpoint = run
    wrong = "majority_vote" if case == "depth" else "mean"
    options = CASES[case][2] | {"ensemble_size": 2, "ensemble_combination": wrong}
    with pytest.raises(SMDError, match=f"ensemble_combination is '{wrong}'; expected one of mean"):
        runs.make_trainer(checkpoint, tmp_path, (images, images), **options)


def test_models_whose_predictions_cannot_be_combined(tmp_path):
    checkpoint = two_towers.save_two_towers(tmp_path / "siglip", "SiglipModel")
    rows = two_towers.make_rows(6)
    with pytest.raises(SMDError, match="there is none of SiglipModel: transformers' pipeline pads texts"):
        runs.make_trainer(checkpoint, tmp_path / "out", (rows, rows), ensemble_size=2)

    class Depths:
        config = DepthProConfig(use_fov_model=True)

    task = DepthEstimation()
    task.configure(Depths(), arguments := runs.arguments(tmp_path, ensemble_size=0))
    assert arguments.ensemble_size == 0
    with pytest.raises(SMDError, match="there is none of Depths: it predicts depth and the field of view together"):
        task.configure(Depths(), runs.arguments(tmp_path, ensemble_size=2))
