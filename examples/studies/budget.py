"""
Held-out accuracy and NLL against forward passes: ways of evolution, plain evolution strategies, MeZO-style SPSA, and SGD.

One unit is a forward pass of the whole model over all training images. A step of SGD counts as three passes over its
minibatch. Every method learns from the same images and chooses with the same others; the test images are only reported on.

    python examples/studies/budget.py --model MODEL --data DATA
"""

import argparse
import copy
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from baselines import Images, evolution_strategies, sgd, spsa, temperature
from budget_report import draw, render
from common import (
    DIGITS,
    Measurements,
    data_key,
    environment,
    evolution_arguments,
    file_name,
    image_batches,
    load_data,
    make_parser,
    progress,
    public_name,
    run_plainly,
    settle,
    write_results,
)
from transformers import TrainerCallback

from smd_hf import EvolutionTrainer
from smd_hf.arguments.recipes import read_recipe
from smd_hf.data.batches import ImageBatches
from smd_hf.data.fitness_samples import split_indices
from smd_hf.files import write_text
from smd_hf.metrics.comparison import measured
from smd_hf.metrics.statistics import Scores, nll
from smd_hf.models.checkpoints import weights_hash
from smd_hf.models.load import load_image_processor, load_model
from smd_hf.scoring.evaluator import Evaluator

BASELINES: dict[str, Callable[..., Iterator[int]]] = {
    "sgd": sgd,
    "evolution_strategies": evolution_strategies,
    "spsa": spsa,
    "temperature": temperature,
}

GRIDS: dict[str, list[dict[str, Any]]] = {
    "sgd": [{"parameters": ["all"], "rate": rate} for rate in (3e-4, 1e-3, 3e-3, 1e-2)],
    "evolution_strategies": [
        {"parameters": parameters, "rate": rate}
        for parameters in (["all"], ["norms", "head"])
        for rate in (0.01, 0.03, 0.1)
    ],
    "spsa": [
        {"parameters": parameters, "rate": rate}
        for parameters, rates in ((["all"], (0.003, 0.01, 0.03)), (["norms", "head"], (0.01, 0.03, 0.1)))
        for rate in rates
    ],
}
"""What each baseline's step size is chosen from, on the selection split; a temperature has none."""

SPARSE = {"decomposition": "partition", "population_size": 24, "recombination_top_k": 4}
DIRECTIONS = {"decomposition": "blocks", "mutable_parameters": ["norms", "head"], "sigma": 0.1}
DIRECTIONS |= {"recombination": "gauss_newton", "recombination_top_k": 1}

NOISE_ALONE = {"scaling_share": 0.0, "population_size": 112, "fitness_samples_per_generation": 1125}
"""The preset without children that scale, and with about as many passes."""

EVOLUTION: dict[str, dict[str, Any]] = {
    "gauss_newton_uniform": {**DIRECTIONS, "allocation": "uniform", "population_size": 48},
    "gauss_newton_cost": {**DIRECTIONS, "allocation": "cost", "population_size": 144},
    "adapt": read_recipe("adapt"),
    "adapt_noise": read_recipe("adapt") | NOISE_ALONE,
    "best_child": {**SPARSE, "recombination": "best", "ensemble_size": 4},
    "top_k_mean": {**SPARSE, "recombination": "top_k_mean"},
    "greedy_soup": {**SPARSE, "recombination": "greedy_soup"},
}
"""What each way of evolution is beyond the defaults; sigma is calibrated where it is not given."""

METHODS = (*BASELINES, *EVOLUTION)
SELECTION_FRACTION = 0.1
POINTS = 5
QUICK = {"passes": 2.0, "tuning_passes": 0.5, "population_size": 4, "samples": 16}


def parser() -> argparse.ArgumentParser:
    made = make_parser(__doc__.split("\n\n")[0])
    made.add_argument("--model", required=True, help="A model id on the Hub, or the folder of a checkpoint.")
    made.add_argument(
        "--trust_remote_code", action="store_true", help="Run the Python files of the model's repository."
    )
    made.add_argument("--data", default=DIGITS, help="digits, or a folder or data set that `datasets` reads.")
    made.add_argument("--train_images", type=int, default=5000, help="So many training images: one pass.")
    made.add_argument("--test_images", type=int, default=5000, help="So many test images.")
    made.add_argument(
        "--passes",
        type=float,
        default=20,
        help="Passes of each method. The preset adapt has its own number, with or without children that scale.",
    )
    made.add_argument("--tuning_passes", type=float, default=2, help="Passes of each step size that is tried.")
    made.add_argument("--samples", type=int, default=1000, help="Images a generation that score children.")
    made.add_argument("--population_size", type=int, help="Children a generation, instead of each method's own.")
    made.add_argument("--batch_size", type=int, default=64, help="Images a batch of scoring.")
    made.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD",
        help=f"What to measure now, of {', '.join(METHODS)}. The table holds all that was ever measured so.",
    )  # fmt: skip
    made.add_argument("--again", action="store_true", help="Measure these methods anew.")
    return made


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    made = parser()
    args = made.parse_args(argv)
    settle(args, QUICK, made)
    task = Task(args)
    path = args.output_dir / f"budget_{file_name(args.model)}.jsonl"
    if args.again:
        forget(path, args.methods)
    store = Measurements(path)
    document = {
        "study": "budget",
        "settings": task.settings,
        "environment": environment(args),
        "parent": store.get({**task.settings, "method": "parent"}, task.parent_scores),
        "methods": {},
    }
    name = f"budget_{file_name(args.model)}"
    wanted = {method: task.method_settings(method) for method in METHODS}
    with progress(len(args.methods), "method") as bar:
        for method in args.methods:
            settings = wanted[method]
            store.get(settings, partial(task.run, method, settings, store, bar.set_postfix_str))
            # After each, so that a run that is stopped leaves a table of what it has.
            document["methods"] = {each: store.get(wanted[each], dict) for each in METHODS if wanted[each] in store}
            write_results(args.output_dir, name, document, render(document))
            draw(document, args.output_dir / f"{name}.png")
            bar.update()
    print(render(document))
    return document


def forget(path: Path, methods: Sequence[str]) -> None:
    """Takes the measurements of some methods out of the file."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    kept = [line for line in whole if json.loads(line)["settings"]["method"] not in methods]
    if len(kept) < len(lines):
        write_text(path, "".join(kept))


# ---- What is measured -----------------------------------------------------------------------------------------------


@dataclass
class Curve:
    """
    A model on the test images while it gets better.

    Args:
        logits (`Callable`): of the test images, by the model that is given.
        labels (`numpy.ndarray`): of the test images.
        tell (`Callable`): is given a line for the progress bar with each point.
        points (list of `dict`): `passes` so far, `accuracy` and `nll`.
        latest (`numpy.ndarray`, *optional*): logits of the last point.
        seconds (`float`): processor time spent here, which is no part of the method's.
    """

    logits: Callable[[torch.nn.Module], np.ndarray]
    labels: np.ndarray
    tell: Callable[[str], None]
    points: list[dict[str, float]] = field(default_factory=list)
    latest: np.ndarray | None = None
    seconds: float = 0.0

    def add(self, passes: float, model: torch.nn.Module) -> None:
        start = time.process_time()
        self.latest = self.logits(model)
        scores = Scores.from_logits(self.latest, self.labels)
        self.points.append({"passes": passes, "accuracy": scores.accuracy, "nll": scores.nll})
        self.seconds += time.process_time() - start
        self.tell(f"{passes:.1f} passes, accuracy {scores.accuracy:.2%}")


class Task:
    """A model, its images in three parts, and what methods make of them."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.device = torch.device(args.device)
        options = {"trust_remote_code": args.trust_remote_code}
        self.parent = load_model(args.model, dtype="float32", **options).to(self.device)
        self.processor = load_image_processor(args.model, model=self.parent, **options)
        self.train, self.test = load_data(
            args.data, max_train=args.train_images, max_test=args.test_images, seed=args.seed
        )
        self.train_batches = self.batches(self.train)
        self.test_batches = self.batches(self.test)
        self.learn, self.choose = split_indices(self.train_batches.labels, SELECTION_FRACTION, args.seed)

    def batches(self, dataset: Any, indices: np.ndarray | None = None) -> ImageBatches:
        return image_batches(self.parent, self.processor, dataset, indices, self.args.batch_size)

    @cached_property
    def images(self) -> Images:
        """What baselines learn from."""
        everything, rows = Images.read(self.train_batches, self.device), torch.from_numpy(self.learn)
        return Images(everything.pixels[rows], everything.labels[rows])

    @cached_property
    def selection_batches(self) -> ImageBatches:
        return self.batches(self.train, self.choose)

    @cached_property
    def parent_logits(self) -> np.ndarray:
        return self.logits(self.parent, self.test_batches)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that every measurement depends on."""
        args = self.args
        return {
            "model": public_name(args.model),
            "weights": weights_hash(self.parent)[:16],
            "data": public_name(args.data),
            "data_keys": [data_key(self.train), data_key(self.test)],
            "images": {"learn": len(self.learn), "choose": len(self.choose), "test": len(self.test)},
            "batch_size": args.batch_size,
            "seed": args.seed,
        }

    def method_settings(self, method: str) -> dict[str, Any]:
        """All that the measurement of one method depends on."""
        args, settings = self.args, {**self.settings, "method": method}
        if method in BASELINES:
            return settings | {
                "passes": args.passes,
                "tuning_passes": args.tuning_passes,
                "grid": GRIDS.get(method, []),
            }
        options = EVOLUTION[method]
        if args.population_size is not None:
            options = options | {"population_size": args.population_size}
        if "num_generations" in options:
            return settings | {"options": options}
        return settings | {
            "passes": args.passes,
            "options": options | {"fitness_samples_per_generation": args.samples},
        }

    def logits(self, model: torch.nn.Module, batches: ImageBatches) -> np.ndarray:
        """Without prefix replay, and by an evaluator of its own: reporting is no cost of the method's."""
        return Evaluator(model, self.device, prefix_replay=False).logits(batches)

    def parent_scores(self) -> dict[str, float]:
        scores = Scores.from_logits(self.parent_logits, self.test_batches.labels)
        return {"passes": 0.0, "accuracy": scores.accuracy, "nll": scores.nll}

    def run(
        self, method: str, settings: dict[str, Any], store: Measurements, tell: Callable[[str], None]
    ) -> dict[str, Any]:
        """One method from the parent on: its curve, its last model beside the parent, what it cost and chose."""
        tell(method)
        curve = Curve(
            lambda model: self.logits(model, self.test_batches),
            self.test_batches.labels,
            lambda text: tell(f"{method}, {text}"),
        )
        if method in BASELINES:
            extra = self.run_baseline(method, settings, store, curve)
        else:
            extra = self.run_evolution(method, settings, curve)
        return {"points": curve.points, "final": self.final(curve.latest), **extra}

    def final(self, logits: np.ndarray) -> dict[str, Any]:
        """The last model beside the parent, with intervals."""
        labels = self.test_batches.labels
        scores, difference = measured(self.parent_logits, logits, labels, "evolved", self.args.seed)
        return {"scores": scores, "difference": difference}

    # ---- Baselines

    def run_baseline(self, method: str, settings: dict[str, Any], store: Measurements, curve: Curve) -> dict[str, Any]:
        options = self.tuned(method, settings, store)
        model, data, spent = copy.deepcopy(self.parent), self.images, 0
        total = self.args.passes * len(self.train)
        marks = list(np.linspace(0, total, POINTS + 1)[1:])
        start = time.process_time()
        for images in BASELINES[method](model, data, total=total, seed=self.args.seed, **options):
            spent += images
            if spent >= marks[0]:
                curve.add(spent / len(self.train), model)
                marks = [mark for mark in marks if mark > spent]
            if not marks:
                break
        if not curve.points or curve.points[-1]["passes"] < spent / len(self.train):
            curve.add(spent / len(self.train), model)
        tuning = len(settings["grid"]) * (settings["tuning_passes"] + len(self.choose) / len(self.train))
        seconds = time.process_time() - start - curve.seconds
        return {"options": options, "tuning_passes": tuning, "seconds": seconds}

    def tuned(self, method: str, settings: dict[str, Any], store: Measurements) -> dict[str, Any]:
        """The options of the grid whose short run has the lowest NLL on the selection split."""

        def trial(options: dict[str, Any]) -> dict[str, Any]:
            model, spent = copy.deepcopy(self.parent), 0
            for images in BASELINES[method](model, self.images, seed=self.args.seed, **options):
                spent += images
                if spent >= self.args.tuning_passes * len(self.train):
                    break
            batches = self.selection_batches
            loss = float(nll(self.logits(model, batches), batches.labels).mean())
            return {"nll": loss if np.isfinite(loss) else None}

        if not settings["grid"]:
            return {}
        short = {name: value for name, value in settings.items() if name not in ("passes", "grid")}
        found = [store.get({**short, "trial": options}, partial(trial, options)) for options in settings["grid"]]
        losses = [np.inf if each["nll"] is None else each["nll"] for each in found]
        return settings["grid"][int(np.argmin(losses))]

    # ---- Evolution

    def common_options(self) -> dict[str, Any]:
        """Of all ways, where they have none of their own: more generations than there are passes for, which `Watch` ends."""
        return {"num_generations": math.ceil(self.args.passes), "selection_fraction": SELECTION_FRACTION}

    def run_evolution(self, method: str, settings: dict[str, Any], curve: Curve) -> dict[str, Any]:
        options = settings["options"]
        ensemble = bool(options.get("ensemble_size"))
        with tempfile.TemporaryDirectory() as folder:
            args = evolution_arguments(folder, self.args, **self.common_options() | options, seed=self.args.seed)
            trainer = EvolutionTrainer(
                copy.deepcopy(self.parent),
                args,
                train_dataset=self.train,
                eval_dataset=self.test if ensemble else None,
                processing_class=self.processor,
            )
            watch = Watch(trainer, curve, len(self.train), settings.get("passes"))
            trainer.add_callback(watch)
            trainer.train()
        result = {
            "generations": len(trainer.run.generations),
            "chosen": [record["chosen"] for record in trainer.run.generations],
            "population_size": args.population_size,
            "seconds": watch.seconds,
        }
        if ensemble:
            report = trainer.report
            result["ensemble"] = {
                "passes": watch.passes_in_all,
                "members": report["ensemble_members"]["size"],
                "final": {"scores": report["ensemble"], "difference": report["ensemble_difference"]},
            }
        return result


class Watch(TrainerCallback):
    """
    Reports on a run of evolution after each generation, and ends it before it would cost more than it may.

    Args:
        trainer ([`EvolutionTrainer`]), curve ([`Curve`]): whose run, and where its points go.
        num_images (`int`): of one pass.
        limit (`float`, *optional*): passes that it may cost.

    Attributes:
        passes_in_all (`float`), seconds (`float`): of the whole run, with the choice of an ensemble's members; the latter of
            the processor.
    """

    def __init__(self, trainer: EvolutionTrainer, curve: Curve, num_images: int, limit: float | None):
        self.trainer = trainer
        self.curve = curve
        self.num_images = num_images
        self.limit = limit

    @property
    def passes(self) -> float:
        return self.trainer.run.full_passes / self.num_images

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = time.process_time()
        self.before = self.passes

    def on_step_end(self, args, state, control, **kwargs):
        passes = self.passes
        self.curve.add(passes, self.trainer.model)
        if self.limit is not None and 2 * passes - self.before > self.limit:
            control.should_training_stop = True
        self.before = passes
        return control

    def on_train_end(self, args, state, control, **kwargs):
        # An ensemble has been chosen since, on the selection split; nothing has been reported on.
        self.seconds = time.process_time() - self.start - self.curve.seconds
        self.passes_in_all = self.passes


if __name__ == "__main__":
    run_plainly(main)
