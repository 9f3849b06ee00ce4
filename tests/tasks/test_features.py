"""Image feature extraction: metrics of neighbours, and runs from the command line to a pipeline."""

import json
from functools import partial

import numpy as np
import pytest
import transformers
from datasets import Dataset, Features, Image, Value
from sklearn.neighbors import NearestNeighbors
from transformers import pipeline

from smd_hf import SMDError
from smd_hf.cli.main import main
from smd_hf.metrics.resampling import values
from smd_hf.metrics.retrieval import TEMPERATURE, RetrievalMeasure
from smd_hf.models.declared import declared_kind
from smd_hf.models.tasks import CLASSIFIER
from tests.tasks import runs
from tests.tasks.backbone import save_backbone
from tests.test_trainer import make_dataset

TASK = "image-feature-extraction"
make_trainer = partial(runs.make_trainer, task=TASK, sigma=0.3, per_device_eval_batch_size=4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def data():
    return make_dataset(24, 1), make_dataset(16, 2)


def test_metrics_are_those_of_scikit_learns_neighbours():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 60)
    labels[0] = 9  # no other image has it, so it does not count
    features = (rng.normal(size=(60, 8)) + 0.8 * np.eye(10)[labels][:, :8]).astype(np.float32)
    found = values(RetrievalMeasure(features, labels), 60)
    distances, places = NearestNeighbors(n_neighbors=11, metric="cosine").fit(features).kneighbors(features)
    near, votes = labels[places[:, 1:]], np.exp((1 - distances[:, 1:]) / TEMPERATURE)
    for k in (1, 5, 10):
        assert found[f"recall_at_{k}"] == pytest.approx((near[1:, :k] == labels[1:, None]).any(1).mean())
    scores = np.stack([(votes * (near == each)).sum(1) for each in range(10)], 1)
    assert found["knn_accuracy"] == pytest.approx((scores.argmax(1) == labels)[1:].mean())


def test_images_are_drawn_and_their_neighbours_stay():
    rng = np.random.default_rng(0)
    labels, features = rng.integers(0, 3, 20), rng.normal(size=(20, 4)).astype(np.float32)
    measure = RetrievalMeasure(features, labels)
    weights = rng.multinomial(20, np.full(20, 1 / 20), size=3).astype(float)
    expected = [np.repeat(measure.right[:, 0], row.astype(int)).mean() for row in weights]
    assert measure(weights)["recall_at_1"] == pytest.approx(expected)
    assert values(RetrievalMeasure(100 * features, labels), 20) == values(measure, 20)


def test_a_run_goes_from_the_trainer_to_a_pipeline(checkpoint, data, tmp_path):
    trainer = make_trainer(checkpoint, tmp_path, data, elitism=False)
    trainer.train()
    report = json.loads((tmp_path / "gain_report.json").read_text())
    assert report["task"] == TASK and report["fitness"] == "recall_at_1" and report["recombination"] == "top_k_sum"
    assert report["difference"].keys() == {"recall_at_1", "recall_at_5", "recall_at_10", "knn_accuracy"}
    assert trainer.evaluate()["eval_knn_accuracy"] == pytest.approx(report["evolved"]["knn_accuracy"])
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["Dinov2Model"]
    card = (tmp_path / "README.md").read_text()
    assert f"pipeline_tag: {TASK}" in card and "recall@1 (%)" in card and "Features are the model" in card
    extract = pipeline(TASK, str(tmp_path))
    features = np.array([extract(row["image"], pool=True)[0] for row in data[1]], dtype=np.float32)
    found = values(RetrievalMeasure(features, np.array(data[1]["label"])), 16)
    assert found == pytest.approx({key: report["evolved"][key] for key in found})


def test_the_command_line_evolves_and_evaluates(checkpoint, data, tmp_path, capsys):
    parent, task = str(checkpoint), ["--task", TASK]
    argv, given, out = runs.command(parent, data, tmp_path)
    assert main([*argv, *task, "--sigma", "0.3", "--fitness", "knn_accuracy"]) == 0
    printed = capsys.readouterr().out
    assert "nearest-neighbour accuracy (%)" in printed and "AutoModel.from_pretrained" in printed
    assert main(["evaluate", "--model_name_or_path", out, "--against", parent, *given, *task]) == 0
    assert "recall@5 (%)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, says",
    [
        ({"recombination": "gauss_newton"}, "depends on the features of all images, and on their order alone"),
        ({"fitness": "recall_at_2"}, "fitness='recall_at_2' is no metric of image-feature-extraction"),
        ({"label_column_name": "labels"}, "no label column 'labels'"),
    ],
)
def test_wrong_arguments(options, says, checkpoint, data, tmp_path):
    with pytest.raises(SMDError, match=says):
        make_trainer(checkpoint, tmp_path, data, decomposition="random", **options)


def test_labels_that_no_two_images_share_are_refused(checkpoint, data, tmp_path):
    alone = data[0].remove_columns("label").add_column("label", list(range(len(data[0]))))
    with pytest.raises(SMDError, match=r"No two images of train_dataset have the same label .* \(24 images\)"):
        make_trainer(checkpoint, tmp_path, (alone, None))


def test_bad_labels_are_refused_before_scoring_or_skipped(checkpoint, data, tmp_path):
    names = ["ab"[row % 2] for row in range(24)]
    rows = {"image": data[0]["image"], "label": [*names[:3], None, *names[4:]]}
    bad = Dataset.from_dict(rows, features=Features({"image": Image(), "label": Value("string")}))
    with pytest.raises(SMDError, match=r"At index 3.*Its label is missing"):
        make_trainer(checkpoint, tmp_path, (bad, None)).train()
    trainer = make_trainer(checkpoint, tmp_path, (bad, None), on_bad_images="skip")
    assert trainer.images.left_out["train_dataset"] == 1


def test_the_card_of_a_backbone_does_not_choose_the_task(tmp_path):
    save_backbone(tmp_path)
    (tmp_path / "README.md").write_text(f"---\npipeline_tag: {TASK}\n---\n")
    assert declared_kind(str(tmp_path), json.loads((tmp_path / "config.json").read_text()), {}) is CLASSIFIER


def test_a_classifier_is_refused(data, tmp_path):
    config = transformers.ViTConfig(image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=1)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(
        SMDError, match=r"is a checkpoint for image classification .* Choose a backbone without a head"
    ):
        make_trainer(tmp_path, tmp_path / "out", data)
