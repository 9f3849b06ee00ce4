"""
Semantic segmentation on real images: a parent trained by gradients meets darker images, and is evolved by mIoU itself.

The shift is fixed here and was so before it was looked at: brightness times 0.4, then JPEG of quality 30. The parent is an
UperNet on an EfficientNet-Lite0 (a timm checkpoint, by argument), trained on the first part of the training images as they
are. The rest of them, shifted, are what all methods adapt to. The test images, shifted, are looked at once, at the end.

    python examples/studies/segmentation.py parent BACKBONE DATA OUT      # 20 minutes on one core
    python examples/studies/segmentation.py adapt DATA OUT                # all methods, and the table

DATA is a folder with train.parquet and test.parquet, with the columns image and annotation.
"""

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, load_dataset
from PIL import Image, ImageEnhance
from safetensors.torch import load_file
from torch import nn
from transformers import (
    SegformerImageProcessor,
    TimmBackboneConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

CLASSES = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
SIZE = {"height": 192, "width": 256}
TRAINING_SHARE = 250
"""The first so many training images train the parent; the others are adapted to."""

BRIGHTNESS, QUALITY = 0.4, 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("parent")
    train.add_argument("backbone", type=Path)
    adapt = commands.add_parser("adapt")
    for each in (train, adapt):
        each.add_argument("data", type=Path)
        each.add_argument("out", type=Path)
        each.add_argument("--threads", type=int, default=1)
    train.add_argument("--epochs", type=int, default=8)
    adapt.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    adapt.add_argument("--generations", type=int, default=6)
    adapt.add_argument("--population", type=int, default=24)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.command == "parent":
        train_parent(args.backbone, args.data, args.out, args.epochs)
    else:
        print(table(adapt_all(args.data, args.out, args.seeds, args.generations, args.population)))


def splits(data: Path) -> tuple[Dataset, Dataset, Dataset]:
    """Images to train the parent on, to adapt to, and to test on; the latter two are shifted."""
    files = {name: str(data / f"{name}.parquet") for name in ("train", "test")}
    parts = load_dataset("parquet", data_files=files)
    train, test = parts["train"], parts["test"]
    count = min(TRAINING_SHARE, len(train) // 2)
    return train.select(range(count)), shifted(train.select(range(count, len(train)))), shifted(test)


def shifted(dataset: Dataset) -> Dataset:
    def change(row: dict[str, Any]) -> dict[str, Any]:
        file = io.BytesIO()
        ImageEnhance.Brightness(row["image"].convert("RGB")).enhance(BRIGHTNESS).save(file, "JPEG", quality=QUALITY)
        return {"image": Image.open(file)}

    return dataset.map(change, features=dataset.features)


def build(backbone: Path) -> UperNetForSemanticSegmentation:
    """An UperNet whose backbone has the weights of a timm checkpoint of the same architecture."""
    name = json.loads((backbone / "config.json").read_text())["architecture"]
    body = TimmBackboneConfig(backbone=name, use_pretrained_backbone=False, out_indices=(1, 2, 3, 4))
    labels = dict(enumerate(CLASSES))
    config = UperNetConfig(
        backbone_config=body, hidden_size=64, use_auxiliary_head=False, id2label=labels,
        label2id={name: number for number, name in labels.items()},
    )  # fmt: skip
    model = UperNetForSemanticSegmentation(config)
    weights = {
        key.removeprefix("timm_model."): value for key, value in load_file(backbone / "model.safetensors").items()
    }
    missing = model.backbone._backbone.load_state_dict(weights, strict=False).missing_keys
    assert not missing, missing
    return model


def processor() -> SegformerImageProcessor:
    return SegformerImageProcessor(size=SIZE, do_reduce_labels=False)


def train_parent(backbone: Path, data: Path, out: Path, epochs: int) -> None:
    torch.manual_seed(0)
    train, _, _ = splits(data)
    model = gradient_steps(build(backbone), train, epochs, 5e-4, list)
    model.save_pretrained(out / "parent")
    processor().save_pretrained(out / "parent")


def gradient_steps(model: Any, data: Dataset, epochs: int, rate: float, choose: Any, seed: int = 0) -> Any:
    """AdamW on the model's own loss, with random flips; `choose` takes the named parameters that are trained."""
    rng, prepare = np.random.default_rng(seed), processor()
    parameters = [parameter for _, parameter in choose(list(model.named_parameters()))]
    steps = epochs * -(-len(data) // 8)
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    images = [(row["image"].convert("RGB"), np.asarray(row["annotation"])) for row in data]
    for epoch in range(epochs):
        model.train()
        total = 0.0
        for rows in np.array_split(rng.permutation(len(images)), -(-len(data) // 8)):
            batch = prepare([images[i][0] for i in rows], [images[i][1] for i in rows], return_tensors="pt")
            if rng.random() < 0.5:
                batch = {name: tensor.flip(-1) for name, tensor in batch.items()}
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(
                model(batch["pixel_values"]).logits, batch["labels"].long(), ignore_index=255
            )
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(rows)
        print(f"epoch {epoch + 1}/{epochs}: loss {total / len(images):.4f}", flush=True)
    return model.eval()


def adapt_all(data: Path, out: Path, seeds: list[int], generations: int, population: int) -> list[dict[str, Any]]:
    """The rows of the table: parent, statistics re-estimated, gradients, and evolution by mIoU and by the loss."""
    raise NotImplementedError


def table(rows: list[dict[str, Any]]) -> str:
    raise NotImplementedError


if __name__ == "__main__":
    main()
