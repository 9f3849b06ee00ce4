"""
What each runtime makes of the machine: children against the limit, which is the parent with constant weights in the same runtime.

`child_over_limit` is the children's speed over the limit's, `child_over_eager` over that of eager PyTorch's parent. Children change
all weights (`partition`) or norms and head alone; they are made, put in and scored within the measured time. `child_over_pytorch`
is over PyTorch as it comes, in a process of its own: smd_hf has glibc keep freed memory, which makes eager PyTorch faster, too.
`blocks_cost` is what a generation of `blocks` children that start in the middle costs, over as many full passes of the same runtime.
"""

import argparse
import tempfile
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import (
    PARENT,
    Clock,
    Task,
    Worker,
    hardware,
    logger_line,
    make_parser,
    ratios,
    report,
    same_parent,
    serve,
    settle,
    summary,
    variants,
    worker_options,
    write_jpegs,
)
from torch import nn

from smd_hf.scoring.evaluator import Evaluator
from smd_hf.scoring.runtimes.choose import identity
from smd_hf.scoring.runtimes.compiled import compiled
from smd_hf.scoring.runtimes.openvino import OpenVINO, has_bf16
from smd_hf.scoring.runtimes.protocol import Runtime
from smd_hf.scoring.runtimes.segmented import SEGMENTS, SegmentedRuntime
from smd_hf.search.mutation import Mutation
from smd_hf.search.parameter_space import parameter_space
from smd_hf.search.subspaces import make_decomposition

QUICK = {"models": ["resnet18"], "repeats": 2, "images": 16, "batch_size": 8, "children": 4}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    models = ["tf_efficientnet_lite0", "resnet18", "resnet50", "vit_ti"]
    parser = make_parser(__doc__, models, children=32, images=128, batch_size=32)
    parser.add_argument("--runtimes", nargs="+", default=["openvino"], choices=["compiled", "openvino"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--worker", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--no-blocks", action="store_true", help="Leave out the children that start in the middle.")
    args = parser.parse_args(argv)
    settle(args, QUICK, parser)
    if args.worker:
        return plain_pytorch(args)
    started = hardware(args)
    over = ("child_over_limit", "child_over_eager", "child_over_pytorch")
    results: dict[str, Any] = {**{each: {} for each in over}, "blocks_cost": {}, "models": {}}
    with tempfile.TemporaryDirectory() as folder:
        jpegs = write_jpegs(Path(folder), args.images)
        for name in args.models:
            task = Task.make(name, jpegs, args.device, args.batch_size)
            for runtime in args.runtimes:
                for precision in args.precisions:
                    key = f"{name} {runtime} {precision}"
                    if precision == "bf16" and runtime == "openvino" and not has_bf16():
                        logger_line(f"runtimes: {key} left out: this CPU does not compute in bf16")
                        continue
                    logger_line(f"runtimes: {key}")
                    found = measured(args, name, task, runtime, precision)
                    results["models"][key] = found
                    for part in over:
                        results[part][key] = {which: each["median"] for which, each in found[part].items()}
                    results["blocks_cost"][key] = {
                        which: each["median"] for which, each in found.get("blocks_cost", {}).items()
                    }
    results["versions"] = [identity(runtime) for runtime in args.runtimes]
    return report("runtimes", args, started, results)


def plain_pytorch(args: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own: passes of the parent in eager PyTorch, and nothing of smd_hf's engine."""
    with tempfile.TemporaryDirectory() as folder:
        task = Task.make(args.models[0], write_jpegs(Path(folder), args.images), args.device, args.batch_size)
        device = torch.device(args.device)
        loaded = [batch.inputs(device, torch.float32) for batch in task.batches()]

        @torch.inference_mode()
        def work() -> None:
            for inputs in loaded:
                task.model(**inputs).logits.cpu()

        serve(work)
    return {}


def make_runtime(task: Task, runtime: str, precision: str, mutable: list[str] | None, segments: int) -> Runtime:
    compile = (
        compiled if runtime == "compiled" else partial(OpenVINO, precision="bf16" if precision == "bf16" else "f32")
    )
    return SegmentedRuntime(task.model, runtime, compile, mutable, task.batch_size, segments)


def evaluator(task: Task, runtime: str, precision: str, mutable: list[str] | None, segments: int = 1) -> Evaluator:
    """Scores in one runtime; nothing is replayed in one segment."""
    autocast = runtime == "compiled" and precision == "bf16"
    made = task.evaluator(
        autocast=lambda: torch.autocast(torch.device(task.device).type, torch.bfloat16, enabled=autocast)
    )
    made.runtime = make_runtime(task, runtime, precision, mutable, segments)
    return made


def norms_and_head(model: nn.Module) -> list[str]:
    """Names of the tensors of one dimension, and of the last linear layer."""
    last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    return [name for name, tensor in model.named_parameters() if tensor.ndim == 1 or name == f"{last}.weight"]


def measured(args: argparse.Namespace, name: str, task: Task, runtime: str, precision: str) -> dict[str, Any]:
    clock, batches = Clock(args), task.batches()
    head = norms_and_head(task.model)
    eager = task.evaluator(prefix_replay=False)
    limit = evaluator(task, runtime, precision, [])
    whole = evaluator(task, runtime, precision, None, 1 if args.no_blocks else SEGMENTS)
    few = evaluator(task, runtime, precision, head)
    partition = task.mutation("partition", args.children)
    of_head = Mutation(
        task.model,
        make_decomposition("partition", parameter_space(task.model, head), args.children),
    )

    def child(scored: Evaluator, mutation: Mutation) -> Any:
        def score(number: int) -> None:
            generation, place = divmod(number, args.children)
            variant = variants(mutation, generation)[place]
            # Known changes would be replayed.
            variant.changed = None
            scored.score([variant], batches)

        return score

    arms: dict[str, Any] = {
        "eager": lambda number: eager.score([PARENT], batches),
        "limit": lambda number: limit.score([PARENT], batches),
        "all weights": child(whole, partition),
        "norms and head": child(few, of_head),
    }
    arms["pytorch"] = Worker(__file__, worker_options(args, name) | {"worker": 1}, args.threads)
    with same_parent(task.model), closing(arms["pytorch"]):
        for arm in arms.values():
            arm(0)
        seconds = clock.interleaved(arms, args.repeats)
        found: dict[str, Any] = {
            "images_per_second": {
                name: summary([args.images / each for each in values]) for name, values in seconds.items()
            },
            "child_over_limit": {
                which: ratios(seconds["limit"], seconds[which]) for which in ("all weights", "norms and head")
            },
            **{
                f"child_over_{parent}": {
                    which: ratios(seconds[parent], seconds[which])
                    for which in ("limit", "all weights", "norms and head")
                }
                for parent in ("eager", "pytorch")
            },
        }
        if not args.no_blocks:
            found["blocks_cost"] = blocks_cost(args, task, clock, whole)
    return found


def blocks_cost(args: argparse.Namespace, task: Task, clock: Clock, scored: Evaluator) -> dict[str, Any]:
    """A generation of children that start in the middle, over as many passes of the parent in the same runtime."""
    batches = task.batches(args.batch_size)
    generations = {
        "uniform": [PARENT, *variants(task.mutation("blocks", args.children), 0)],
        "by cost": [PARENT, *variants(task.mutation("blocks", args.children, by_cost=True), 0)],
    }
    arms = {name: lambda number, each=each: scored.score(each, batches) for name, each in generations.items()}
    arms["parent"] = lambda number: scored.score([PARENT], batches)
    for arm in arms.values():
        arm(0)
    seconds = clock.interleaved(arms, args.repeats)
    return {name: ratios(seconds[name], seconds["parent"], 1 / args.children) for name in generations}


if __name__ == "__main__":
    main()
