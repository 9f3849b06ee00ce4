"""The detector of detection.py, and how it is trained by gradients."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import load_file
from shift import DEVICE
from torch import nn
from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessor, TimmBackboneConfig

from smd_hf.data.batches import ImageBatches
from smd_hf.data.boxes import BoxCollator, find_objects

CLASSES = ["Platelets", "RBC", "WBC"]
SIZE = {"height": 192, "width": 256}
"""Of the input: multiples of 32, of the images' own shape, and small enough to train on two cores."""
BATCH = 8
SMALLEST_CROP = 0.7
"""Of a side, when the parent trains."""


def build(backbone: Path) -> RTDetrForObjectDetection:
    """A small RT-DETR whose backbone has the weights of a timm checkpoint of the same architecture."""
    name = json.loads((backbone / "config.json").read_text())["architecture"]
    body = TimmBackboneConfig(backbone=name, use_pretrained_backbone=False, out_indices=(2, 3, 4))
    labels = dict(enumerate(CLASSES))
    width = 128
    config = RTDetrConfig(
        backbone_config=body, freeze_backbone_batch_norms=False, encoder_in_channels=[40, 112, 320], d_model=width,
        encoder_hidden_dim=width, decoder_in_channels=[width] * 3, encoder_ffn_dim=512, decoder_ffn_dim=512,
        decoder_layers=3, num_queries=100, num_denoising=50, initializer_bias_prior_prob=0.01, id2label=labels,
        label2id={name: number for number, name in labels.items()},
    )  # fmt: skip
    model = RTDetrForObjectDetection(config)
    weights = {
        key.removeprefix("timm_model."): value for key, value in load_file(backbone / "model.safetensors").items()
    }
    timm_model: Any = next(part for name, part in model.named_modules() if name.endswith("_backbone"))
    missing = timm_model.load_state_dict(weights, strict=False).missing_keys
    assert not missing, missing
    return model


def processor() -> RTDetrImageProcessor:
    # As the EfficientNet was trained.
    return RTDetrImageProcessor(size=SIZE, do_normalize=True, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def batches(images: Dataset, size: int = BATCH) -> ImageBatches:
    columns = find_objects(images, "objects", dict(enumerate(CLASSES)))
    return ImageBatches(images, BoxCollator(processor(), "image", columns), size, keep_labels=False)


def gradient_steps(
    model: Any, data: Dataset, epochs: int, rate: float, choose: Callable, seed: int = 0, crops: bool = False
) -> Any:
    """AdamW on the model's own loss, with random flips; `choose` takes the named parameters that are trained."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)  # of the noise in RT-DETR's own training
    model.to(DEVICE, memory_format=torch.channels_last)  # a third faster on a CPU
    chosen = choose(list(model.named_parameters()))
    # What is pretrained learns at a slower rate.
    slow = [weight for name, weight in chosen if "backbone" in name]
    groups = [
        {"params": slow, "lr": rate / 3},
        {"params": [weight for name, weight in chosen if "backbone" not in name]},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=1e-4)
    count = -(-len(data) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [rate / 3, rate], total_steps=epochs * count)
    [whole] = list(batches(data, len(data)))
    inputs, labels = whole.inputs(DEVICE, torch.float32)["pixel_values"], whole.labels.float().to(DEVICE)
    for epoch in range(epochs):
        model.train()
        losses = []
        for rows in np.array_split(rng.permutation(len(data)), count):
            changed = [augmented(inputs[row], labels[row], rng, crops) for row in rows]
            pixels = torch.stack([each for each, _ in changed])
            targets = [{"class_labels": each[:, 0].long(), "boxes": each[:, 1:]} for _, each in changed]
            optimizer.zero_grad()
            loss = model(pixel_values=pixels, labels=targets).loss
            loss.backward()
            nn.utils.clip_grad_norm_([weight for _, weight in chosen], 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        if (epoch + 1) % 10 == 0 or epoch + 1 == epochs:
            print(f"epoch {epoch + 1}/{epochs}: loss {float(torch.stack(losses).mean()):.4f}", flush=True)
    return model.eval()


def augmented(image: torch.Tensor, objects: torch.Tensor, rng: Any, crops: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """An image flipped along both axes at random, and with `crops` a part of it enlarged; with the boxes that are left."""
    objects = objects[objects[:, 0] >= 0].clone()
    for axis in (1, 2):
        if rng.random() < 0.5:
            image = image.flip(-axis)
            objects[:, axis] = 1 - objects[:, axis]
    if crops:
        height, width = image.shape[-2:]
        share = rng.uniform(SMALLEST_CROP, 1)
        rows, columns = round(share * height), round(share * width)
        top, left = rng.integers(0, height - rows + 1), rng.integers(0, width - columns + 1)
        part = image[None, :, top : top + rows, left : left + columns]
        image = nn.functional.interpolate(part, (height, width), mode="bilinear", align_corners=False)[0]
        scale = objects.new_tensor([width / columns, height / rows])
        shift = objects.new_tensor([left / width, top / height])
        first, last = (((objects[:, 1:3] + sign * objects[:, 3:] / 2 - shift) * scale).clamp(0, 1) for sign in (-1, 1))
        seen = (last - first).prod(-1) > 0.3 * (objects[:, 3:] * scale).prod(-1)
        objects = torch.cat([objects[:, :1], (first + last) / 2, last - first], 1)[seen]
    return image, objects
