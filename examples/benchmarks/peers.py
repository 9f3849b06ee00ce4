"""
The same population on the same images, scored by other libraries: EvoTorch, EvoX, and `torch.func.vmap` by itself.

Two populations: `random` children, of which each needs full passes, so that no method has a shortcut; and `blocks` children,
whose prefixes the engine replays. Everyone makes its children within the measured time, from the same noise: ours in place, the
peers as the matrix of children times parameters that they take. Peers that are not installed, or that do not take the model,
are reported with their `error`. To have them all: `pip install evotorch evox`. Ours is scored in `--runtime`; with `--precision bf16`
also in bfloat16, and peers both in float32 and under autocast. Each has a process of its own: smd_hf has glibc keep freed memory, which peers
do not.
"""

import argparse
import copy
import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    Clock,
    Task,
    Worker,
    hardware,
    logger_line,
    make_parser,
    peak_memory,
    ratios,
    report,
    run_worker,
    same_parent,
    serve,
    settle,
    summary,
    variants,
    worker_options,
    write_jpegs,
)
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from smd_hf.scoring.changes import applied
from smd_hf.scoring.runtimes.choose import RuntimeChoice
from smd_hf.search.mutation import Mutation

QUICK = {"models": ["resnet18"], "repeats": 2, "children": 6, "images": 4, "batch_size": 4, "populations": ["blocks"]}
DENSITY = 1 / 16
TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}
"""Largest difference of mean NLL, in nats: peers add up in float32, and batched kernels in another order."""


class Logits(nn.Module):
    """The model as peers take one: images in, logits out."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixel_values).logits


class Population:
    """
    Children and images in each form in which somebody wants them.

    Args:
        task (`Task`): the model and the images.
        kind (`str`), children (`int`): the decomposition, and how many.
        runtime, precision (`str`): in which ours are scored. Nothing of smd_hf's engine exists before.
    """

    def __init__(self, task: Task, kind: str, children: int, runtime: str, precision: str):
        self.task, self.size = task, children
        self.mutation: Mutation = task.mutation(kind, children, DENSITY if kind == "random" else None)
        self.batches = task.batches()
        self.runtime, self.precision = runtime, precision

    def matrix(self) -> torch.Tensor:
        """All children, of shape `(children, parameters)`, in the order of the model's parameters."""
        parameters = dict(self.task.model.named_parameters())
        rows = torch.empty(self.size, sum(p.numel() for p in parameters.values()), device=self.task.device)
        for row, child in zip(rows, variants(self.mutation, 0)):
            with applied(parameters, child.changes()):
                row.copy_(torch.cat([p.detach().flatten() for p in parameters.values()]))
        return rows

    @cached_property
    def images(self) -> TensorDataset:
        """Pixel values and labels, on the device."""
        device = torch.device(self.task.device)
        pixel_values = torch.cat([batch.inputs(device, torch.float32)["pixel_values"] for batch in self.batches])
        return TensorDataset(pixel_values, torch.from_numpy(self.batches.labels).to(device))

    @cached_property
    def loader(self) -> DataLoader:
        return DataLoader(self.images, batch_size=self.task.batch_size)


Scores = Callable[[], list[float]]
"""Scores the population: NLL of each child."""


def ours(population: Population, network: nn.Module) -> Scores:
    task = population.task
    # As long a run as `auto` needs to look for a faster runtime.
    options = {"batch_size": task.batch_size, "images": 10**9}
    choice = RuntimeChoice(task.model, population.runtime, population.precision, **options)
    evaluator = task.evaluator(choice=choice)

    def scores() -> list[float]:
        children = variants(population.mutation, 0)
        return [score.nll for score in evaluator.score(children, population.batches, coarse=True)]

    return scores


def evotorch(population: Population, network: nn.Module) -> Scores:
    from evotorch.neuroevolution import SupervisedNE

    # As many common minibatches as there are: all images, shuffled, the same for all children.
    problem = SupervisedNE(
        population.images,
        network,
        F.cross_entropy,
        minibatch_size=population.task.batch_size,
        num_minibatches=len(population.batches),
        device=population.task.device,
    )
    batch = problem.generate_batch(population.size)

    def scores() -> list[float]:
        batch.set_values(population.matrix())
        problem.evaluate(batch)
        return batch.evals[:, 0].tolist()

    return scores


def evox(population: Population, network: nn.Module) -> Scores:
    from evox.problems.neuroevolution.supervised_learning import SupervisedLearningProblem
    from evox.utils import ParamsAndVector

    problem = SupervisedLearningProblem(
        network,
        population.loader,
        nn.CrossEntropyLoss(reduction="none"),
        n_batch_per_eval=-1,
        pop_size=population.size,
        device=torch.device(population.task.device),
    )
    adapter = ParamsAndVector(network)

    def scores() -> list[float]:
        with torch.no_grad():
            return problem.evaluate(adapter.batched_to_params(population.matrix())).tolist()

    return scores


def func_vmap(population: Population, network: nn.Module) -> Scores:
    buffers = dict(network.named_buffers())
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    forward = vmap(lambda weights, pixels: functional_call(network, (weights, buffers), (pixels,)), (0, None))

    def scores() -> list[float]:
        parts = population.matrix().split([shape.numel() for shape in shapes.values()], dim=1)
        stacked = {name: part.reshape(-1, *shape) for (name, shape), part in zip(shapes.items(), parts)}
        sums = torch.zeros(population.size, dtype=torch.float64, device=population.task.device)
        with torch.no_grad():
            for pixels, labels in population.loader:
                logits = forward(stacked, pixels)
                sums += torch.stack([F.cross_entropy(each, labels, reduction="sum") for each in logits])
        return (sums / len(population.images)).tolist()

    return scores


WAYS: dict[str, Callable[[Population, nn.Module], Scores]] = {
    "ours": ours,
    "evotorch": evotorch,
    "evox": evox,
    "torch.func.vmap": func_vmap,
}


def in_bf16(make: Callable[[Population, nn.Module], Scores]) -> Callable[[Population, nn.Module], Scores]:
    """The same way under autocast."""

    def made(population: Population, network: nn.Module) -> Scores:
        scores, device = make(population, network), torch.device(population.task.device).type

        def coarse() -> list[float]:
            with torch.autocast(device, torch.bfloat16):
                return scores()

        return coarse

    return made


PEERS_IN_BF16 = {f"{way} in bf16": in_bf16(make) for way, make in WAYS.items() if way != "ours"}
LIBRARIES = {"evotorch": "evotorch.neuroevolution", "evox": "evox.problems.neuroevolution.supervised_learning"}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = make_parser(__doc__, ["resnet18", "vit_ti"], children=16, images=32, batch_size=32)
    parser.add_argument("--populations", nargs="+", default=["random", "blocks"], help="Decompositions.")
    parser.add_argument("--runtime", default="auto", choices=["auto", "eager", "openvino"], help="Of ours.")
    parser.add_argument(
        "--precision", default="fp32", choices=["fp32", "bf16"], help="Of ours; peers are tried in both."
    )
    parser.add_argument("--worker", choices=[*WAYS, *PEERS_IN_BF16], help=argparse.SUPPRESS)
    parser.add_argument("--memory", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    settle(args, QUICK, parser)
    if args.images % args.batch_size:
        parser.error("--images must be a multiple of --batch-size: EvoTorch takes the mean of its minibatches' means.")
    warnings.simplefilter("ignore")
    if args.worker is not None:
        return memory_of(args) if args.memory else answer(args)
    started = hardware(args)
    models = {}
    for name in args.models:
        models[name] = {}
        for kind in args.populations:
            logger_line(f"peers: {name}, {kind}")
            models[name][kind] = compared(args, name, kind)
    peers = {}
    for peer in ways(args):
        if peer != "ours":
            by_kind = {
                kind: over_models([model[kind][peer] for model in models.values()]) for kind in args.populations
            }
            peers[peer] = by_kind[args.populations[-1]] | {"populations": by_kind}
    return report("peers", args, started, {"peers": peers, "models": models, "peer_versions": peer_versions()})


def ways(args: argparse.Namespace) -> dict[str, Callable[[Population, nn.Module], Scores]]:
    """By name, all ways to score that are compared."""
    return WAYS | (PEERS_IN_BF16 if args.precision == "bf16" else {})


def over_models(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The smallest ratios over all models, and every error. `peers` has those of the last population at the top."""
    errors = [row["error"] for row in rows if row["error"] is not None]
    done = [row for row in rows if row["error"] is None]
    return {
        "time_ratio": min((row["time_ratio"]["median"] for row in done), default=None),
        "memory_ratio": min((row["memory_ratio"] for row in done), default=None),
        "error": "; ".join(errors) or None,
    }


def peer_versions() -> dict[str, str | None]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def compared(args: argparse.Namespace, name: str, kind: str) -> dict[str, Any]:
    """Time and memory of each peer over ours for one model; nothing but the error of one that cannot do it."""
    workers: dict[str, Worker] = {}
    errors = {}
    try:
        for way in ways(args):
            workers[way] = worker = Worker(__file__, options(args, name, kind, way), args.threads)
            difference = float(np.max(np.abs(np.subtract(worker.first["nll"], workers["ours"].first["nll"]))))
            if worker.first["error"]:
                errors[way] = worker.first["error"]
            elif difference > TOLERANCE[args.precision]:
                errors[way] = f"its scores differ from ours by up to {difference:.3g} nats"
        if "ours" in errors:
            raise RuntimeError(errors["ours"])
        seconds = Clock(args).interleaved(
            {way: each for way, each in workers.items() if way not in errors}, args.repeats
        )
    finally:
        for worker in workers.values():
            worker.close()
    own_memory = measured_memory(args, name, kind, "ours")
    rows: dict[str, Any] = {"ours": {"seconds": summary(seconds["ours"]), "memory": own_memory}}
    for way in ways(args):
        if way == "ours":
            continue
        rows[way] = {"time_ratio": None, "memory_ratio": None, "error": errors.get(way)}
        if way not in errors:
            used = measured_memory(args, name, kind, way)
            rows[way] |= {
                "time_ratio": ratios(seconds[way], seconds["ours"]),
                "memory_ratio": used["extra"] / own_memory["extra"],
                "seconds": summary(seconds[way]),
                "memory": used,
            }
    return rows


def measured_memory(args: argparse.Namespace, name: str, kind: str, way: str) -> dict[str, int]:
    """Of one way, in another process."""
    return run_worker(__file__, options(args, name, kind, way) | {"memory": 1}, args.threads)


def options(args: argparse.Namespace, name: str, kind: str, way: str) -> dict[str, Any]:
    """Arguments of a process for one way."""
    return worker_options(args, name) | {
        "worker": way,
        "populations": kind,
        "children": args.children,
        "runtime": args.runtime,
        "precision": args.precision,
    }


def population_of(args: argparse.Namespace, jpegs: Sequence[str]) -> Population:
    """In the process of one way: what it scores."""
    task = Task.make(args.models[0], jpegs, args.device, args.batch_size)
    return Population(task, args.populations[0], args.children, args.runtime, args.precision)


def answer(args: argparse.Namespace) -> dict[str, Any]:
    """In the process of one way: scores whenever it is asked to. Its first answer has the NLL, or the error."""
    with tempfile.TemporaryDirectory() as folder:
        population = population_of(args, write_jpegs(Path(folder), args.images))
        model = population.task.model
        scores: list[Scores] = []

        def work() -> dict[str, Any]:
            try:
                if not scores:
                    network = model if args.worker == "ours" else copy.deepcopy(model)
                    scores.append(ways(args)[args.worker](population, Logits(network)))
                nll = scores[0]()  # numbers of Python: a GPU is done with them
            except Exception as error:  # whatever a library raises for a model that it does not take
                lines = str(error).strip().splitlines() or [""]
                return {"nll": [0.0] * args.children, "error": f"{type(error).__name__}: {lines[0]}"}
            return {"nll": nll, "error": None}

        with same_parent(model):
            serve(work)
    return {}


def memory_of(args: argparse.Namespace) -> dict[str, int]:
    """In a process of its own: the libraries are loaded before it counts."""
    if (peer := args.worker.removesuffix(" in bf16")) in LIBRARIES:
        import_module(LIBRARIES[peer])
    with tempfile.TemporaryDirectory() as folder:
        jpegs = write_jpegs(Path(folder), args.images)
        with peak_memory(args.device) as used:
            population = population_of(args, jpegs)
            ways(args)[args.worker](population, Logits(population.task.model))()
    print(json.dumps(used))
    return used


if __name__ == "__main__":
    main()
