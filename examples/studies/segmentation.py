"""
Semantic segmentation on real images: a parent trained by gradients meets darker images, and is evolved by mIoU itself.

The shift is fixed here and was so before it was looked at: brightness times 0.4, then JPEG of quality 30. The parent is an
UperNet on an EfficientNet-Lite0 (a timm checkpoint, by argument), trained on the first part of the training images as they
are. The rest of them, shifted, are what all methods adapt to. The test images, shifted, are looked at once, at the end.

    python examples/studies/segmentation.py parent BACKBONE DATA OUT      # an hour on one core, a minute on a GPU
    python examples/studies/segmentation.py adapt DATA OUT                # all methods, and the table

DATA is a folder with train.parquet and test.parquet, with the columns image and annotation.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, load_dataset
from safetensors.torch import load_file
from shift import DEVICE, make_parser, measured_once, shifted, tested_alone
from torch import nn
from transformers import (
    AutoModelForSemanticSegmentation,
    SegformerImageProcessor,
    TimmBackboneConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from smd_hf import EvolutionArguments, EvolutionTrainer
from smd_hf.arguments.recipes import read_recipe
from smd_hf.data.batches import ImageBatches
from smd_hf.data.masks import MaskCollator
from smd_hf.metrics.resampling import differences, values
from smd_hf.metrics.segmentation import SegmentationMeasure
from smd_hf.scoring.evaluator import Evaluator
from smd_hf.search.head.pixels import balanced_weights
from smd_hf.tasks.segmentation import SemanticSegmentation

CLASSES = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
SIZE = {"height": 192, "width": 256}
TRAINING_SHARE = 250
"""The first so many training images train the parent; the others are adapted to."""

SETTINGS = {
    **read_recipe("adapt"),
    "fitness_samples_per_generation": 0,
    "selection_fraction": 0.25,
}
"""Those of the preset `adapt`, which were chosen on other images and another task. There are few images: every generation sees all."""

BATCH = 24
GRADIENT_EPOCHS = 4
"""Passes of gradient descent over the images to adapt to: about 12 forward passes each of time."""


def main() -> None:
    args = make_parser(__doc__, epochs=40, generations=5, population=96).parse_args()
    torch.set_num_threads(args.threads)
    parts = splits(args.data, args.max_images)
    if args.command == "parent":
        train_parent(args.backbone, parts, args.out, args.epochs)
    else:
        print(table(adapt_all(parts, args.out, args.seeds, args.generations, args.population)))


def splits(data: Path, most: int | None = None) -> tuple[Dataset, Dataset, Dataset]:
    """Images to train the parent on, to adapt to, and to test on; the latter two are shifted."""
    files = {name: str(data / f"{name}.parquet") for name in ("train", "test")}
    parts = load_dataset("parquet", data_files=files)
    train, test = (part.select(range(min(most or len(part), len(part)))) for part in (parts["train"], parts["test"]))
    count = min(TRAINING_SHARE, len(train) // 2)
    return train.select(range(count)), shifted(train.select(range(count, len(train)))), shifted(test)


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


def train_parent(backbone: Path, parts: tuple[Dataset, ...], out: Path, epochs: int) -> None:
    torch.manual_seed(0)
    model = gradient_steps(build(backbone), parts[0], epochs, 5e-4, list)
    model.save_pretrained(out / "parent")
    processor().save_pretrained(out / "parent")


def gradient_steps(
    model: Any, data: Dataset, epochs: int, rate: float, choose: Any, seed: int = 0, balance: float = 0.0
) -> Any:
    """
    AdamW on the cross-entropy, with random flips.

    Args:
        choose (`Callable`): takes the named parameters that are trained.
        balance (`float`): of class weights, as fits of the head have them.
    """
    rng, prepare = np.random.default_rng(seed), processor()
    model.to(DEVICE)
    parameters = [parameter for _, parameter in choose(list(model.named_parameters()))]
    steps = epochs * -(-len(data) // 8)
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    images = [(row["image"].convert("RGB"), np.asarray(row["annotation"])) for row in data]
    known = np.concatenate([mask[mask < len(CLASSES)] for _, mask in images])
    weights = torch.tensor(balanced_weights(known, len(CLASSES), balance), device=DEVICE).float() if balance else None
    for epoch in range(epochs):
        model.train()
        total = 0.0
        for rows in np.array_split(rng.permutation(len(images)), -(-len(data) // 8)):
            batch = prepare([images[i][0] for i in rows], [images[i][1] for i in rows], return_tensors="pt").to(DEVICE)
            if rng.random() < 0.5:
                batch = {name: tensor.flip(-1) for name, tensor in batch.items()}
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(
                model(batch["pixel_values"]).logits, batch["labels"].long(), weights, ignore_index=255
            )
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(rows)
        print(f"epoch {epoch + 1}/{epochs}: loss {total / len(images):.4f}", flush=True)
    return model.eval()


def adapt_all(
    parts: tuple[Dataset, ...], out: Path, seeds: list[int], generations: int, population: int
) -> dict[str, Any]:
    """
    Scores of all methods on the shifted test images: one of each for the parent and its statistics, and one a seed.

    What has been measured is in OUT/measures, and is not measured again. Each run of evolution leaves its predictions.png.
    """
    _, train, test = parts
    parent, task = AutoModelForSemanticSegmentation.from_pretrained(out / "parent"), SemanticSegmentation()
    task.configure(parent, None)
    found: dict[str, list[SegmentationMeasure]] = {}

    def add(names: tuple[str, ...], seed: int, method: Callable[[], tuple[SegmentationMeasure, ...]]) -> None:
        """Measures several models at once."""
        arrays = measured_once(out / "measures", names, seed, lambda: tuple({"sums": each.sums} for each in method()))
        for name, each in zip(names, arrays):
            found.setdefault(name, []).append(SegmentationMeasure(each["sums"]))

    def trained(seed: int, rate: float, choose: Any, balance: float) -> tuple[SegmentationMeasure]:
        model = gradient_steps(copy.deepcopy(parent), train, GRADIENT_EPOCHS, rate, choose, seed, balance)
        return (measure(task, model, test),)

    def evolved(seed: int, fitness: str) -> tuple[SegmentationMeasure, ...]:
        """The model with the fittest statistics, with the fittest head on top of those that were chosen, and the evolved model."""
        options = {"fitness": fitness, "population_size": population, "num_generations": generations, "seed": seed}
        args = EvolutionArguments(
            str(out / f"{fitness}-{seed}"),
            per_device_eval_batch_size=BATCH,
            use_cpu=DEVICE.type == "cpu",
            report_to="none",
            **SETTINGS | options,
        )
        trainer = EvolutionTrainer(str(out / "parent"), args, train_dataset=train, eval_dataset=test)
        trainer.train()
        print(f"{fitness}, seed {seed}: {trainer.report['verdict']}", flush=True)
        return tuple(map(task.measured, (*tested_alone(trainer), trainer.result.test.evolved_score)))

    add(("parent",), 0, lambda: (measure(task, parent, test),))
    for seed in seeds:
        for balance, how in ((0.0, ""), (0.5, ", class weights")):
            # The class weights are those that mIoU chose for the head.
            for what, rate, choose in (("norms and head", 2e-3, norms_and_head), ("all weights", 3e-4, list)):
                options = (seed, rate, choose, balance)
                add((f"gradients, {what}{how}",), seed, lambda options=options: trained(*options))
        for fitness, by in (("mean_iou", "mIoU"), ("loss", "the loss")):
            alone = f"statistics re-estimated, by {by}", f"the head fitted on them, by {by}"
            add(
                (*alone, f"evolution by {by}, from both"),
                seed,
                lambda seed=seed, fitness=fitness: evolved(seed, fitness),
            )
    rows = [row(name, models, found["parent"][0], len(test)) for name, models in found.items()]
    (out / "segmentation.json").write_text(json.dumps(rows, indent=1))
    return {"rows": rows, "images": len(test)}


def norms_and_head(named: list[tuple[str, nn.Parameter]]) -> list[tuple[str, nn.Parameter]]:
    return [pair for pair in named if any(part in pair[0] for part in ("norm", "bn", "classifier"))]


def batches(images: Dataset) -> ImageBatches:
    collator = MaskCollator(processor(), "image", "annotation", classes=len(CLASSES))
    return ImageBatches(images, collator, BATCH, keep_labels=False)


def measure(task: SemanticSegmentation, model: Any, images: Dataset) -> SegmentationMeasure:
    return task.measured(Evaluator(model.to(DEVICE), DEVICE, reading=task).score_model(batches(images)))


def row(name: str, models: list[SegmentationMeasure], parent: SegmentationMeasure, count: int) -> dict[str, Any]:
    """The mean over seeds, with the interval of the first seed's difference to the parent."""
    metrics = [values(model, count) for model in models]
    difference = differences(parent, models[0], count)
    return {
        "name": name,
        "seeds": len(models),
        "mean_iou": [each["mean_iou"] for each in metrics],
        "loss": [each["loss"] for each in metrics],
        "interval": difference["mean_iou"]["interval"],
        "loss_interval": difference["loss"]["interval"],
    }


def table(found: dict[str, Any]) -> str:
    lines = [
        "| | mIoU (%) | difference to the parent, first seed | pixel cross-entropy |",
        "| --- | ---: | ---: | ---: |",
    ]
    for each in found["rows"]:
        low, high = (100 * end for end in each["interval"])
        spread = (
            f" (seeds {', '.join(f'{100 * value:.2f}' for value in each['mean_iou'])})" if each["seeds"] > 1 else ""
        )
        lines.append(
            f"| {each['name']} | {100 * np.mean(each['mean_iou']):.2f}{spread} | {low:+.2f} to {high:+.2f} | {np.mean(each['loss']):.4f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
