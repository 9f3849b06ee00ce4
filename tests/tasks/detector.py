"""Tiny detectors and images with boxes, for tests."""

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

NAMES = ["red", "green", "blue"]
SIZE = 48


def save_detector(folder):
    torch.manual_seed(0)
    config = YolosConfig(
        image_size=[SIZE, SIZE],
        patch_size=8,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        num_detection_tokens=6,
        id2label=dict(enumerate(NAMES)),
        label2id={name: place for place, name in enumerate(NAMES)},
    )
    model = YolosForObjectDetection(config).eval()
    # Random, so that children differ in what they detect.
    for head in (model.class_labels_classifier, model.bbox_predictor):
        torch.nn.init.normal_(head.layers[-1].weight, std=0.5)
    model.save_pretrained(folder)
    YolosImageProcessor(size={"height": SIZE, "width": SIZE}, do_pad=False).save_pretrained(folder)
    return folder


def make_rows(count, seed=0, width=40, height=30):
    """Images of colored rectangles, and their boxes; the last has none."""
    rng = np.random.default_rng(seed)
    rows = {"image": [], "objects": []}
    for number in range(count):
        pixels = rng.integers(0, 40, (height, width, 3))
        objects = {"bbox": [], "category": []}
        for _ in range(0 if number == count - 1 else rng.integers(1, 3)):
            x, y, color = rng.integers(0, width - 14), rng.integers(0, height - 14), rng.integers(0, 3)
            pixels[y : y + 12, x : x + 12, color] += 200
            objects["bbox"].append([float(x), float(y), 12.0, 12.0])
            objects["category"].append(int(color))
        rows["image"].append(PILImage.fromarray(pixels.clip(0, 255).astype(np.uint8)))
        rows["objects"].append(objects)
    objects = {"bbox": List(List(Value("float64"))), "category": List(ClassLabel(names=NAMES))}
    return Dataset.from_dict(rows, features=Features({"image": Image(), "objects": objects}))
