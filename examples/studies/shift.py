"""What `segmentation.py` and `detection.py` share: the shift, the command line, what first steps bring, and measurements on disk."""

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image, ImageEnhance

from smd_hf import EvolutionTrainer
from smd_hf.scoring.scores import Score
from smd_hf.search.head.baselines import HEAD

BRIGHTNESS, QUALITY = 0.4, 30
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_parser(description: str | None, epochs: int, generations: int, population: int) -> argparse.ArgumentParser:
    """The commands `parent` and `adapt`, with these defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    train, adapt = commands.add_parser("parent"), commands.add_parser("adapt")
    train.add_argument("backbone", type=Path)
    for each in (train, adapt):
        each.add_argument("data", type=Path)
        each.add_argument("out", type=Path)
        each.add_argument("--max_images", type=int, help="of each file, for a trial")
        each.add_argument("--threads", type=int, default=1)
    train.add_argument("--epochs", type=int, default=epochs)
    adapt.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    adapt.add_argument("--generations", type=int, default=generations)
    adapt.add_argument("--population", type=int, default=population)
    return parser


def shifted(dataset: Dataset) -> Dataset:
    def change(row: dict[str, Any]) -> dict[str, Any]:
        file = io.BytesIO()
        ImageEnhance.Brightness(row["image"].convert("RGB")).enhance(BRIGHTNESS).save(file, "JPEG", quality=QUALITY)
        return {"image": Image.open(file)}

    return dataset.map(change, features=dataset.features)


def tested_alone(trainer: EvolutionTrainer) -> tuple[Score, Score]:
    """On the test images: the BatchNorm statistics that were chosen, the parent's or others, and the fittest head on top of them."""
    statistics, head = trainer.result.first_steps
    assert statistics is not None and head is not None
    first = statistics.test.get(statistics.chosen, trainer.result.test.parent_score)
    heads = [name for name in head.test if name.startswith(HEAD)]
    return first, head.test[max(heads, key=lambda name: head.fitness[name])]


def measured_once(
    folder: Path, names: tuple[str, ...], seed: int, method: Callable[[], tuple[dict[str, np.ndarray], ...]]
) -> list[dict[str, np.ndarray]]:
    """What a method measures of its models, as arrays, from FOLDER if it is there."""
    paths = [folder / f"{name.replace(' ', '_')}-{seed}.npz" for name in names]
    if not all(path.exists() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        for path, arrays in zip(paths, method()):
            np.savez(path, **arrays)
    return [dict(np.load(path)) for path in paths]
