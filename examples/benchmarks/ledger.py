"""
What the ledger costs: generations by Gauss-Newton steps, the default, with and without it.

A generation scores the parent and its children on the fitness images, with the sums of a step, then seven candidates on a
quarter as many others, and is finished: with a ledger, every cell is on the disk by then, and the line of the generation too.
Without one, all children are put in once for all batches, as far as memory allows; with one, for `PART_SECONDS` at a time.
`ledger_time_ratio` is the time with over the time without. With `--clock cpu`, which does not count waiting, `disk_share` says
for what share of the time without a ledger the disk was waited for.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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

from smd_hf.parallel.processes import Processes
from smd_hf.run.ledger import Ledger
from smd_hf.scoring.sums import Tap
from smd_hf.search.gauss_newton import GaussNewtonSums
from smd_hf.search.losses import cross_entropy

CANDIDATES = 7
QUICK = {"models": ["vit_ti"], "repeats": 2, "children": 4, "images": 16, "batch_size": 2}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = make_parser(__doc__, ["vit_ti"], children=16, images=64, batch_size=8)
    args = parser.parse_args(argv)
    settle(args, QUICK, parser)
    started = hardware(args)
    results: dict[str, Any] = {"ledger_time_ratio": {}, "disk_share": {}, "models": {}}
    with tempfile.TemporaryDirectory() as folder:
        jpegs = write_jpegs(Path(folder), args.images)
        for name in args.models:
            logger_line(f"ledger: {name}")
            task = Task.make(name, jpegs, args.device, args.batch_size)
            model = measured(args, task, Path(folder) / "ledger")
            results["models"][name] = model
            for key in ("ledger_time_ratio", "disk_share"):
                results[key][name] = model[key]["median"]
    return report("ledger", args, started, results)


def measured(args: argparse.Namespace, task: Task, folder: Path) -> dict[str, Any]:
    """Generations in both ways, in turns."""
    clock, batches, selection = Clock(args), task.batches(), task.batches(max(1, args.images // 4))
    mutation = task.mutation("partition", args.children)
    evaluator = task.evaluator()
    ledger = Ledger.start(folder, Processes(), {"format": 1})
    waited: list[float] = []

    def generation(number: int) -> Any:
        children = variants(mutation, number)
        sums = GaussNewtonSums(mutation.children(number, SIGMA), cross_entropy())
        evaluator.score([PARENT, *children], batches, sums=sums)
        return evaluator.score(children[:CANDIDATES], selection)[0]

    def without(number: int) -> None:
        evaluator.ledger = None
        with all_at_once():
            generation(number)

    def kept(number: int) -> None:
        evaluator.ledger = ledger
        with waiting_for_disk() as seconds:
            with ledger.scope(f"generation-{number:05d}"):
                selected = generation(number)
            ledger.finish(number, {"record": None, "after": None}, selected)
            ledger.drop(f"generation-{number:05d}")
        waited.append(sum(seconds))

    with same_parent(task.model):
        list(batches), list(selection)
        without(0)
        seconds = clock.interleaved({"without": without, "with": kept}, args.repeats)
    return {
        "ledger_time_ratio": ratios(seconds["with"], seconds["without"]),
        "disk_share": ratios(waited, seconds["without"]),
        "seconds": {name: summary(values) for name, values in seconds.items()},
    }


@contextmanager
def all_at_once() -> Iterator[None]:
    """Children are put in once for as many batches as memory allows, as they would be if nothing had to be safe before the end."""
    parts = Tap.parts
    Tap.parts = lambda tap, group, most: (group[start : start + most] for start in range(0, len(group), most))
    try:
        yield
    finally:
        Tap.parts = parts


@contextmanager
def waiting_for_disk() -> Iterator[list[float]]:
    """Seconds of each wait for the disk inside."""
    fsync, seconds = os.fsync, []

    def timed(descriptor: int) -> None:
        start = time.perf_counter()
        fsync(descriptor)
        seconds.append(time.perf_counter() - start)

    os.fsync = timed
    try:
        yield seconds
    finally:
        os.fsync = fsync


if __name__ == "__main__":
    main()
