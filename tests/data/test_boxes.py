"""Images with boxes: crowds, and images that come in several sizes."""

import numpy as np
import pytest
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from transformers import DetrImageProcessor, YolosImageProcessor

from smd_hf import SMDError
from smd_hf.data.boxes import BoxCollator, find_objects

NAMES = {0: "cell", 1: "plate"}
FIXED = {"height": 32, "width": 32}
BY_EDGE = {"shortest_edge": 32, "longest_edge": 64}
BOX = {"bbox": [[2.0, 2.0, 8.0, 4.0], [4.0, 4.0, 16.0, 8.0]], "category": [0, 1], "iscrowd": [1, 0]}
FEATURES = Features(
    {
        "image": Image(),
        "objects": {
            "bbox": List(List(Value("float64"))),
            "category": List(Value("int64")),
            "iscrowd": List(Value("int64")),
        },
    }
)


def rows_of(sizes, objects=BOX):
    images = [PILImage.new("RGB", size, (90, 90, 90)) for size in sizes]
    return Dataset.from_dict({"image": images, "objects": [objects] * len(sizes)}, features=FEATURES)


def collator_for(dataset, size=FIXED, processor=YolosImageProcessor):
    return BoxCollator(processor(size=size), "image", find_objects(dataset, "objects", NAMES))


def test_a_crowd_follows_the_objects():
    dataset = rows_of([(40, 20)])
    labels = collator_for(dataset)([dataset[0]])["labels"]
    np.testing.assert_allclose(labels[0], [[1, 0.3, 0.4, 0.4, 0.4], [-2, 0.15, 0.2, 0.2, 0.2]])


@pytest.mark.parametrize("marks", [[1], [0, 2]])
def test_wrong_marks_of_crowds_are_a_problem(marks):
    dataset = rows_of([(40, 20)], BOX | {"iscrowd": marks})
    problem = collator_for(dataset).problem(dataset[0])
    assert "for 2 boxes. Give one of 0 and 1 for each box" in problem


def test_sizes_are_told_apart_from_the_headers_of_files(monkeypatch):
    same, several = rows_of([(40, 20), (80, 40)]), rows_of([(40, 20), (80, 40), (20, 40)])
    assert collator_for(several).sizes_differ([same, several]) is None
    by_edge = collator_for(several, BY_EDGE, DetrImageProcessor)
    monkeypatch.setattr(PILImage.Image, "load", lambda *_: pytest.fail("An image was decoded."), raising=True)
    monkeypatch.setattr(BoxCollator, "shape", lambda _, size: (32, 64) if size[0] > size[1] else (64, 32))
    assert by_edge.sizes_differ([same]) is None
    assert by_edge.sizes_differ([same, several]) == "32 x 64 and 64 x 32"


def test_a_turned_photo_has_the_size_that_is_read(tmp_path):
    exif = PILImage.Exif()
    exif[0x0112] = 6
    PILImage.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    dataset = Dataset.from_dict({"image": [str(tmp_path / "turned.jpg")], "objects": [BOX]}, features=FEATURES)
    by_edge = collator_for(dataset, BY_EDGE, DetrImageProcessor)
    assert by_edge.sizes_differ([dataset, rows_of([(20, 40)])]) is None
    assert by_edge([dataset[0]])["pixel_values"].shape[-2:] == (64, 32)


def test_images_of_several_sizes_are_never_padded():
    dataset = rows_of([(40, 20), (20, 40)])
    by_edge = collator_for(dataset, BY_EDGE, DetrImageProcessor)
    with pytest.raises(SMDError, match=r"32 x 64 and 64 x 32\. Score one image at a time"):
        by_edge([dataset[0], dataset[1]])
