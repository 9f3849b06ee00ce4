"""
Small parents of a dozen architectures, each really trained on real images by gradient, for seconds; and the images.

All take images of 32 pixels, have 10,000 to 300,000 weights and the same recipe, so that none is favoured by tuning.
"""

import argparse
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from common import DIGITS, data_key, image_batches, load_data, public_name
from datasets import Dataset
from timm.layers import GatedMlp
from timm.models import build_model_with_cfg, register_model
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock, SpatialGatingBlock
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperImageProcessor,
    ViTImageProcessor,
)

from smd_hf.data.labels import label_maps, label_names, label_values, stratified_split
from smd_hf.data.rows import find_columns
from smd_hf.demo import digit_splits
from smd_hf.errors import SMDError
from smd_hf.evaluation.images import ImageBatches
from smd_hf.messages import did_you_mean
from smd_hf.models.checkpoints import save_checkpoint
from smd_hf.models.load import load_image_processor, load_model

SIZE = 32
RECIPE = {"optimizer": "AdamW", "learning_rate": 2e-3, "weight_decay": 0.05, "batch_size": 32, "schedule": "one cycle"}


@dataclass(frozen=True)
class Architecture:
    """
    A small member of a family.

    Args:
        family (`str`): `"CNN"`, `"transformer"` or `"mixer"`.
        library (`str`): `"transformers"` or `"timm"`.
        config (`Callable`): its configuration, from the names of the classes.
    """

    family: str
    library: str
    config: Callable[[list[str]], PreTrainedConfig]


def of_transformers(family: str, kind: str, **choices: Any) -> Architecture:
    """An architecture of transformers: `kind` with the suffix `Config` is the class of its configuration."""

    def config(names: list[str]) -> PreTrainedConfig:
        id2label, label2id = label_maps(names)
        return getattr(transformers, f"{kind}Config")(id2label=id2label, label2id=label2id, **choices)

    return Architecture(family, "transformers", config)


def of_timm(family: str, kind: str, **choices: Any) -> Architecture:
    """An architecture of timm, by its name there and the arguments of `timm.create_model` that make it small."""

    def config(names: list[str]) -> PreTrainedConfig:
        return TimmWrapperConfig.from_dict(
            {
                "architecture": kind,
                "num_classes": len(names),
                "label_names": names,
                "model_args": dict(choices),
                "pretrained_cfg": {
                    "input_size": [3, SIZE, SIZE],
                    "fixed_input_size": True,
                    "interpolation": "bilinear",
                    "crop_pct": 1.0,
                    "mean": [0.5, 0.5, 0.5],
                    "std": [0.5, 0.5, 0.5],
                },
            }
        )

    return Architecture(family, "timm", config)


# timm's own entries of these three fix their size: here are the same classes in smaller.


@register_model
def mixer_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MLP-Mixer (Tolstikhin et al. 2021)."""
    return build_model_with_cfg(MlpMixer, "mixer_s32_224", pretrained, **kwargs)


@register_model
def resmlp_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResMLP (Touvron et al. 2021)."""
    blocks = {"block_layer": ResBlock, "norm_layer": Affine, "mlp_ratio": 4}
    return build_model_with_cfg(MlpMixer, "resmlp_12_224", pretrained, **blocks, **kwargs)


@register_model
def gmlp_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """gMLP (Liu et al. 2021)."""
    blocks = {"block_layer": SpatialGatingBlock, "mlp_layer": GatedMlp, "mlp_ratio": 4}
    return build_model_with_cfg(MlpMixer, "gmlp_ti16_224", pretrained, **blocks, **kwargs)


PATCH = 8
SMALL = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
STAGES = {"hidden_sizes": [16, 32, 64], "depths": [1, 1, 1]}

IMAGENET = (
    "timm/resnet18.a1_in1k",
    "timm/resnet50.a1_in1k",
    "timm/efficientnet_b0.ra_in1k",
    "timm/mobilenetv3_large_100.ra_in1k",
    "timm/regnety_008.pycls_in1k",
    "timm/densenet121.ra_in1k",
    "timm/convnext_atto.d2_in1k",
    "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "timm/deit_tiny_patch16_224.fb_in1k",
    "timm/swin_tiny_patch4_window7_224.ms_in1k",
    "timm/mixer_b16_224.goog_in21k_ft_in1k",
    "timm/resmlp_12_224.fb_in1k",
)
"""Checkpoints of ImageNet-1k on the Hub: CNNs, transformers and mixers."""

ARCHITECTURES = {
    "resnet": of_transformers("CNN", "ResNet", embedding_size=16, layer_type="basic", **STAGES),
    "regnet": of_transformers("CNN", "RegNet", embedding_size=16, groups_width=8, **STAGES),
    "convnextv2": of_transformers("CNN", "ConvNextV2", num_stages=3, **STAGES),
    "efficientnet": of_timm("CNN", "test_efficientnet"),
    "densenet": of_timm("CNN", "densenet121", growth_rate=8, block_config=[2, 2, 2]),
    "vit": of_transformers("transformer", "ViT", image_size=SIZE, patch_size=PATCH, **SMALL),
    "swin": of_transformers(
        "transformer", "Swin", image_size=SIZE, patch_size=4, window_size=4, embed_dim=24, depths=[1, 1], num_heads=[2, 4]
    ),
    "xcit": of_timm(
        "transformer", "xcit_nano_12_p16_224", img_size=SIZE, patch_size=PATCH, embed_dim=48, depth=2, num_heads=4
    ),
    "mixer": of_timm("mixer", "mixer_small", img_size=SIZE, patch_size=PATCH, num_blocks=3, embed_dim=48),
    "resmlp": of_timm("mixer", "resmlp_small", img_size=SIZE, patch_size=PATCH, num_blocks=3, embed_dim=48),
    "gmlp": of_timm("mixer", "gmlp_small", img_size=SIZE, patch_size=PATCH, num_blocks=3, embed_dim=48),
    "poolformer": of_transformers(
        "mixer", "PoolFormer", hidden_sizes=[16, 32, 64], depths=[1, 1, 1], num_encoder_blocks=3, patch_sizes=[3, 3, 3],
        strides=[2, 2, 2], padding=[1, 1, 1], mlp_ratio=2.0,
    ),
}  # fmt: skip
"""By name: CNNs, transformers, and mixers, which exchange between patches without convolution or attention."""


def new_model(name: str, classes: list[str], seed: int) -> tuple[PreTrainedModel, Any]:
    """A model of one of `ARCHITECTURES` with random weights, and its image processor."""
    config = ARCHITECTURES[name].config(classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageClassification.from_config(config)
    if ARCHITECTURES[name].library == "timm":
        processor = TimmWrapperImageProcessor(pretrained_cfg=config.pretrained_cfg, architecture=config.architecture)
    else:
        processor = ViTImageProcessor(size={"height": SIZE, "width": SIZE})
    return model, processor


def train(model: PreTrainedModel, batches: ImageBatches, epochs: int, seed: int, device: torch.device) -> None:
    """
    Trains a model in place by `RECIPE` and leaves it in eval mode.

    Args:
        model (`PreTrainedModel`): with random weights.
        batches ([`ImageBatches`]): the images; all are held in memory.
        epochs (`int`): how often each is seen.
        seed (`int`): of the order of images; the caller's random state is left alone.
        device (`torch.device`): where.
    """
    loaded = list(batches)
    pixel_values = torch.cat([batch.inputs(device, torch.float32)["pixel_values"] for batch in loaded])
    labels = torch.cat([batch.labels for batch in loaded]).to(device)
    size = min(RECIPE["batch_size"], len(labels))
    steps = len(labels) // size
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RECIPE["learning_rate"], weight_decay=RECIPE["weight_decay"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RECIPE["learning_rate"], total_steps=epochs * steps)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(epochs):
            for rows in torch.randperm(len(labels))[: steps * size].split(size):
                optimizer.zero_grad()
                moved = torch.roll(pixel_values[rows], tuple(torch.randint(-2, 3, (2,)).tolist()), dims=(2, 3))
                F.cross_entropy(model(pixel_values=moved).logits, labels[rows]).backward()
                optimizer.step()
                schedule.step()
    model.eval()


def save_parent(model: PreTrainedModel, processor: Any, folder: Path) -> None:
    """Writes a checkpoint that `smd_hf.models.load.load_model` reads, by way of a folder of another name: all of it or nothing."""
    unfinished = folder.with_name(f".{folder.name}")
    save_checkpoint(model, processor, unfinished)
    unfinished.rename(folder)


@dataclass
class Images:
    """
    Disjoint sets of images.

    Args:
        parent (`Dataset`, *optional*): the parents are trained on; none for checkpoints.
        evolve_on, test (`Dataset`): fitness and selection images; those to report on.
        clean (`Dataset`): test images of the kind that the parents know.
    """

    parent: Dataset | None
    evolve_on: Dataset
    test: Dataset
    clean: Dataset


def load_images(args: argparse.Namespace) -> Images:
    """Digits are shifted as in the demo after the parents' training; other data stay as they are."""
    if args.data == DIGITS and args.imagenet is None:
        splits = digit_splits(args.seed)
        limits = {
            "parent": args.max_train,
            "train": args.max_train,
            "test": args.max_test,
            "clean_test": args.max_test,
        }
        parent, evolve_on, test, clean = (
            splits[name] if limit is None else splits[name].select(range(min(limit, len(splits[name]))))
            for name, limit in limits.items()
        )
        return Images(parent, evolve_on, test, clean)
    whole, test = load_data(args.data, max_train=args.max_train, max_test=args.max_test, seed=args.seed)
    if args.imagenet is not None:
        return Images(None, whole, test, test)
    labels = label_values(whole, find_columns(whole)[1])
    parent, evolve_on = stratified_split(labels, 1 / 3, args.seed)
    return Images(whole.select(parent), whole.select(evolve_on), test, test)


class Parent:
    """
    A parent that is trained, or a checkpoint that is loaded, when it is asked for.

    Args:
        name (`str`): an architecture, or with `--imagenet` a checkpoint.
        images ([`Images`]), args (`argparse.Namespace`): what it is trained on, and how.
    """

    def __init__(self, name: str, images: Images, args: argparse.Namespace):
        self.name, self.images, self.args = name, images, args
        trained = args.imagenet is None
        if trained and name not in ARCHITECTURES:
            raise SMDError(
                f"'{name}' is no architecture of this study.{did_you_mean(name, ARCHITECTURES)} Expected one of "
                f"{', '.join(ARCHITECTURES)}."
            )
        self.family = ARCHITECTURES[name].family if trained else "checkpoint"
        self.library = ARCHITECTURES[name].library if trained else "timm"
        self.settings = {"name": public_name(name) if not trained else name}
        if trained:
            classes = label_names(images.parent, find_columns(images.parent)[1])
            if classes is None:
                raise SMDError(
                    "The data set's labels have no names, which the parents' classes are to have. Give others."
                )
            self.classes = classes
            config = json.dumps(ARCHITECTURES[name].config(classes).to_dict(), sort_keys=True, default=str)
            self.settings |= {
                "config": hashlib.sha256(config.encode()).hexdigest()[:16],
                "images": data_key(images.parent),
                "epochs": args.epochs,
                "recipe": RECIPE,
                "seed": args.seed,
            }

    def load(self) -> tuple[PreTrainedModel, Any]:
        """The model, in eval mode on its device, and its image processor."""
        device, source = torch.device(self.args.device), self.name
        if self.args.imagenet is None:
            key = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]
            folder = self.args.parents_dir / key / self.name
            if not folder.exists():
                model, processor = new_model(self.name, self.classes, self.args.seed)
                batches = image_batches(model, processor, self.images.parent)
                train(model, batches, self.args.epochs, self.args.seed, device)
                save_parent(model.cpu(), processor, folder)
            source = str(folder)
        model = load_model(source, dtype="float32")
        return model.to(device), load_image_processor(source, model=model)
