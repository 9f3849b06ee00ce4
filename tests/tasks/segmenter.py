"""A tiny SegFormer and images with masks, for tests."""

import numpy as np
import torch
from datasets import Dataset, Features, Image
from PIL import Image as PILImage
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

CLASSES = 3


def save_segmenter(folder):
    torch.manual_seed(0)
    config = SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        id2label={0: "sky", 1: "road", 2: "tree"},
        label2id={"sky": 0, "road": 1, "tree": 2},
    )
    model = SegformerForSemanticSegmentation(config)
    # Large enough that children differ in what they predict.
    torch.nn.init.normal_(model.decode_head.classifier.weight, std=1.0)
    model.save_pretrained(folder)
    SegformerImageProcessor(size={"height": 32, "width": 48}, do_reduce_labels=False).save_pretrained(folder)
    return folder


def make_rows(count, seed=0, size=(24, 36)):
    """Images whose color says what is where, and their masks, with some pixels unlabelled."""
    rng = np.random.default_rng(seed)
    rows = {"image": [], "annotation": []}
    for _ in range(count):
        mask = np.repeat(np.repeat(rng.integers(0, CLASSES, (4, 6)), 6, 0), 6, 1).astype(np.uint8)[
            : size[0], : size[1]
        ]
        image = np.stack([60 + 80 * (mask == each) for each in range(3)], -1) + rng.integers(0, 30, (*mask.shape, 3))
        mask[0] = 255
        rows["image"].append(PILImage.fromarray(image.astype(np.uint8)))
        rows["annotation"].append(PILImage.fromarray(mask))
    return Dataset.from_dict(rows, features=Features({"image": Image(), "annotation": Image()}))
