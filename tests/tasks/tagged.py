"""A tiny multi-label classifier and images with several labels, for tests."""

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

NAMES = ["red", "green", "blue"]


def save_tiny(folder, names=NAMES, problem_type="multi_label_classification"):
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        problem_type=problem_type,
        id2label=dict(enumerate(names)),
        label2id={name: place for place, name in enumerate(names)},
    )
    model = ResNetForImageClassification(config).eval()
    # Logits on both sides of 0, so that children differ in what they predict.
    torch.nn.init.normal_(model.classifier[1].weight, std=2.0)
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def make_rows(count, seed=0):
    """Images of stripes of some of the colors, and which: as names, as numbers of another order, and as columns."""
    rng = np.random.default_rng(seed)
    rows = {"image": [], "labels": [], "numbers": [], **{name: [] for name in NAMES}}
    for _ in range(count):
        there = rng.random(3) < 0.5
        pixels = rng.integers(0, 60, (12, 12, 3))
        for color in np.flatnonzero(there):
            pixels[color * 4 : color * 4 + 4, :, color] += 180
        rows["image"].append(PILImage.fromarray(pixels.astype(np.uint8)))
        rows["labels"].append([NAMES[color] for color in np.flatnonzero(there)])
        rows["numbers"].append([2 - int(color) for color in np.flatnonzero(there)])
        for color, name in enumerate(NAMES):
            rows[name].append(int(there[color]))
    features = Features(
        {"image": Image(), "labels": List(Value("string")), "numbers": List(ClassLabel(names=NAMES[::-1]))}
        | {name: Value("int64") for name in NAMES}
    )
    return Dataset.from_dict(rows, features=features)
