"""
A soak: a small real run is killed again and again at random cells, resumed over another number of processes, and compared.

    python tests/robustness/soak.py --kills 40 --json tests/robustness/results/soak.json

A ResNet that was trained on scikit-learn's digits is evolved on blurred ones, in five ways. One run of each is never stopped.
The others are ended by SIGKILL after a cell, in the middle of writing one, or at any moment, and go on over one, two or three
processes, until they are done: then every byte of their weights, children, log and report must be that of the first. A cell
whose line was complete must never be written again.

Processes are forked from this one, for importing the libraries would take longer than all the rest.
"""

import argparse
import json
import os
import random
import re
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import datasets
import torch
from transformers.utils import logging

from smd_hf import EvolutionTrainer
from smd_hf.cli.digits import digit_splits, train_parent
from smd_hf.files import write_json
from smd_hf.run.lines import LineWriter, to_line
from smd_hf.scoring import sums
from tests.plain import plain_arguments

CASES: dict[str, dict[str, Any]] = {
    "partition, best": dict(decomposition="partition", recombination="best", recombination_top_k=2),
    "blocks, gauss_newton": dict(
        decomposition="blocks", recombination="gauss_newton", recombination_top_k=1, mirrored=True, sigma=0.05
    ),
    "random, racing": dict(decomposition="random", density=0.5, racing="halving", recombination_top_k=2, save_steps=1),
    # BatchNorm statistics and the head first, the head last, on all images; generations see some of them, by importance.
    "adapt": dict(preset="adapt", fitness_samples_per_generation=80),
    "unlabeled": dict(preset="adapt", unlabeled=True, elitism=True),
}
COMMON: dict[str, Any] = dict(
    population_size=6,
    num_generations=3,
    elitism=False,
    calibration_samples=32,
    per_device_eval_batch_size=8,
    use_cpu=True,
    disable_tqdm=True,
    report_to="none",
    ddp_timeout=120,
)
TRAIN_IMAGES, TEST_IMAGES = 160, 64

MODES = ("after a line", "within a line", "at any moment")
LINES = 90
"""A process is killed at one of so many first lines that it writes, drawn at random."""

SECONDS = 4.0
"""Or at a moment within so many seconds."""

TIMED = re.compile(r"(runtime|per_second|seconds|parent_passes)$")
HANGS_AFTER = 600


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=40, help="How often to kill, over all runs.")
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[1, 2, 3], help="Numbers of processes to choose from."
    )
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="Which ways of evolving.")
    parser.add_argument("--seed", type=int, default=0, help="Of when, how, and over how many processes.")
    parser.add_argument("--json", type=Path, help="Where to write what was counted.")
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Kills, resumes and compares; returns what was counted."""
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    logging.set_verbosity_error()
    chance, start = random.Random(args.seed), time.monotonic()
    found: dict[str, Any] = {
        "kills": 0, "runs": 0, "mismatches": 0, "cells": 0, "cells_scored_twice": 0,
        "kills_by_case": dict.fromkeys(args.cases, 0), "kills_by_mode": dict.fromkeys(MODES, 0),
        "kills_by_processes": {str(number): 0 for number in args.processes},
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        root = Path(temporary)
        parent = root / "parent"
        launch(1, root / "parent.txt", lambda: train_parent(digit_splits(0)["parent"], parent, 0))
        whole = {case: root / f"whole {case}" for case in args.cases}
        for case in args.cases:
            launch(1, root / "whole.txt", lambda case=case: evolve(parent, whole[case], case, None))
        while found["kills"] < args.kills:
            case = args.cases[found["runs"] % len(args.cases)]
            folder = root / f"run {found['runs']}"
            while survives(found, chance, args, parent, folder, case):
                pass
            found["runs"] += 1
            different = differences(whole[case], folder)
            found["mismatches"] += bool(different)
            written = Counter(
                line for audit in root.glob(f"{folder.name}.cells*") for line in audit.read_text().splitlines()
            )
            found["cells"] += len(written)
            found["cells_scored_twice"] += sum(count > 1 for count in written.values())
            print(
                f"run {found['runs']} ({case}): {found['kills']} kills so far, "
                + (f"differs in {', '.join(different)}" if different else "the same bytes"),
                flush=True,
            )
    found |= {"seed": args.seed, "minutes": round((time.monotonic() - start) / 60, 1)}
    found["versions"] = {name: version(name) for name in ("torch", "transformers", "accelerate")}
    print(
        f"{found['kills']} kills in {found['runs']} runs: {found['mismatches']} mismatches, "
        f"{found['cells_scored_twice']} of {found['cells']} cells scored twice."
    )
    if args.json is not None:
        write_json(args.json, found)
    return found


def survives(
    found: dict[str, Any], chance: random.Random, args: argparse.Namespace, parent: Path, folder: Path, case: str
) -> bool:
    """Lets a run go on over some processes, to be killed; returns whether it was, before it was done."""
    processes, mode = chance.choice(args.processes), chance.choice(MODES)
    victim, line = chance.randrange(processes), chance.randint(1, LINES)
    seconds = chance.uniform(0, SECONDS) if mode == "at any moment" else None
    attempt = found["kills"]

    def work(rank: int) -> None:
        audit = folder.with_name(f"{folder.name}.cells {attempt} {rank}")
        watch_lines(audit, line if seconds is None and rank == victim else None, mode)
        evolve(parent, folder, case, True)

    killed = launch(processes, folder.with_suffix(".txt"), work, seconds, folder)
    if killed:
        found["kills"] += 1
        found["kills_by_case"][case] += 1
        found["kills_by_mode"][mode] += 1
        found["kills_by_processes"][str(processes)] += 1
    return killed


def evolve(parent: Path, folder: Path, case: str, resume: bool | None) -> None:
    """One run, or what is left of it."""
    # Each segment of the data is finished by itself, however fast the machine.
    sums.PART_SECONDS = 0.0
    splits = digit_splits(0)
    trainer = EvolutionTrainer(
        parent,
        plain_arguments(str(folder), **COMMON | CASES[case]),
        train_dataset=splits["train"].select(range(TRAIN_IMAGES)),
        eval_dataset=splits["test"].select(range(TEST_IMAGES)),
    )
    trainer.train(resume_from_checkpoint=resume)


def watch_lines(audit: Path, deadly: int | None, mode: str) -> None:
    """Notes which cells this process has written, and kills it at one of its lines."""
    write, lines = LineWriter.write, 0

    def watched(writer: LineWriter, entry: dict[str, Any]) -> None:
        nonlocal lines
        lines += 1
        if lines == deadly and mode == "within a line":
            content = to_line(entry)
            writer._file.write(content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        write(writer, entry)
        scope = Path(writer._file.name).parent.name
        with open(audit, "a") as file:
            file.writelines(
                f"{scope} {entry['call']} {cell['variant']} {cell['batch']}\n" for cell in entry.get("cells", ())
            )
        if lines == deadly:
            os.kill(os.getpid(), signal.SIGKILL)

    LineWriter.write = watched


def launch(processes: int, log: Path, work: Any, seconds: float | None = None, folder: Path | None = None) -> bool:
    """
    Runs `work(rank)` in forked processes; returns whether they were killed, all when one is, before they were done.

    Args:
        processes (`int`): how many.
        log (`Path`): receives what they print.
        work (`Callable`): takes the rank, unless nobody is to be killed.
        seconds (`float`, *optional*): when to kill them, counted from when the ledger in `folder` is there.
        folder (`Path`, *optional*): the output folder of a run that may be killed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alive = {fork(rank, processes, port, log, work, folder is not None): rank for rank in range(processes)}
    began, doomed, killed = time.monotonic(), None, False
    while alive:
        number, status = os.waitpid(-1, os.WNOHANG)
        if number:
            alive.pop(number)
            if os.WIFSIGNALED(status):
                killed = True
                for other in alive:
                    os.kill(other, signal.SIGKILL)
            elif os.WEXITSTATUS(status) and not killed:
                end(alive)
                sys.exit(f"A process failed:\n{log.read_text()[-3000:]}")
            continue
        if seconds is not None and doomed is None and (folder / "ledger").is_dir():
            doomed = time.monotonic() + seconds
        if doomed is not None and time.monotonic() >= doomed:
            doomed = seconds = None
            end(alive)
        if time.monotonic() - began > HANGS_AFTER:
            end(alive)
            sys.exit(f"The processes hang:\n{log.read_text()[-3000:]}")
        time.sleep(0.005)
    return killed


def end(processes: dict[int, int]) -> None:
    for number in processes:
        os.kill(number, signal.SIGKILL)


def fork(rank: int, processes: int, port: int, log: Path, work: Any, ranked: bool) -> int:
    """A process of its own, as a launcher starts it; its number."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if processes > 1:
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            os.environ.update({name: str(value) for name, value in names.items()})
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        work(rank) if ranked else work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def differences(whole: Path, resumed: Path) -> list[str]:
    """The results in which a resumed run differs from one that was never stopped."""
    different = [
        name
        for name in ("model.safetensors", "children.jsonl")
        if (whole / name).read_bytes() != (resumed / name).read_bytes()
    ]
    for name in ("gain_report.json", "trainer_state.json"):
        old, new = (without_times(json.loads((each / name).read_text())) for each in (whole, resumed))
        if old != new:
            different.append(name)
    return different


def without_times(value: Any) -> Any:
    """Less what depends on the speed of the machine, and on where its folders are."""
    if isinstance(value, list):
        return [without_times(each) for each in value]
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if not TIMED.search(key)}
    return value


if __name__ == "__main__":
    counted = main(make_parser().parse_args())
    sys.exit(bool(counted["mismatches"] or counted["cells_scored_twice"]))
