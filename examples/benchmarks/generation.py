"""
What one generation costs: the naive loop against the engine, factor by factor.

naive: for each child a deep copy of the model, the mutation, and `Trainer.predict`, which decodes all images again. Ours:
the same children without prefix replay (plain), with it (replay), as many children dealt out by the cost of scoring them
(cost), and these in a race by successive halving (halving). Each generation includes the parent's own pass, the making of
its children, and the decoding of all images from JPEG.

Also, over images that are decoded already: `uniform_blocks_cost_ratio` and `cost_blocks_cost_ratio`, the time of a
generation of 32 `blocks` children over that of 32 parent passes.
"""

import argparse
import copy
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    PARENT,
    SIGMA,
    Clock,
    Task,
    hardware,
    logger_line,
    make_parser,
    ratios,
    report,
    same_parent,
    settle,
    summary,
    variants,
    write_jpegs,
)
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from smd_hf.scoring.changes import commit
from smd_hf.scoring.evaluator import Variant
from smd_hf.scoring.racing import race
from smd_hf.scoring.scores import Score
from smd_hf.search.mutation import Mutation

PARENT_PASSES = 4
TOLERANCE = 1e-5
"""Largest difference of mean NLL, in nats, at which fitness agrees."""
KEYS = {"uniform_blocks_cost_ratio", "cost_blocks_cost_ratio", "speedup_vs_naive", "speedup_vs_naive_halving"}
QUICK = {
    "models": ["vit_ti"],
    "repeats": 2,
    "children": 24,
    "images": 16,
    "batch_size": 2,
    "blocks_images": 4,
    "blocks_batch_size": 4,
    "timed_children": 1,
}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = make_parser(
        __doc__, ["resnet18", "resnet50", "vit_ti", "efficientnet_b0"], children=64, images=128, batch_size=8
    )
    parser.add_argument(
        "--naive-models", nargs="+", help="Which of the models also go through the naive loop; all by default."
    )
    parser.add_argument("--survivors", type=int, default=4, help="Children that a race leaves.")
    parser.add_argument(
        "--timed-children",
        type=int,
        default=4,
        help="How many children the naive loop and plain scoring are timed on in each repeat, others each time: their times "
        "are in proportion.",
    )
    parser.add_argument("--blocks-children", type=int, default=32, help="For the ratios over decoded images.")
    parser.add_argument("--blocks-images", type=int, default=64, help="Likewise.")
    parser.add_argument("--blocks-batch-size", type=int, default=32, help="Likewise.")
    args = parser.parse_args(argv)
    settle(args, QUICK, parser)
    started = hardware(args)
    results: dict[str, Any] = {name: {} for name in (*sorted(KEYS), "models")}
    with tempfile.TemporaryDirectory() as folder:
        jpegs = write_jpegs(Path(folder), max(args.images, args.blocks_images))
        for name in args.models:
            logger_line(f"generation: {name}, cost ratios")
            model = cost_ratios(
                args, Task.make(name, jpegs[: args.blocks_images], args.device, args.blocks_batch_size)
            )
            if args.naive_models is None or name in args.naive_models:
                logger_line(f"generation: {name}, against the naive loop")
                task = Task.make(name, jpegs[: args.images], args.device, args.batch_size)
                model |= Generations(args, task, Path(folder)).measured()
            results["models"][name] = model
            for key in KEYS & model.keys():
                results[key][name] = model[key]["median"]
    return report("generation", args, started, results)


def cost_ratios(args: argparse.Namespace, task: Task) -> dict[str, Any]:
    """Generations of `blocks` children, the parent's pass among them, over as many passes of the parent."""
    clock, batches, evaluator = Clock(args), task.batches(), task.evaluator()
    uniform = task.mutation("blocks", args.blocks_children)
    by_cost = task.mutation("blocks", args.blocks_children, by_cost=True)

    def generation(mutation: Mutation, number: int) -> None:
        evaluator.score([PARENT, *variants(mutation, number)], batches)

    arms = {
        "parent": lambda number: evaluator.score(
            [Variant(f"parent {copy}") for copy in range(PARENT_PASSES)], batches
        ),
        "uniform": lambda number: generation(uniform, number),
        "cost": lambda number: generation(by_cost, number),
    }
    with same_parent(task.model):
        equal = equal_logits(task, uniform)
        arms["parent"](0)
        seconds = clock.interleaved(arms, args.repeats)
    factor = PARENT_PASSES / args.blocks_children
    return {
        "uniform_blocks_cost_ratio": ratios(seconds["uniform"], seconds["parent"], factor),
        "cost_blocks_cost_ratio": ratios(seconds["cost"], seconds["parent"], factor),
        "parent_pass_images_per_second": summary(
            [PARENT_PASSES * batches.num_images / each for each in seconds["parent"]]
        ),
        "logits_equal_to_full_passes": equal,
    }


def equal_logits(task: Task, mutation: Mutation) -> bool:
    """Whether children's logits are those of full passes to the bit, on the first batch."""
    children, batches = variants(mutation, 0)[::4], task.batches(task.batch_size)
    replayed = task.evaluator().score([PARENT, *children], batches, keep_logits=True)[1:]
    full = task.evaluator(prefix_replay=False).score(children, batches, keep_logits=True)
    return all(np.array_equal(a.logits, b.logits) for a, b in zip(replayed, full))


class Generations:
    """One generation in each of the ways, and whether they agree."""

    def __init__(self, args: argparse.Namespace, task: Task, folder: Path):
        self.args, self.task, self.clock = args, task, Clock(args)
        self.uniform = task.mutation("blocks", args.children)
        self.by_cost = task.mutation("blocks", args.children, by_cost=True)
        self.full, self.replaying = task.evaluator(prefix_replay=False), task.evaluator()
        self.decoded = task.batches()
        self.timed = min(args.timed_children, args.children)
        self.trainer_arguments = TrainingArguments(
            output_dir=str(folder / "naive"),
            use_cpu=task.device == "cpu",
            per_device_eval_batch_size=task.batch_size,
            remove_unused_columns=False,
            report_to="none",
            disable_tqdm=True,
        )
        self.naive_nll: dict[tuple[int, int], float] = {}
        self.scores: dict[tuple[str, int], list[Score]] = {}

    def measured(self) -> dict[str, Any]:
        arms = {
            "naive": self.naive,
            "parent": lambda number: self.full.score([PARENT], self.task.batches()),
            "plain": self.plain,
            "replay": lambda number: self.generation("replay", number),
            "cost": lambda number: self.generation("cost", number),
            "halving": lambda number: self.generation("halving", number),
        }
        with same_parent(self.task.model):
            list(self.decoded)
            self.plain(0)
            seconds = self.clock.interleaved(arms, self.args.repeats)
        factor = self.args.children / self.timed
        seconds["naive"] = [factor * each for each in seconds["naive"]]
        # Plain scoring decodes the images once, and scores the parent once.
        parent = seconds.pop("parent")
        seconds["plain"] = [once + factor * each for once, each in zip(parent, seconds["plain"])]
        steps = list(seconds)
        return {
            "speedup_vs_naive": ratios(seconds["naive"], seconds["cost"]),
            "speedup_vs_naive_halving": ratios(seconds["naive"], seconds["halving"]),
            "speedup_of_each_factor": {
                after: ratios(seconds[before], seconds[after]) for before, after in pairwise(steps)
            },
            "seconds": {name: summary(values) for name, values in seconds.items()},
            "timed_children": self.timed,
            "share_of_images_seen_in_race": summary([self.seen(number) for number in range(self.args.repeats)]),
            "fitness": self.agreement(),
        }

    def sampled(self, number: int) -> list[int]:
        """The children that are timed one by one in a repeat: from the whole population, others in each repeat."""
        stride = self.args.children // self.timed
        return [place * stride + number % stride for place in range(self.timed)]

    def naive(self, number: int) -> None:
        for index in self.sampled(number):
            model = copy.deepcopy(self.task.model)
            child = self.by_cost.children(number, SIGMA)[index]
            commit(dict(model.named_parameters()), self.by_cost.changes(child))
            trainer = Trainer(model=model, args=self.trainer_arguments, data_collator=self.task.collator)
            output = trainer.predict(self.task.dataset)
            self.naive_nll[number, index] = mean_nll(output.predictions, output.label_ids)

    def plain(self, number: int) -> None:
        children = variants(self.by_cost, number)
        self.full.score([children[index] for index in self.sampled(number)], self.decoded)

    def generation(self, way: str, number: int) -> None:
        population = [PARENT, *variants(self.uniform if way == "replay" else self.by_cost, number)]
        if way == "halving":
            scores = race(self.replaying, population, self.task.batches(), self.args.survivors)
        else:
            scores = self.replaying.score(population, self.task.batches())
        self.scores[way, number] = scores

    def seen(self, number: int) -> float:
        images = sum(score.num_images for score in self.scores["halving", number][1:])
        return images / (self.args.children * self.decoded.num_images)

    def agreement(self) -> dict[str, Any]:
        """
        The largest difference of NLL between the naive loop and the engine, and between survivors of a race and the same
        children without it.

        Raises:
            `RuntimeError`: where they do not agree.
        """
        to_naive = [
            abs(nll - self.scores["cost", number][1 + index].nll) for (number, index), nll in self.naive_nll.items()
        ]
        to_full = [
            abs(raced.nll - full.nll)
            for number in range(self.args.repeats)
            for raced, full in zip(self.scores["halving", number], self.scores["cost", number])
            if raced.num_images == full.num_images
        ]
        if max(to_naive) > TOLERANCE or max(to_full) > TOLERANCE:
            raise RuntimeError(f"Fitness differs by {max(to_naive)} and {max(to_full)}: nothing is reported.")
        return {
            "children_compared_with_naive_loop": len(to_naive),
            "largest_difference_from_naive_loop": max(to_naive),
            "survivors_compared": len(to_full),
            "largest_difference_of_survivors": max(to_full),
        }


def mean_nll(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(F.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels)))


if __name__ == "__main__":
    main()
