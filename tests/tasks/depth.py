"""A tiny Depth Anything and images with depth maps, for tests."""

import numpy as np
import torch
from datasets import Array2D, Dataset, Features, Image
from PIL import Image as PILImage
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTImageProcessor,
    PreTrainedModel,
)

HEIGHT, WIDTH = 24, 36


def tiny_backbone(image_size=28):
    return Dinov2Config(
        image_size=image_size,
        patch_size=14,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        mlp_ratio=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
    )


def tiny_model(kind="relative") -> PreTrainedModel:
    torch.manual_seed(0)
    config = DepthAnythingConfig(
        backbone_config=tiny_backbone(),
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        head_hidden_size=8,
        depth_estimation_type=kind,
        max_depth=10 if kind == "metric" else 1,
    )
    model = DepthAnythingForDepthEstimation(config).eval()
    # As transformers begins them, random weights hardly look at the image.
    for name, parameter in model.named_parameters():
        if not name.startswith("backbone.encoder") and parameter.ndim > 1:
            torch.nn.init.kaiming_normal_(parameter)
    torch.nn.init.normal_(model.head.conv3.weight, std=0.05)
    return model


def save_depth_model(folder, kind="relative"):
    tiny_model(kind).save_pretrained(folder)
    processor = DPTImageProcessor(size={"height": 28, "width": 42}, keep_aspect_ratio=False, ensure_multiple_of=14)
    processor.save_pretrained(folder)
    return folder


def make_rows(count, seed=0, name="depth_map", size=(HEIGHT, WIDTH)):
    """Planes that are brighter where they are near, and their depths in meters; some are unknown."""
    rng = np.random.default_rng(seed)
    rows = {"image": [], name: []}
    for _ in range(count):
        ends = rng.uniform(1, 9, 2)
        depth = np.repeat(np.linspace(*ends, size[0])[:, None], size[1], 1) + rng.uniform(0, 1, size)
        image = 255 / depth[..., None] + rng.integers(0, 20, (*size, 3))
        depth[0, :4] = [0, np.nan, np.inf, 0]
        rows["image"].append(PILImage.fromarray(image.clip(0, 255).astype(np.uint8)))
        rows[name].append(depth.astype(np.float32))
    return Dataset.from_dict(rows, features=Features({"image": Image(), name: Array2D(size, "float32")}))
