"""Depth estimation: metrics, depth maps, and runs from the command line to a pipeline."""

import json
from functools import partial

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from PIL import Image as PILImage
from transformers import pipeline

from smd_hf import SMDError
from smd_hf.cli.main import main
from smd_hf.data.batches import Batch, ImageBatches
from smd_hf.data.depth_maps import OUTSIDE, DepthCollator
from smd_hf.metrics.depth import DEPTH, INVERSE, NONE, DepthMeasure, depth_loss, depth_sums
from smd_hf.metrics.resampling import values
from smd_hf.models.load import load_image_processor, load_model
from smd_hf.scoring.evaluator import Evaluator, Variant
from smd_hf.scoring.runtimes.choose import RuntimeChoice
from smd_hf.tasks.depth_estimation import PIXELS, DepthEstimation, alignment_of
from tests.tasks import runs
from tests.tasks.depth import HEIGHT, WIDTH, make_rows, save_depth_model, tiny_backbone

make_trainer = partial(runs.make_trainer, per_device_eval_batch_size=4)
evolve = partial(runs.evolve, per_device_eval_batch_size=4)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return {kind: save_depth_model(tmp_path_factory.mktemp(kind), kind) for kind in ("relative", "metric")}


@pytest.fixture(scope="module")
def data():
    return make_rows(16), make_rows(10, seed=1)


def task_of(model, processor, **options):
    task = DepthEstimation()
    task.configure(model, None)
    task.processor = processor
    return task


@pytest.mark.parametrize("alignment", [NONE, DEPTH, INVERSE])
def test_metrics_are_those_of_a_plain_computation(alignment):
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 9, 300)
    found = depth * rng.uniform(0.7, 1.4, 300)
    prediction = {NONE: found, DEPTH: 3 - 2 * found, INVERSE: 5 / found - 7}[alignment]
    if alignment != NONE:
        goal = depth if alignment == DEPTH else 1 / depth
        slope, offset = np.polyfit(prediction, goal, 1)
        line = slope * prediction + offset
        loss = np.mean((line - goal) ** 2) / np.mean(goal**2)
        found = line.clip(1e-3) if alignment == DEPTH else 1 / line.clip(1 / depth.max())
    else:
        loss = np.mean((np.log(found) - np.log(depth)) ** 2)
    sums = np.array([depth_sums(torch.from_numpy(prediction), torch.from_numpy(depth), alignment)])
    measured = values(DepthMeasure(np.repeat(sums, 2, 0)), 2)
    assert measured == pytest.approx(
        {
            "loss": loss,
            "rmse": np.sqrt(np.mean((found - depth) ** 2)),
            "abs_rel": np.mean(np.abs(found - depth) / depth),
            "delta1": np.mean(np.maximum(found / depth, depth / found) < 1.25),
        }
    )


@pytest.mark.parametrize("alignment", [DEPTH, INVERSE])
def test_scale_and_shift_of_a_prediction_do_not_count(alignment):
    generator = torch.Generator().manual_seed(0)
    prediction, depth = (torch.rand(2, 50, generator=generator, dtype=torch.float64) + 0.5 for _ in range(2))
    depth[:, :9] = 0
    loss = depth_loss(alignment)
    assert torch.allclose(loss(prediction, depth), loss(7 * prediction - 3, depth))
    assert (loss(prediction, depth) > 0).all()
    unknown = prediction.clone()
    unknown[:, :9] = 99
    assert torch.allclose(loss(prediction, depth), loss(unknown, depth))
    prediction.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda each: loss(each, depth), prediction)


def test_pixels_of_a_step_are_known_pixels_of_the_resized_prediction(checkpoints, data):
    task = task_of(load_model(checkpoints["metric"]), load_image_processor(checkpoints["metric"]))
    collator = DepthCollator(task.processor, "image", "depth_map")
    batch = Batch(3, {}, collator([data[0][row] for row in range(2)])["labels"])
    prediction = torch.rand(2, 28, 42)
    found, depths = task.sampled(prediction, batch), task.sampled_labels(batch)
    assert found.shape == depths.shape == (2, PIXELS) and (depths > 0).all()
    for single, label, picked, depth, place in zip(prediction, batch.labels, found, depths, task._places(batch)):
        large = task.resized(single, (HEIGHT, WIDTH)).flatten()
        assert torch.equal(large[place], picked) and torch.equal(label.flatten()[place], depth)


def test_maps_of_several_sizes_count_as_they_do_alone(checkpoints):
    task = task_of(load_model(checkpoints["relative"]), load_image_processor(checkpoints["relative"]))
    collator = DepthCollator(task.processor, "image", "depth_map")
    rows = [make_rows(1, size=(20, 20))[0], make_rows(1, seed=1)[0]]
    labels = collator(rows)["labels"]
    assert labels.shape == (2, HEIGHT, WIDTH) and (labels[0, :, 20:] == OUTSIDE).all() and labels[0, 0, 1] == 0
    prediction = torch.rand(2, 28, 42)
    together = task.cell(prediction, labels, False)
    alone = [task.cell(prediction[i : i + 1], collator([rows[i]])["labels"], False) for i in range(2)]
    assert np.array_equal(together.sums, np.concatenate([each.sums for each in alone]))


def measured_by_pipeline(folder, rows, alignment):
    predict = pipeline("depth-estimation", str(folder))
    sums = []
    for row in rows:
        found, depth = predict(row["image"])["predicted_depth"].double(), torch.tensor(row["depth_map"]).double()
        known = (depth > 0) & depth.isfinite()
        sums.append(depth_sums(found[known], depth[known], alignment))
    return values(DepthMeasure(np.array(sums)), len(sums))


@pytest.mark.parametrize(
    "kind, options",
    [
        ("relative", {"recombination": "best", "fitness": "delta1", "sigma": 0.1}),
        ("metric", {"recombination": "gauss_newton", "sigma": 0.1}),
    ],
    ids=["relative-best", "metric-newton"],
)
def test_a_run_goes_from_the_trainer_to_a_pipeline(kind, options, checkpoints, data, tmp_path):
    trainer = evolve(checkpoints[kind], tmp_path, data, **options)
    report = json.loads((tmp_path / "gain_report.json").read_text())
    assert report["task"] == "depth-estimation" and report["evolved"]["n_test"] == 10
    assert report["difference"].keys() == {"abs_rel", "rmse", "delta1", "loss"}
    expected = measured_by_pipeline(tmp_path, data[1], INVERSE if kind == "relative" else NONE)
    assert {key: report["evolved"][key] for key in expected} == pytest.approx(expected, rel=1e-4)
    assert trainer.evaluate()["eval_rmse"] == pytest.approx(report["evolved"]["rmse"])
    card = (tmp_path / "README.md").read_text()
    assert "pipeline_tag: depth-estimation" in card and 'pipeline("depth-estimation"' in card
    said = "least squares scale and shift" if kind == "relative" else "without any alignment"
    assert said in card and said in report["notes"][0]
    if kind == "metric":
        assert report["generations"][0]["chosen"].startswith("step")
        assert report["evolved"]["loss"] < report["parent"]["loss"]


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_bytes(checkpoints, data, tmp_path):
    options = {"num_generations": 2, "recombination": "gauss_newton"}
    evolve(checkpoints["relative"], tmp_path / "whole", data, **options)
    trainer = make_trainer(checkpoints["relative"], tmp_path / "stopped", data, **options)

    runs.stop_in_its_midst(trainer)
    make_trainer(checkpoints["relative"], tmp_path / "stopped", data, **options).train(resume_from_checkpoint=True)
    first, second = (tmp_path / name / "model.safetensors" for name in ("whole", "stopped"))
    assert first.read_bytes() == second.read_bytes()


def test_the_command_line_evolves_and_evaluates(checkpoints, data, tmp_path, capsys):
    parent = str(checkpoints["relative"])
    argv, given, out = runs.command(parent, data, tmp_path)
    assert main([*argv, "--recombination", "best", "--fitness", "abs_rel", "--sigma", "0.1"]) == 0
    printed = capsys.readouterr().out
    assert "absolute relative error" in printed and "AutoModelForDepthEstimation.from_pretrained" in printed
    assert "by the least squares scale and shift" in printed
    assert main(["evaluate", "--model_name_or_path", out, "--against", parent, *given]) == 0
    printed = capsys.readouterr().out
    assert "RMSE" in printed and "by the least squares scale and shift" in printed
    assert main(["evaluate", "--model_name_or_path", out, "--depth_alignment", "none", *given]) == 0
    assert "without any alignment" in capsys.readouterr().out


@pytest.mark.parametrize(
    "depth, says",
    [
        (np.ones((10, 36)), "Its depth map has 36 x 10 pixels, and its image 36 x 24"),
        (np.full((HEIGHT, WIDTH), -2.0), "holds the depth -2; expected positive numbers"),
        (np.full((HEIGHT, WIDTH), np.nan), "has no pixel whose depth is known"),
        (np.ones((HEIGHT, WIDTH, 3)), "expected one channel of numbers"),
        (PILImage.new("RGB", (WIDTH, HEIGHT)), "an image of mode RGB"),
        ([[1.0], [1.0, 2.0]], "expected one channel of numbers"),
        (None, "Its depth map is missing"),
    ],
)
def test_what_is_no_depth_map(depth, says, data):
    collator = DepthCollator(None, "image", "depth_map")
    assert collator.problem(data[0][0]) is None
    assert says in collator.problem({**data[0][0], "depth_map": depth})


def test_a_bad_map_is_refused_before_scoring_or_skipped(checkpoints, data, tmp_path):
    rows = [dict(row) for row in data[0]]
    rows[5]["depth_map"] = (-np.ones((HEIGHT, WIDTH))).tolist()
    bad = Dataset.from_list(rows, features=data[0].features)
    with pytest.raises(SMDError, match=r"At index 5.*holds the depth -1"):
        make_trainer(checkpoints["relative"], tmp_path, (bad, data[1])).train()
    trainer = make_trainer(checkpoints["relative"], tmp_path, (bad, data[1]), on_bad_images="skip")
    assert trainer.images.left_out["train_dataset"] == 1


def test_maps_in_millimeters_are_scaled(checkpoints, tmp_path, caplog):
    millimeters = PILImage.fromarray(np.full((24, 36), 2500, np.uint16))
    rows = Dataset.from_dict({"image": [PILImage.new("RGB", (36, 24))] * 4, "depth": [millimeters] * 4})
    trainer = make_trainer(checkpoints["metric"], tmp_path, (rows, None), depth_scale=0.001)
    assert torch.allclose(trainer.data_collator([rows[0]])["labels"], torch.tensor(2.5))
    assert "hold integers" not in caplog.text
    make_trainer(checkpoints["metric"], tmp_path, (rows, None))
    assert "hold integers (up to 2500 in the first)" in caplog.text and "Set depth_scale" in caplog.text


@pytest.mark.parametrize(
    "options, says",
    [
        ({"depth_scale": -1.0}, "depth_scale is -1; expected a positive number"),
        ({"do_reduce_labels": True}, "do_reduce_labels is for image-segmentation, and the task is depth-estimation"),
        ({"fitness": "rsme"}, "no metric of depth-estimation.*Did you mean 'rmse'"),
        ({"label_column_name": "depths"}, "no depth column 'depths'"),
    ],
)
def test_wrong_arguments(options, says, checkpoints, data, tmp_path):
    with pytest.raises(SMDError, match=says):
        make_trainer(checkpoints["relative"], tmp_path, data, **options)


def test_a_processor_that_no_pipeline_takes_is_refused(checkpoints, data, tmp_path):
    processor = transformers.ViTImageProcessor(size={"height": 28, "width": 42})
    with pytest.raises(SMDError, match=r"ViTImageProcessor.*has no post_process_depth_estimation"):
        runs.EvolutionTrainer(
            str(checkpoints["relative"]), runs.arguments(tmp_path), data_collator=None, train_dataset=data[0],
            processing_class=processor,
        )  # fmt: skip


def test_the_configuration_says_what_is_predicted():
    backbone = tiny_backbone()
    kinds = {
        INVERSE: [
            transformers.DepthAnythingConfig(backbone_config=backbone),
            transformers.DPTConfig(),
            transformers.DPTConfig(backbone_config=transformers.BeitConfig()),
        ],
        NONE: [
            transformers.DepthAnythingConfig(backbone_config=backbone, depth_estimation_type="metric"),
            transformers.DPTConfig(backbone_config=backbone),
            transformers.GLPNConfig(),
            transformers.ZoeDepthConfig(),
            transformers.DepthProConfig(),
        ],
        DEPTH: [transformers.PromptDepthAnythingConfig(backbone_config=backbone)],
    }
    for alignment, configs in kinds.items():
        assert [alignment_of(each) for each in configs] == [alignment] * len(configs)


@pytest.mark.slow
def test_openvino_scores_as_eager_does(checkpoints, data):
    model, processor = load_model(checkpoints["metric"]), load_image_processor(checkpoints["metric"])
    task, collator = task_of(model, processor), DepthCollator(processor, "image", "depth_map")
    scores = []
    for runtime in ("eager", "openvino"):
        choice = RuntimeChoice(model, runtime, batch_size=5, read=task.prediction)
        evaluator = Evaluator(model, torch.device("cpu"), choice=choice, reading=task)
        [score] = evaluator.score([Variant("model")], ImageBatches(data[1], collator, 5, keep_labels=False))
        scores.append(values(task.measured(score), 10))
        assert evaluator.runtime.name == runtime
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)
