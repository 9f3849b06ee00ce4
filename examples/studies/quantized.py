"""
What of the accuracy that quantisation costs comes back, by forward passes of the quantised model alone?

The same checkpoint in several formats. Each is measured as it is, with its head fitted exactly on its own features, and evolved: class
prior or temperature first, generations of the numbers that are not quantised (norms, biases, scales), the head last.

    python examples/studies/quantized.py --model MODEL --data DATA --formats float32 openvino:8 openvino:128
    python examples/studies/quantized.py --model VIT --data DATA --formats float32 int8 int4
"""

import argparse
import copy
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import (
    DIGITS,
    Measurements,
    data_key,
    environment,
    file_name,
    image_batches,
    load_data,
    make_parser,
    markdown_table,
    pack,
    progress,
    public_name,
    run_plainly,
    settle,
    unpack,
    with_interval,
    write_results,
)
from torch import nn

from smd_hf.artifacts.exporting import export_model
from smd_hf.data.batches import ImageBatches
from smd_hf.errors import SMDError
from smd_hf.metrics.resampling import Measured, differences
from smd_hf.metrics.statistics import accuracy, nll
from smd_hf.models.checkpoints import weights_hash
from smd_hf.models.linear_head import HeadInputs
from smd_hf.models.load import load_image_processor, load_model
from smd_hf.models.openvino_ir import OpenVINOHead, quantised
from smd_hf.scoring.evaluator import Evaluator
from smd_hf.scoring.runtimes.choose import RuntimeChoice
from smd_hf.search.evolution import Evolution
from smd_hf.search.fitness import Fitness
from smd_hf.search.gauss_newton import GaussNewton
from smd_hf.search.head.alone import fit_head
from smd_hf.search.losses import cross_entropy
from smd_hf.search.mutation import Mutation
from smd_hf.search.parameter_space import parameter_space
from smd_hf.search.subspaces import ParameterSpace, make_decomposition

QUICK = {"images": 24, "selection": 12, "population": 4, "generations": 1, "batch_size": 12, "max_test": 24}

METHODS = {
    "plain": "as it is",
    "head": "head fitted",
    "evolved": "norms and biases evolved, head fitted",
    "scales": "norms, biases and scales evolved, head fitted",
}


def parser() -> argparse.ArgumentParser:
    made = make_parser(__doc__.split("\n\n")[0])
    made.add_argument("--model", required=True, help="A model id on the Hub, or the folder of a checkpoint.")
    made.add_argument("--data", default=DIGITS, help="As in window.py.")
    made.add_argument(
        "--formats", nargs="+", default=["float32", "int8", "int4"], metavar="FORMAT",
        help="float32; int8 or int4 (weights of linear layers but the head's, by torchao); openvino:N (int8 by NNCF, calibrated on N "
        "training images). Each is compared with the first.",
    )  # fmt: skip
    made.add_argument("--images", type=int, default=675, help="Of the training split, for the fits and the children.")
    made.add_argument("--selection", type=int, default=225, help="Other images of it, which choose.")
    made.add_argument("--max_test", type=int, help="Test images: a stratified subset.")
    made.add_argument("--population", type=int, default=48)
    made.add_argument("--generations", type=int, default=3)
    made.add_argument("--sigma", type=float, default=0.05)
    made.add_argument("--batch_size", type=int, default=225, help="OpenVINO compiles each child once a batch.")
    return made


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    made = parser()
    args = made.parse_args(argv)
    settle(args, QUICK, made)
    for each in args.formats:
        if each not in ("float32", "int8", "int4") and not each.removeprefix("openvino:").isdigit():
            raise SMDError(
                f"--formats: '{each}' is none. Expected float32, int8, int4 or openvino:N, such as openvino:128."
            )
    train, test = load_data(args.data, max_train=args.images + args.selection, max_test=args.max_test, seed=args.seed)
    train = train.shuffle(args.seed)
    parent = load_model(args.model, dtype="float32")
    processor = load_image_processor(args.model, model=parent)
    batches = partial(image_batches, parent, processor, batch_size=args.batch_size)
    learn, choose = (batches(train, rows) for rows in (range(args.images), range(args.images, len(train))))
    images = learn, choose, batches(test)
    numbers = ("images", "selection", "population", "generations", "sigma", "batch_size", "seed")
    about = {name: getattr(args, name) for name in numbers} | {
        "model": public_name(args.model), "weights": weights_hash(parent)[:16], "train": data_key(train), "test": data_key(test),
    }  # fmt: skip
    name = f"quantized_{file_name(args.model)}"
    store = Measurements(args.output_dir / f"{name}.jsonl")
    rows = []
    cases = [(each, method) for each in args.formats for method in METHODS if (each, method) != ("float32", "scales")]
    with progress(len(cases), "model") as bar:
        for each, method in cases:
            bar.set_postfix_str(f"{each} {METHODS[method]}")
            measure = partial(measured, args, parent, processor, images, each, method)
            rows.append(
                {"format": each, "method": method} | store.get(about | {"format": each, "method": method}, measure)
            )
            bar.update()
    document = {
        "study": "quantized",
        "about": about | {"data": public_name(args.data), "train_images": len(train), "test_images": len(test)},
        "environment": environment(args),
        "rows": rows,
    }
    write_results(args.output_dir, name, document, render(document))
    print(render(document))
    return document


def measured(
    args: argparse.Namespace, parent: Any, processor: Any, images: Sequence[ImageBatches], format: str, method: str
) -> dict[str, Any]:
    """One model of one format, on the last of the images: others are for the fits and children, and to choose."""
    learn, choose, tested = images
    model, head = in_format(parent, processor, format, learn, args.batch_size)
    # OpenVINO's own format runs in OpenVINO anyway.
    forwards = args.population * args.generations * args.images
    choice = (
        None if isinstance(head, OpenVINOHead) else RuntimeChoice(model, batch_size=args.batch_size, images=forwards)
    )
    evaluator = Evaluator(model, torch.device("cpu"), prefix_replay=choice is not None, choice=choice)

    if method in ("evolved", "scales"):
        fit_head(evaluator, head, learn, choose, whole=False)
        evolve(args, evaluator, mutable(model, head, method == "scales"), learn, choose)
    if method != "plain":
        fit_head(evaluator, head, learn, choose)
    logits = evaluator.logits(tested)
    return {
        "accuracy": accuracy(logits, tested.labels),
        "nll": float(nll(logits, tested.labels).mean()),
        "right": pack(logits.argmax(-1) == tested.labels),
    }


def in_format(
    parent: Any, processor: Any, format: str, images: ImageBatches, batch_size: int
) -> tuple[Any, HeadInputs]:
    """A model in a format, and its head."""
    kind, _, count = format.partition(":")
    if kind == "openvino":
        pixels = images.first_batch().inputs(torch.device("cpu"), torch.float32)["pixel_values"][: int(count)]
        with tempfile.TemporaryDirectory() as folder:
            exported = export_model(parent, processor, "openvino", Path(folder))
            served = quantised(exported.path, [each[None].numpy() for each in pixels], batch_size)
        return served, OpenVINOHead(served)
    model = copy.deepcopy(parent).eval()
    inputs = images.first_batch().inputs(torch.device("cpu"), torch.float32)
    head = HeadInputs(model, inputs)
    if kind != "float32":
        quantise(model, kind, head.layer)
    return model, head


def quantise(model: nn.Module, kind: str, head: nn.Module) -> None:
    """Gives every linear layer but the head weights of 8 or 4 bits, with a scale for each output."""
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_

    config = Int8WeightOnlyConfig() if kind == "int8" else IntxWeightOnlyConfig(weight_dtype=torch.int4)
    quantize_(model, config, lambda layer, _: isinstance(layer, nn.Linear) and layer is not head)


def evolve(
    args: argparse.Namespace,
    evaluator: Evaluator,
    space: ParameterSpace,
    learn: ImageBatches,
    choose: ImageBatches,
) -> None:
    """Generations of children of these parameters, whatever else is quantised."""
    decomposition = make_decomposition("blocks", space, args.population, None, args.seed)
    mutation = Mutation(evaluator.model, decomposition, args.seed)
    recombination = GaussNewton(top_k=1, loss=cross_entropy())
    evolution = Evolution(evaluator.model, mutation, evaluator, Fitness("nll"), recombination, learn, choose)
    for generation in range(args.generations):
        evolution.step(generation, sigma=args.sigma)


def mutable(model: nn.Module, head: HeadInputs, scales: bool) -> ParameterSpace:
    """Norms and biases (OpenVINO has folded the former into the latter) and, with `scales`, those of the quantised weights."""
    if isinstance(head, OpenVINOHead):
        patterns = ["biases", *["*.scale"] * scales]
    else:
        patterns = ["norms", "biases", *["scales"] * scales]
    return parameter_space(model, patterns, head.parameter_names)


def render(document: dict[str, Any]) -> str:
    """The results in Markdown: each model beside the one of the first format that was treated alike."""
    about, rows = document["about"], document["rows"]
    first = {row["method"]: row for row in rows if row["format"] == rows[0]["format"]}
    lines = []
    for row in rows:
        alike = first["evolved" if row["method"] == "scales" else row["method"]]
        lost = difference(alike, row, about["test_images"], about["seed"])
        shown = "" if row is alike else with_interval(lost["estimate"], lost["interval"], 2, 100)
        lines.append(
            [f"{row['format']}, {METHODS[row['method']]}", f"{100 * row['accuracy']:.2f}", shown, f"{row['nll']:.4f}"]
        )
    head = ["", "accuracy (%)", f"over {rows[0]['format']}, treated alike (points)", "NLL"]
    return (
        f"# {about['model']} on {about['data']}\n\n{about['images']} images for fits and children, {about['selection']} to choose with, "
        f"{about['test_images']:,} test images. {about['generations']} generations of {about['population']} children at sigma "
        f"{about['sigma']:g}.\n\n{markdown_table(head, lines)}\n"
    )


def difference(first: dict[str, Any], second: dict[str, Any], num_images: int, seed: int) -> dict[str, Any]:
    """The paired difference in accuracy, with its interval."""

    def accuracy_of(row: dict[str, Any]) -> Measured:
        right = unpack(row["right"], num_images)
        return lambda weights: {"accuracy": weights @ right / num_images}

    return differences(accuracy_of(first), accuracy_of(second), num_images, seed)["accuracy"]


if __name__ == "__main__":
    run_plainly(main)
