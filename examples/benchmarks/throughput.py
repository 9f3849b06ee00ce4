"""
How fast children are scored without any shortcut, against plain inference of their parent: `throughput_ratio` (R1).

Children change a random 1/16 of all weights; no prefix is replayed, nobody leaves early, and images are decoded already for
both sides. Also: the peak memory of scoring over that of the parent's inference (R3), what putting a child in and taking it
out costs, and what making one costs for an 86-million-parameter ViT-B.
"""

import argparse
import gc
import json
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    PARENT,
    Clock,
    Task,
    hardware,
    logger_line,
    make_parser,
    peak_memory,
    ratios,
    report,
    run_worker,
    same_parent,
    settle,
    summary,
    variants,
    worker_options,
    write_jpegs,
)

from smd_hf.scoring.changes import applied

CHUNKS = 4
"""Children that are timed in each repeat, each beside a pass of the parent; others in each repeat."""

QUICK = {
    "models": ["vit_ti"],
    "repeats": 2,
    "images": 8,
    "batch_size": 4,
    "populations": [2],
    "construction_images": 1,
}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = make_parser(
        __doc__, ["resnet18", "resnet50", "vit_ti", "vit_s", "efficientnet_b0"], children=16, images=256, batch_size=32
    )
    parser.add_argument("--density", type=float, default=1 / 16, help="Share of the weights that a child changes.")
    parser.add_argument("--populations", type=int, nargs="+", default=[4, 32], help="For the peak memory.")
    parser.add_argument(
        "--construction-model", default="vit_base_patch16_224", help="Whose children's making is timed."
    )
    parser.add_argument("--construction-images", type=int, default=32, help="How many images its speed is taken from.")
    parser.add_argument(
        "--fitness-images", type=int, default=2000, help="What the making is compared with scoring on."
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    settle(args, QUICK, parser)
    if args.worker is not None:
        return memory_of(args)
    started = hardware(args)
    results: dict[str, Any] = {name: {} for name in ("throughput_ratio", "peak_memory_ratio", "models")}
    with tempfile.TemporaryDirectory() as folder:
        jpegs = write_jpegs(Path(folder), args.images)
        for name in args.models:
            logger_line(f"throughput: {name}")
            model = speed(args, Task.make(name, jpegs, args.device, args.batch_size))
            model["memory"] = memory(args, name)
            results["models"][name] = model
            results["throughput_ratio"][name] = model["throughput_ratio"]["median"]
            results["peak_memory_ratio"][name] = model["memory"]["peak_memory_ratio"]
        logger_line(f"throughput: construction of {args.construction_model}")
        results["construction"] = construction(args, jpegs)
    return report("throughput", args, started, results)


def speed(args: argparse.Namespace, task: Task) -> dict[str, Any]:
    """Images a second of children and of their parent, of the same engine and of a bare loop over the model."""
    clock, batches = Clock(args), task.batches()
    evaluator = task.evaluator(prefix_replay=False)
    mutation = task.mutation("random", args.children, args.density)
    inputs = [evaluator.inputs(batch) for batch in batches]

    def child(number: int) -> None:
        generation, place = divmod(number, args.children)
        evaluator.score([variants(mutation, generation)[place]], batches)

    def parent(number: int) -> None:
        evaluator.score([PARENT], batches)

    def bare(number: int) -> None:
        with torch.inference_mode():
            for each in inputs:
                task.model(**each).logits.argmax(-1).cpu()

    with same_parent(task.model):
        for warm_up in (child, parent, bare):
            warm_up(0)
        seconds = clock.interleaved({"child": child, "parent": parent, "bare": bare}, args.repeats, CHUNKS)
        exchange = cost_of_exchange(args, task, clock, mutation, evaluator.parameters)
    images = CHUNKS * args.images
    pass_of_batch = np.median(seconds["parent"]) / (CHUNKS * len(batches))
    return {
        "throughput_ratio": ratios(seconds["parent"], seconds["child"]),
        "throughput_ratio_to_bare_model": ratios(seconds["bare"], seconds["child"]),
        "child_images_per_second": summary([images / each for each in seconds["child"]]),
        "parent_images_per_second": summary([images / each for each in seconds["parent"]]),
        "shares_of_one_pass_over_a_batch": {
            name: summary([each / pass_of_batch for each in values]) for name, values in exchange.items()
        },
    }


def cost_of_exchange(args: argparse.Namespace, task: Task, clock: Clock, mutation: Any, parameters: Any) -> dict:
    """Seconds of making each of some children, and of putting them in and taking them out again."""
    seconds: dict[str, list[float]] = {"make": [], "apply_and_restore": []}
    for variant in variants(mutation, args.repeats)[: args.repeats]:
        made: list = []
        seconds["make"].append(clock(lambda variant=variant, made=made: made.extend(variant.changes())))

        def exchange(made: list = made) -> None:
            with applied(parameters, made):
                pass

        exchange()
        seconds["apply_and_restore"].append(clock(exchange))
    return seconds


def memory(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """
    Peak memory of scoring a population over that of the parent's inference, each in a process of its own.

    `peak_memory_ratio` is of what is needed beyond the libraries (weights, images, activations, children) on the CPU, and of
    all that is allocated on a GPU; the largest over the populations. Kept apart: children whose prefixes are replayed, for
    which block outputs of one batch are held.
    """
    parent = measured_memory(args, name, "parent")
    result: dict[str, Any] = {"parent": parent, "populations": {}}
    for mode in ("children", "replayed"):
        for size in args.populations if mode == "children" else args.populations[-1:]:
            peak = measured_memory(args, name, mode, size)
            peak |= {f"{part}_ratio": peak[part] / parent[part] for part in ("extra", "total")}
            result["populations"][f"{size} {mode}"] = peak
    largest = [result["populations"][f"{size} children"]["extra_ratio"] for size in args.populations]
    result["peak_memory_ratio"] = max(largest)
    return result


def measured_memory(args: argparse.Namespace, name: str, mode: str, children: int = 0) -> dict[str, int]:
    """In a process of its own, on one batch of images."""
    options = {"worker": mode, "children": children, "images": args.batch_size, "density": args.density}
    return run_worker(__file__, worker_options(args, name) | options, args.threads)


def memory_of(args: argparse.Namespace) -> dict[str, int]:
    """In the process of its own: model, batches kept as uint8, and passes; the libraries are loaded before it counts."""
    with tempfile.TemporaryDirectory() as folder:
        jpegs = write_jpegs(Path(folder), args.images)
        gc.collect()
        with peak_memory(args.device) as used:
            task = Task.make(args.models[0], jpegs, args.device, args.batch_size)
            evaluator, batches = task.evaluator(prefix_replay=args.worker == "replayed"), task.batches()
            if args.worker == "parent":
                population = [PARENT]
            elif args.worker == "children":
                population = variants(task.mutation("random", args.children, args.density), 0)
            else:
                population = [PARENT, *variants(task.mutation("blocks", args.children), 0)]
            with same_parent(task.model):
                evaluator.score(population, batches)
    print(json.dumps(used))
    return used


def construction(args: argparse.Namespace, jpegs: list[str]) -> dict[str, Any]:
    """Noise, mask and indices of a child of a large model: seconds as a share of scoring it, and the memory of making it."""
    task = Task.make(args.construction_model, jpegs[: args.construction_images], args.device, args.batch_size)
    clock, batches, evaluator = Clock(args), task.batches(), task.evaluator(prefix_replay=False)
    mutation = task.mutation("random", args.repeats, args.density)
    children = variants(mutation, 0)
    list(batches)
    arms = {
        "make": lambda number: [None for _ in children[number].changes()],
        "score": lambda number: evaluator.score([PARENT], batches),
    }
    with same_parent(task.model):
        evaluator.score([PARENT], task.batches(1))
        seconds = clock.interleaved(arms, args.repeats)
        tracemalloc.start()
        for _ in children[0].changes():
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    largest = max(parameter.nbytes for parameter in task.model.parameters())
    return {
        "parameters": sum(mutation.space.sizes),
        "seconds": summary(seconds["make"]),
        "images_per_second": summary([batches.num_images / each for each in seconds["score"]]),
        "share_of_scoring": ratios(seconds["make"], seconds["score"], batches.num_images / args.fitness_images),
        "peak_bytes": peak,
        "peak_over_largest_tensor": peak / largest,
    }


if __name__ == "__main__":
    main()
