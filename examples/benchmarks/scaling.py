"""
One generation on 1, 2 and more processes: time, and whether all give the same bytes.

Each run is a fresh `torchrun` launch; within it, both ways of spreading (over images and over children), strong scaling (the same
population on all processes) and weak scaling (as many times the children as processes). Decoding and the gathering of results
are within the measured time, the start of processes and the loading of the model are not.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from common import (
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
    worker_environment,
    write_jpegs,
)

from smd_hf.parallel.processes import Processes
from smd_hf.scoring.scores import Score

MODES = ("data", "children")
QUICK = {"models": ["vit_ti"], "repeats": 1, "children": 2, "images": 8, "batch_size": 4}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = make_parser(__doc__, ["resnet18", "vit_ti"], children=8, images=128, batch_size=32)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="The first of them is compared with.")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    settle(args, QUICK, parser)
    if args.worker is not None:
        return work(args)
    started = hardware(args)
    models = {}
    with tempfile.TemporaryDirectory() as folder:
        write_jpegs(Path(folder), args.images)
        for name in args.models:
            logger_line(f"scaling: {name}")
            models[name] = compared(args, name, Path(folder))
    results = {
        "two_process_time_ratio": {
            name: max(model["strong"][f"2 {mode}"]["time_ratio"]["median"] for mode in MODES)
            for name, model in models.items()
            if 2 in args.processes
        },
        "identical_bytes": all(model["identical_bytes"] for model in models.values()),
        "models": models,
    }
    return report("scaling", args, started, results)


def compared(args: argparse.Namespace, name: str, folder: Path) -> dict[str, Any]:
    """Launches take turns; each gives the seconds and the digest of every way."""
    launches: dict[int, list[dict[str, Any]]] = {processes: [] for processes in args.processes}
    for repeat in range(args.repeats):
        for place in range(len(args.processes)):
            processes = args.processes[(repeat + place) % len(args.processes)]
            launches[processes].append(launch(args, name, folder, processes))
    base = args.processes[0]
    result: dict[str, Any] = {"strong": {}, "weak": {}}
    for kind, ways in result.items():
        for processes in args.processes:
            for mode in MODES:
                seconds = [run[f"{kind} {mode}"]["seconds"] for run in launches[processes]]
                before = [run[f"{kind} {mode}"]["seconds"] for run in launches[base]]
                ways[f"{processes} {mode}"] = {"seconds": summary(seconds), "time_ratio": ratios(seconds, before)}
    digests = {run[f"strong {mode}"]["digest"] for runs in launches.values() for run in runs for mode in MODES}
    return result | {"identical_bytes": len(digests) == 1}


def launch(args: argparse.Namespace, name: str, folder: Path, processes: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += [__file__, "--worker", str(folder), "--models", name]
    for option in ("device", "threads", "children", "images", "batch_size", "clock"):
        command += [f"--{option.replace('_', '-')}", str(getattr(args, option))]
    environment = worker_environment(args.threads)
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment, text=True).stdout
    [line] = [line for line in output.splitlines() if line.startswith("{")]
    return json.loads(line)


def work(args: argparse.Namespace) -> dict[str, Any]:
    """On each process of a launch; the first prints what it measured."""
    state = PartialState(cpu=args.device == "cpu")
    args.device = str(state.device)
    jpegs = sorted(map(str, args.worker.glob("*.jpg")))
    task, clock, results = Task.make(args.models[0], jpegs, args.device, args.batch_size), Clock(args), {}
    with same_parent(task.model):
        task.evaluator().score(variants(task.mutation("random", 2), 0), task.batches(args.batch_size))
        for kind, children in (("strong", args.children), ("weak", args.children * state.num_processes)):
            mutation = task.mutation("random", children)
            for mode in MODES:
                evaluator = task.evaluator(processes=Processes(mode, state.process_index, state.num_processes))
                scores: list[Score] = []

                def generation(evaluator: Any = evaluator, mutation: Any = mutation, scores: Any = scores) -> None:
                    scores += evaluator.score(variants(mutation, 0), task.batches(), keep_logits=True)

                state.wait_for_everyone()
                results[f"{kind} {mode}"] = {"seconds": clock(generation), "digest": digest(scores)}
    if state.is_main_process:
        print(json.dumps(results), flush=True)
    state.destroy_process_group()
    return results


def digest(scores: list[Score]) -> str:
    """A hash over everything that scoring gives."""
    sha = hashlib.sha256()
    for score in scores:
        for part in (score.correct, np.float64(score.nll), score.logits):
            sha.update(np.ascontiguousarray(part).tobytes())
    return sha.hexdigest()


if __name__ == "__main__":
    main()
