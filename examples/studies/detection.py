"""
Object detection on real images: a parent trained by gradients meets darker images, and is evolved by mAP itself.

The shift is fixed here and was so before it was looked at, the same as in segmentation.py: brightness times 0.4, then JPEG of
quality 30. The parent is an RT-DETR on an EfficientNet-Lite0 (a timm checkpoint, by argument), trained on the first part of the
training images as they are. The rest of them, shifted, are what all methods adapt to. The test images, shifted, are looked at
once, at the end.

    python examples/studies/detection.py parent BACKBONE DATA OUT      # half an hour on 2 cores
    python examples/studies/detection.py adapt DATA OUT                # all methods, the table and the plot

DATA is a folder with train.parquet and test.parquet, with the columns image and objects (bbox, category).
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, load_dataset
from detector import BATCH, batches, build, gradient_steps, processor
from shift import DEVICE, make_parser, measured_once, shifted, tested_alone
from transformers import RTDetrForObjectDetection

from smd_hf import EvolutionArguments, EvolutionTrainer
from smd_hf.metrics.detection import DetectionMeasure
from smd_hf.metrics.resampling import differences, values
from smd_hf.scoring.evaluator import Evaluator
from smd_hf.scoring.scores import Score
from smd_hf.tasks.detection import ObjectDetection

TRAINING_SHARE = 140
"""The first so many training images train the parent; the others are adapted to."""
HEADS = ("class_embed", "bbox_embed", "enc_score_head", "enc_bbox_head")
SETTINGS = {"preset": "adapt", "selection_fraction": 0.25}
GRADIENT_EPOCHS = 20
"""Passes of gradient descent over the images to adapt to."""


def main() -> None:
    args = make_parser(__doc__, epochs=60, generations=5, population=96).parse_args()
    torch.set_num_threads(args.threads)
    parts = splits(args.data, args.max_images)
    if args.command == "parent":
        train_parent(args.backbone, parts, args.out, args.epochs)
    else:
        print(table(adapt_all(parts, args.out, args.seeds, args.generations, args.population)))


def splits(data: Path, most: int | None = None) -> tuple[Dataset, Dataset, Dataset, Dataset]:
    """Images to train the parent on, to adapt to (shifted), and to test on, as they are and shifted."""
    parts = load_dataset("parquet", data_files={name: str(data / f"{name}.parquet") for name in ("train", "test")})
    train, test = (part.select(range(min(most or len(part), len(part)))) for part in (parts["train"], parts["test"]))
    count = min(TRAINING_SHARE, len(train) // 2)
    return train.select(range(count)), shifted(train.select(range(count, len(train)))), test, shifted(test)


def train_parent(backbone: Path, parts: tuple[Dataset, ...], out: Path, epochs: int) -> None:
    torch.manual_seed(0)
    model = gradient_steps(build(backbone), parts[0], epochs, 5e-4, list, crops=True)
    model.save_pretrained(out / "parent")
    processor().save_pretrained(out / "parent")
    print(f"parent, on test images without the shift: mAP {100 * scores(measure(model, parts[2]))['map']:.2f} %")


def adapt_all(
    parts: tuple[Dataset, ...], out: Path, seeds: list[int], generations: int, population: int
) -> list[dict]:
    """
    Scores of all methods on the shifted test images: one of each for the parent and its statistics, and one a seed.

    What has been measured is in OUT/measures, and is not measured again. Each run of evolution leaves its predictions.png.
    """
    _, train, clean, test = parts
    parent = RTDetrForObjectDetection.from_pretrained(out / "parent")
    unshifted = scores(measure(parent, clean))
    found: dict[str, list[DetectionMeasure]] = {}

    def add(names: tuple[str, ...], seed: int, method: Callable[[], tuple[Score, ...]]) -> None:
        """Measures several models at once."""
        arrays = measured_once(
            out / "measures", names, seed, lambda: tuple({"kept": each.logits, "sums": each.sums} for each in method())
        )
        for name, each in zip(names, arrays):
            found.setdefault(name, []).append(DetectionMeasure(each["kept"], each["sums"]))

    def trained(seed: int, rate: float, choose: Callable) -> tuple[Score]:
        return (score(gradient_steps(copy.deepcopy(parent), train, GRADIENT_EPOCHS, rate, choose, seed), test),)

    def evolved(seed: int) -> tuple[Score, Score, Score]:
        """The model with the fittest statistics, with the fittest head on top of those that were chosen, and the evolved model."""
        args = EvolutionArguments(
            str(out / f"map-{seed}"), fitness="map", seed=seed, population_size=population, num_generations=generations,
            per_device_eval_batch_size=BATCH, use_cpu=DEVICE.type == "cpu", report_to="none", **SETTINGS,
        )  # fmt: skip
        trainer = EvolutionTrainer(str(out / "parent"), args, train_dataset=train, eval_dataset=test)
        trainer.train()
        print(f"seed {seed}: {trainer.report['verdict']}", flush=True)
        return *tested_alone(trainer), trainer.result.test.evolved_score

    add(("parent",), 0, lambda: (score(parent, test),))
    for seed in seeds:
        names = "statistics re-estimated", "the head fitted on them", "evolution by mAP, from both"
        add(names, seed, lambda seed=seed: evolved(seed))
        for what, rate, choose in (("norms and heads", 1e-3, norms_and_heads), ("all weights", 2e-4, list)):
            add((f"gradients, {what}",), seed, lambda options=(seed, rate, choose): trained(*options))
    rows = [row(name, models, found["parent"][0]) for name, models in found.items()]
    document = {"images": {"adapted to": len(train), "tested": len(test)}, "parent without the shift": unshifted}
    (out / "detection.json").write_text(json.dumps(document | {"rows": rows}, indent=1) + "\n")
    return rows


def norms_and_heads(named: list[tuple[str, torch.nn.Parameter]]) -> list[tuple[str, torch.nn.Parameter]]:
    return [pair for pair in named if any(part in pair[0] for part in ("norm", "bn", *HEADS))]


def score(model: Any, images: Dataset) -> Score:
    task = ObjectDetection()
    task.configure(model, None)  # pyright: ignore[reportArgumentType]
    return Evaluator(model.to(DEVICE), DEVICE, reading=task).score_model(batches(images))


def measure(model: Any, images: Dataset) -> DetectionMeasure:
    return ObjectDetection().measured(score(model, images))


def scores(measure: DetectionMeasure) -> dict[str, float]:
    return values(measure, len(measure.sums))


def row(name: str, models: list[DetectionMeasure], parent: DetectionMeasure) -> dict[str, Any]:
    """Each seed's metrics, with the interval of the first seed's difference to the parent."""
    metrics = [scores(model) for model in models]
    difference = differences(parent, models[0], len(parent.sums))
    keys = ("map", "map_50", "loss")
    return {
        "name": name,
        **{key: [each[key] for each in metrics] for key in keys},
        "intervals": {key: difference[key]["interval"] for key in keys},
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| | mAP (%) | difference to the parent, first seed | mAP at IoU 0.5 (%) | set loss |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for each in rows:
        low, high = (100 * end for end in each["intervals"]["map"])
        seeds = f" (seeds {', '.join(f'{100 * value:.2f}' for value in each['map'])})" if len(each["map"]) > 1 else ""
        numbers = f"{100 * np.mean(each['map']):.2f}{seeds} | {low:+.2f} to {high:+.2f} | {100 * np.mean(each['map_50']):.2f}"
        lines.append(f"| {each['name']} | {numbers} | {np.mean(each['loss']):.4f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
