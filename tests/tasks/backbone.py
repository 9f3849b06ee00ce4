"""A tiny DINOv2 without a head, for tests."""

import torch
from transformers import Dinov2Config, Dinov2Model, ViTImageProcessor


def save_backbone(folder):
    torch.manual_seed(0)
    config = Dinov2Config(image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    Dinov2Model(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
