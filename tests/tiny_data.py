"""Tiny data sets of images of two classes: what the tests of images, batches and splits build upon."""

import io

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, Features
from PIL import Image

RGB = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)

FEATURES = Features({"image": datasets.Image(), "label": ClassLabel(names=["cat", "dog"])})


def png(value=0, size=(6, 5)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def image_dataset(count=8, features=FEATURES):
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(count)], "label": [i % 2 for i in range(count)]}
    return Dataset.from_dict(rows, features=features)
