"""Test images with their truth and what parent and evolved model predict: what is drawn, and where it lands."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from smd_hf.metrics.depth import INVERSE, NONE
from smd_hf.reports.predictions import Predictions, plot_predictions
from smd_hf.tasks.depth_estimation import DepthEstimation
from smd_hf.tasks.detection import ObjectDetection
from smd_hf.tasks.multi_label import MultiLabelClassification
from smd_hf.tasks.pictures import Boxes, ClassMap, DepthMap, Pictured
from smd_hf.tasks.segmentation import SemanticSegmentation
from tests.tasks import runs
from tests.tasks.segmenter import make_rows, save_segmenter


class TestPictures:
    def test_a_segmentation_is_drawn_at_the_size_of_the_mask(self):
        logits = torch.zeros(1, 3, 2, 2)
        logits[0, 2, :, 1] = 5
        labels = torch.tensor([[[0, 1, 2, 255]] * 4])
        truth, found = SemanticSegmentation().picture(logits, labels)
        assert truth.classes.tolist() == [[0, 1, 2, -1]] * 4
        assert found.classes.shape == (4, 4) and found.classes[:, 3].tolist() == [2] * 4 and found.classes[0, 0] == 0

    @pytest.mark.parametrize("alignment, limits", [(NONE, (2.0, 4.0)), (INVERSE, None)])
    def test_depths_in_a_unit_share_their_colors_and_others_do_not(self, alignment, limits):
        task = DepthEstimation()
        task.alignment = alignment
        truth, found = task.picture(torch.full((1, 2, 2), 3.0), torch.tensor([[[2.0, 4.0], [0.0, -1.0]]]))
        expected = np.array([[2.0, 4.0], [np.nan, np.nan]])
        np.testing.assert_allclose(truth.values, 1 / expected if alignment == INVERSE else expected)
        assert truth.limits == found.limits == limits and (found.values == 3).all()

    def test_boxes_are_those_of_half_confidence(self):
        task = ObjectDetection()
        task.set_loss = SimpleNamespace(classes=2)
        prediction = torch.tensor([[[4.0, 0.0, 0.0, 0.5, 0.5, 0.2, 0.4], [0.0, 0.0, 4.0, 0.1, 0.1, 0.1, 0.1]]])
        labels = torch.tensor([[[1.0, 0.25, 0.5, 0.5, 1.0], [-1.0, 0, 0, 0, 0]]], dtype=torch.float64)
        truth, found = task.picture(prediction, labels)
        assert truth.classes.tolist() == [1] and truth.corners.tolist() == [[0.0, 0.0, 0.5, 1.0]]
        assert found.classes.tolist() == [0] and found.scores[0] > 0.9
        np.testing.assert_allclose(found.corners, [[0.4, 0.3, 0.6, 0.7]], atol=1e-6)

    def test_labels_of_an_image_are_not_drawn(self):
        assert not isinstance(MultiLabelClassification(), Pictured)


def drawn(pictures, tmp_path, name):
    image = np.zeros((6, 8, 3))
    both = [Predictions([image], [pictures[0]], [each]) for each in pictures[1:]]
    with Image.open(plot_predictions(*both, {0: "cell", 1: "other"}, tmp_path / f"{name}.png")) as found:
        return np.asarray(found.convert("RGB"))


def test_what_the_models_predict_shows_in_the_plot(tmp_path):
    boxes = [Boxes(np.array([[0.1, 0.1, high, high]]), np.array([0]), np.array([0.7])) for high in (0.5, 0.5, 0.9)]
    half = np.repeat([[0] * 8, [1] * 8], 3, axis=0)
    maps = [ClassMap(each) for each in (half, half, 1 - half)]
    depths = [DepthMap(np.arange(48.0).reshape(6, 8) * sign) for sign in (1, 1, -1)]
    for name, (truth, parent, evolved) in {"boxes": boxes, "maps": maps, "depths": depths}.items():
        changed = drawn((truth, parent, evolved), tmp_path, name)
        same = drawn((truth, parent, parent), tmp_path, name)
        assert changed.shape == same.shape and changed.shape[1] == 1100
        columns = np.flatnonzero((changed != same).any((0, 2)))
        assert len(columns) and columns.min() > 0.7 * changed.shape[1]  # only the last of the four columns


def test_a_run_draws_its_first_parent_and_its_evolved_model(tmp_path):
    data = make_rows(8), make_rows(6, seed=1)
    options = {"recombination": "best", "fitness": "mean_iou", "per_device_eval_batch_size": 4, "sigma": 0.3}
    trainer = runs.evolve(save_segmenter(tmp_path / "parent"), tmp_path / "out", data, **options)
    with Image.open(tmp_path / "out" / "predictions.png") as figure:
        assert figure.size[0] == 1100
    assert "(predictions.png)" in (tmp_path / "out" / "README.md").read_text()
    before, after = trainer.result.drawn_before, trainer.result.drawn_after
    assert len(before.images) == 3 and before.images[0].shape[2] == 3
    for first, second in zip(before.truth, after.truth):
        assert np.array_equal(first.classes, second.classes)
    assert any(not np.array_equal(first.classes, second.classes) for first, second in zip(before.found, after.found))
