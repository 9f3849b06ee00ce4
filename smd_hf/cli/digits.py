"""
The embedded example: a small classifier of digits meets images from another camera and evolves to read them.

It uses scikit-learn's 1,797 handwritten digits, a ResNet of transformers trained here by SGD, and the public interface.
Nothing is downloaded.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image, ImageFilter
from sklearn.datasets import load_digits
from torch.nn import functional as F
from transformers import AutoModelForImageClassification, ResNetConfig, ViTImageProcessor

from ..arguments.evolution_arguments import EvolutionArguments
from ..data.labels import label_maps, stratified_split
from ..data.rows import ImageCollator
from ..files import check_output_dir
from ..reports.plots import plot_shift
from ..trainer import EvolutionTrainer

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZE = 32
PARENT_EPOCHS = 12
PARENT_BATCH = 32


@dataclass
class DemoResult:
    """What the demo found."""

    report: dict[str, Any]
    clean_accuracy: float
    parent_dir: Path
    evolved_dir: Path
    figures: list[Path]


def shifted(image: Image.Image) -> Image.Image:
    """The image as another camera would have taken it: turned by 12 degrees, out of focus, and with less contrast."""
    turned = image.rotate(12, Image.Resampling.BILINEAR)
    blurred = turned.filter(ImageFilter.GaussianBlur(1.5))
    return blurred.point([round(20 + 0.85 * value) for value in range(256)])


def digit_splits(seed: int) -> dict[str, Any]:
    """
    scikit-learn's digits in three disjoint, stratified parts of 599 images, as data sets with `image` and `label`.

    Returns:
        dict of `str` to `datasets.Dataset`: `"parent"`, clean, to train the parent on; `"train"`, shifted, to evolve on;
        `"test"`, shifted, to report on; and `"clean_test"`, the images of `"test"` before the shift.
    """
    digits: Any = load_digits()
    images = [_picture(pixels) for pixels in digits.images]
    rest, test = stratified_split(digits.target, 1 / 3, seed)
    first, second = stratified_split(digits.target[rest], 1 / 2, seed)

    def part(indices: np.ndarray, change=lambda image: image) -> Dataset:
        rows = {"image": [change(images[i]) for i in indices], "label": digits.target[indices].tolist()}
        return Dataset.from_dict(
            rows, features=Features({"image": ImageFeature(), "label": ClassLabel(names=list(DIGITS))})
        )

    return {
        "parent": part(rest[first]),
        "train": part(rest[second], shifted),
        "test": part(test, shifted),
        "clean_test": part(test),
    }


def train_parent(dataset: Dataset, folder: str | os.PathLike, seed: int) -> None:
    """Trains a ResNet of 80,000 weights on clean digits by SGD in some seconds, and saves it as a checkpoint."""
    id2label, label2id = label_maps(DIGITS)
    processor = ViTImageProcessor(size={"height": SIZE, "width": SIZE})
    batch = ImageCollator(processor, "image", "label")([dict(row) for row in dataset])  # pyright: ignore
    pixel_values, labels = batch["pixel_values"], batch["labels"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = ResNetConfig(
            embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 1, 1], layer_type="basic",
            id2label=id2label, label2id=label2id,
        )  # fmt: skip
        model = AutoModelForImageClassification.from_config(config).train()
        steps = PARENT_EPOCHS * (len(labels) // PARENT_BATCH)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
        for _ in range(PARENT_EPOCHS):
            order = torch.randperm(len(labels))[: len(labels) // PARENT_BATCH * PARENT_BATCH]
            for rows in order.split(PARENT_BATCH):
                optimizer.zero_grad()
                F.cross_entropy(model(pixel_values=pixel_values[rows]).logits, labels[rows]).backward()
                optimizer.step()
                schedule.step()
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)


def run_demo(
    output_dir: str | os.PathLike = "demo_output",
    seed: int = 0,
    population_size: int = 32,
    num_generations: int = 5,
) -> DemoResult:
    """
    Trains the parent, shifts the images, evolves the parent on some of them by the preset `adapt`, and reports on others.

    Raises:
        `SMDError`: if `output_dir` cannot be written to.
    """
    check_output_dir(output_dir)
    folder = Path(output_dir)
    args = EvolutionArguments(
        output_dir=str(folder / "evolved"),
        population_size=population_size,
        num_generations=num_generations,
        per_device_eval_batch_size=128,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        seed=seed,
        use_cpu=True,
    )
    splits = digit_splits(seed)
    train_parent(splits["parent"], folder / "parent", seed)
    trainer = EvolutionTrainer(
        model=folder / "parent", args=args, train_dataset=splits["train"], eval_dataset=splits["test"]
    )
    clean = trainer.predict(splits["clean_test"], metric_key_prefix="clean").metrics or {}
    trainer.train()

    sample = [int(np.flatnonzero(np.array(splits["test"]["label"]) == digit)[0]) for digit in range(len(DIGITS))]
    clean_images, shifted_images = ([splits[name][row]["image"] for row in sample] for name in ("clean_test", "test"))
    shift = plot_shift(clean_images, shifted_images, folder / "shift.png", names=("parent's", "shifted"))
    evolved = folder / "evolved"
    return DemoResult(
        report=trainer.report or {},
        clean_accuracy=clean["clean_accuracy"],
        parent_dir=folder / "parent",
        evolved_dir=evolved,
        figures=[shift, evolved / "gain.png", evolved / "fitness.png"],
    )


def _picture(pixels: np.ndarray) -> Image.Image:
    """An array of shape (8, 8) with values from 0 to 16 as a picture of 32 x 32 pixels."""
    grey = Image.fromarray((pixels * (255 / 16)).round().astype(np.uint8))
    return grey.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
