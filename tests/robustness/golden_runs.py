"""
The runs behind `golden.py`: tiny, seeded, and by public interfaces alone (`smd_hf.__all__`, the command line, files).

Models are built here from configurations, and images from a random generator, so that nothing of the package's rooms, nor of
the other tests, is imported.
"""

import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from transformers import AutoModelForImageClassification, TorchAoConfig, TrainerCallback, ViTImageProcessor

from smd_hf import EvolutionTrainer
from tests.plain import plain_arguments

ROOT = Path(__file__).parents[2]
LABELS = ["cat", "dog", "horse", "ship"]

COMMON = dict(
    population_size=6,
    num_generations=2,
    sigma=0.3,
    recombination_top_k=3,
    per_device_eval_batch_size=12,
    elitism=False,
    use_cpu=True,
    disable_tqdm=True,
    report_to="none",
    ddp_timeout=120,
)
STEPS = dict(
    kind="vit",
    decomposition="blocks",
    recombination="gauss_newton",
    mutable_parameters=["norms", "head"],
    mirrored=True,
    scaling_share=0.5,
    sigma=0.05,
)

RUNS: dict[str, dict[str, Any]] = {
    "dense_best": dict(kind="resnet", decomposition="dense", recombination="best", sigma=None, calibration_samples=24),
    "random_top_k_mean": dict(
        kind="resnet", decomposition="random", density=0.4, recombination="top_k_mean", fitness="accuracy"
    ),
    "antirandom_greedy_soup": dict(kind="vit", decomposition="antirandom", recombination="greedy_soup", elitism=True),
    "partition_gauss_newton": STEPS | dict(kind="resnet", decomposition="partition", objective="focal"),
    "blocks_racing": dict(
        kind="vit",
        decomposition="blocks",
        allocation="cost",
        recombination="best",
        racing="halving",
        population_size=12,
        recombination_top_k=2,
    ),
    "scheduled_metric": dict(
        kind="resnet",
        decomposition="partition",
        recombination="top_k_mean",
        fitness="top_2_accuracy",
        sigma_schedule="cosine",
        match_norm=True,
        fitness_samples_per_generation=24,
        selection_fraction=0.0,
        num_generations=3,
    ),
    "steps": STEPS,
    "ensemble_and_children": dict(
        kind="vit", decomposition="partition", recombination="best", ensemble_size=3, save_children=2, elitism=True
    ),
    "votes": dict(
        kind="resnet",
        decomposition="random",
        density=0.5,
        recombination="best",
        ensemble_size=3,
        ensemble_combination="majority_vote",
    ),
    "objectives": dict(
        kind="vit",
        decomposition="blocks",
        recombination="best",
        sigma=0.01,
        elitism=True,
        objectives=["nll", "calibration_error", "mutated_fraction", "ood_auroc"],
        ensemble_size=3,
        ensemble_selection="front",
    ),
    "prune": dict(
        kind="vit", mutation="prune", sigma=None, decomposition="random", density=0.05, recombination="best"
    ),
    "int8": dict(kind="int8", decomposition="blocks", recombination="best", save_children=1),
    "new_head": dict(kind="resnet", decomposition="partition", recombination="best", labels=["red", "green", "blue"]),
    "bfloat16": dict(kind="vit", decomposition="blocks", recombination="best", bf16=True),
}
"""Runs of an `EvolutionTrainer` in this process, by their arguments."""


# ---- Data and models -------------------------------------------------------------------------------------------------


def images(count: int, seed: int, labels: list[str] | None = None) -> Dataset:
    """Noise, tinted by class: something to learn, and to be wrong about."""
    names = labels or LABELS
    random = np.random.default_rng(seed)
    classes = random.permutation(np.arange(count) % len(names))
    pixels = random.integers(0, 200, (count, 16, 16, 3))
    pixels[np.arange(count), :, :, classes % 3] += 40
    rows = {"image": [PILImage.fromarray(each.astype(np.uint8)) for each in pixels], "label": classes.tolist()}
    return Dataset.from_dict(rows, features=Features({"image": Image(), "label": ClassLabel(names=names)}))


def save_parent(kind: str, folder: Path) -> Path:
    """A checkpoint with random weights of a fixed seed, and its image processor."""
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
    if kind == "resnet":
        config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16, 24], depths=[1, 1, 1], layer_type="basic", **labels
        )
    else:
        size = {"image_size": 32, "patch_size": 8, "hidden_size": 24, "intermediate_size": 48}
        config = transformers.ViTConfig(**size, num_hidden_layers=3, num_attention_heads=2, **labels)
    torch.manual_seed(7)
    model = AutoModelForImageClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Norms, biases and heads off their initial values.
            parameter.add_(torch.randn_like(parameter) * 0.1)
    plain = folder / "plain" if kind == "int8" else folder
    model.save_pretrained(plain)
    if kind == "int8":
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig

        quantised = TorchAoConfig(Int8DynamicActivationInt8WeightConfig(), modules_to_not_convert=["classifier"])
        AutoModelForImageClassification.from_pretrained(plain, quantization_config=quantised).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def make_trainer(folder: Path, kind: str, labels: list[str] | None = None, **kwargs: Any) -> EvolutionTrainer:
    """A trainer that begins with `folder/parent`, and leaves its run in `folder/out`."""
    parent = folder / "parent"
    if not parent.exists():
        save_parent(kind, parent)
    return EvolutionTrainer(
        str(parent),
        plain_arguments(str(folder / "out"), **COMMON | kwargs),
        train_dataset=images(50, 1, labels),
        eval_dataset=images(30, 2, labels),
        ood_dataset=images(20, 3) if "objectives" in kwargs else None,
    )


# ---- Runs ------------------------------------------------------------------------------------------------------------


def in_this_process(name: str) -> Callable[[Path], None]:
    return lambda folder: make_trainer(folder, **RUNS[name]).train()


class StopsIn(TrainerCallback):
    """Ctrl-C as a generation begins: the run ends after the first cell of it."""

    def __init__(self, generation: int):
        self.generation = generation

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.generation:
            os.kill(os.getpid(), signal.SIGINT)


def resumed(folder: Path) -> None:
    """The same as `steps`, stopped in the first and in the second generation."""
    for generation in (0, 1):
        trainer = make_trainer(folder, **STEPS)
        trainer.add_callback(StopsIn(generation))
        try:
            trainer.train(resume_from_checkpoint=True)
        except KeyboardInterrupt:
            continue
        raise RuntimeError(f"The run did not stop in generation {generation}.")
    make_trainer(folder, **STEPS).train(resume_from_checkpoint=True)


def on_two_processes(folder: Path) -> None:
    """The same as `steps`, over two processes."""
    save_parent("vit", folder / "parent")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    call([*command, str(Path(__file__).with_name("golden.py")), "worker", str(folder)], folder)


def by_command(folder: Path) -> None:
    """`smd-hf evolve --preset adapt`, and `smd-hf evaluate` of its result against the parent."""
    save_parent("vit", folder / "parent")
    images(60, 1).to_parquet(folder / "train.parquet")
    images(30, 2).to_parquet(folder / "test.parquet")
    data = ["--validation_file", str(folder / "test.parquet"), "--per_device_eval_batch_size", "12", "--use_cpu"]
    smaller = ["--population_size", "12", "--num_generations", "2", "--fitness_samples_per_generation", "36"]
    places = ["--train_file", str(folder / "train.parquet"), "--output_dir", str(folder / "out")]
    parent, evolved = str(folder / "parent"), str(folder / "out")
    smd_hf(["evolve", "--model_name_or_path", parent, "--preset", "adapt", *smaller, *places, *data], folder)
    against = ["--against", parent, "--output_file", str(folder / "evaluation.json")]
    smd_hf(["evaluate", "--model_name_or_path", evolved, *against, *data], folder)


def smd_hf(argv: list[str], folder: Path) -> None:
    """The command line of this working tree, wherever its function is."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["smd-hf"].partition(":")
    program = f"import sys; from {module} import {function}; sys.exit({function}())"
    call([sys.executable, "-c", program, *argv], folder)


def call(command: list[str], folder: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} ... ended with code {done.returncode}: {done.stderr[-3000:]}")


ALL: dict[str, Callable[[Path], None]] = {name: in_this_process(name) for name in RUNS} | {
    "resumed": resumed,
    "two_processes": on_two_processes,
    "command_adapt": by_command,
}
"""Every run by name: a function that leaves it in a folder."""

SAME = ("steps", "resumed", "two_processes")
"""Runs that are one and the same, however they come about."""
