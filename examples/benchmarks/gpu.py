"""
Everything that matters on a GPU: the other benchmarks at sizes for it, and runs that must give equal bytes.

    python gpu.py --json results/gpu.json

Writes what `runtimes.py`, `throughput.py` and `generation.py` write beside it (`gpu_throughput.json`, ...), and in its own file
whole runs of evolution of the first model in each runtime, twice and after a stop, with the hash of the weights, seconds and images/s.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import generation
import numpy as np
import runtimes
import throughput
from common import NUM_CLASSES, build_model, hardware, logger_line, make_parser, report, settle, write_jpegs
from transformers import TrainerCallback

from smd_hf import EvolutionArguments, EvolutionTrainer
from smd_hf.errors import SMDError
from smd_hf.models.checkpoints import weights_hash
from smd_hf.models.load import load_image_processor

QUICK = {
    "run_runtimes": ["eager"],
    "models": ["resnet18"],
    "repeats": 2,
    "images": 32,
    "batch_size": 16,
    "children": 4,
}

GENERATIONS = 2


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = make_parser(__doc__, ["tf_efficientnet_lite0", "resnet50"], children=32, images=512, batch_size=128)
    parser.add_argument("--run-runtimes", nargs="+", default=["eager", "compiled"], help="Of the whole runs.")
    parser.add_argument("--run-precisions", nargs="+", default=["fp32"], help="Likewise.")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), help="What is measured.")
    args = parser.parse_args(argv)
    settle(args, QUICK, parser)
    if not args.device.startswith("cuda") and not args.quick:
        parser.error("gpu.py measures a GPU, and torch sees none. `--device cpu --quick` shows that it works.")
    started = hardware(args)
    results: dict[str, Any] = {"seconds": {}, "models": {}}
    for name in args.parts:
        logger_line(f"gpu: {name}")
        start = time.perf_counter()
        # After each result, so that a benchmark that is stopped leaves what it has.
        for found in PARTS[name](args) or ():
            results["models"] |= found
            report("gpu", args, started, results)
        results["seconds"][name] = time.perf_counter() - start
        report("gpu", args, started, results)
    return results


def shared(args: argparse.Namespace, name: str, **sizes: Any) -> list[str]:
    """The arguments of another benchmark."""
    options = {"device": args.device, "threads": args.threads, "repeats": args.repeats, "models": args.models}
    options |= {"images": args.images, "batch-size": args.batch_size, "children": args.children} | sizes
    if args.json is not None:
        options["json"] = args.json.with_name(f"gpu_{name}.json")
    words = [[f"--{key}", *map(str, value if isinstance(value, list) else [value])] for key, value in options.items()]
    return [word for group in words for word in group]


def measure_runtimes(args: argparse.Namespace) -> None:
    quick = ["--no-blocks"] if args.quick else []
    for model in args.models:
        for precision in ["fp32"] if args.quick else ["fp32", "bf16"]:
            name = f"runtimes_{model}_{precision}"
            runtimes.main(
                [*shared(args, name, models=[model]), "--precisions", precision, "--runtimes", "compiled", *quick]
            )


def measure_throughput(args: argparse.Namespace) -> None:
    populations = ["2"] if args.quick else ["4", "32"]
    model = ["--construction-model", "resnet18", "--construction-images", "1"] if args.quick else []
    throughput.main(
        [*shared(args, "throughput", children=min(16, args.children)), "--populations", *populations, *model]
    )


def measure_generation(args: argparse.Namespace) -> None:
    sizes = {"models": args.models[-1:], "blocks-images": args.images, "blocks-batch-size": args.batch_size}
    generation.main(shared(args, "generation", **sizes))


def measure_runs(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Runs of evolution by Gauss-Newton steps: the bytes that each leaves must be those of the same run, done again or stopped."""
    with tempfile.TemporaryDirectory() as folder:
        jpegs = write_jpegs(Path(folder), args.images * 2)
        labels = np.random.default_rng(1).integers(0, NUM_CLASSES, len(jpegs)).tolist()
        images = datasets.Dataset.from_dict({"image": jpegs, "label": labels}).cast_column("image", datasets.Image())
        model = args.models[0]
        for runtime in args.run_runtimes:
            for precision in args.run_precisions:
                logger_line(f"runs: {model} {runtime} {precision}")
                options = {"runtime": runtime, "precision": precision}
                try:
                    found = run_three_times(args, Path(folder), model, images, **options)
                except SMDError as error:  # a runtime that does not take the model
                    found = {"error": str(error)}
                yield {f"{model} {runtime} {precision}": found}


def run_three_times(
    args: argparse.Namespace, folder: Path, model: str, images: datasets.Dataset, **options: str
) -> dict[str, Any]:
    """One run, the same again, and one that stops after its first generation and goes on."""
    first, again = (run(args, folder, model, images, place, **options) for place in ("first", "again"))
    run(args, folder, model, images, "stopped", stops=True, **options)
    resumed = run(args, folder, model, images, "stopped", resume=True, **options)
    hashes = [each["hash"] for each in (first, again, resumed)]
    return {
        "seconds": again["seconds"],
        "child_images_per_second": again["images"] / again["seconds"],
        "identical_bytes": len(set(hashes)) == 1,
        "hash": hashes[0],
    }


def run(
    args: argparse.Namespace, folder: Path, name: str, images: datasets.Dataset, place: str,
    stops: bool = False, resume: bool = False, **options: str,
) -> dict[str, Any]:  # fmt: skip
    output = folder / f"{name}-{place}-{'-'.join(options.values())}"
    arguments = EvolutionArguments(
        str(output), preset="smd", ensemble_size=0, num_generations=GENERATIONS, population_size=args.children,
        decomposition="blocks", recombination="gauss_newton", mutable_parameters=["norms", "head"], sigma=0.05,
        per_device_eval_batch_size=args.batch_size, use_cpu=args.device == "cpu", seed=0, disable_tqdm=True,
        save_strategy="steps", save_steps=1, report_to="none", log_level="error", **options,
    )  # fmt: skip
    model = build_model(name)
    trainer = EvolutionTrainer(
        model, arguments, train_dataset=images, processing_class=load_image_processor(name, model=model)
    )
    if stops:
        trainer.add_callback(StopAfterFirst())
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=True if resume else None)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "images": trainer.run.images_forwarded, "hash": weights_hash(trainer.model)[:16]}


class StopAfterFirst(TrainerCallback):
    """Ends a run after its first generation."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = True
        return control


PARTS = {
    "runs": measure_runs,
    "runtimes": measure_runtimes,
    "throughput": measure_throughput,
    "generation": measure_generation,
}

if __name__ == "__main__":
    main()
