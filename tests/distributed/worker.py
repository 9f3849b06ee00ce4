"""
One process of a run over several: does all the cases it is told to, one after another, for imports cost more than cases.

    torchrun --standalone --nproc_per_node 2 --module tests.distributed.worker FOLDER CASE ...

Case C leaves its run in FOLDER/C, and what process R has seen in FOLDER/C.R.json. As lost-C, process 1 is killed once.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image
from sklearn.metrics import f1_score
from torch.utils.data import Dataset as TorchDataset

from smd_hf import EvolutionTrainer
from smd_hf.models.checkpoints import weights_hash
from smd_hf.run.lines import LineWriter
from smd_hf.scoring.runtimes.openvino import has_bf16
from tests import figures  # noqa: F401
from tests.plain import plain_arguments
from tests.tiny import label_names, tiny_images, tiny_model, tiny_processor

RANK = int(os.environ.get("RANK", "0"))

# 40 images in a training split: 32 of them in 3 batches of 12, 12 and 8 for fitness, 8 in one batch for selection.
COMMON = dict(
    per_device_eval_batch_size=12, use_cpu=True, disable_tqdm=True, ddp_timeout=120, num_generations=2, sigma=0.3
)
BLOCKS = dict(kind="vit", decomposition="blocks", population_size=7, recombination="top_k_mean", elitism=False)

CASES: dict[str, dict[str, Any]] = {
    # Several generations, sigma calibrated, and a parent which changes.
    "partition": dict(kind="resnet", population_size=5, sigma=None, calibration_samples=20, elitism=False),
    # Prefixes are replayed; all that can be left out of a generation is left out.
    "blocks": BLOCKS | dict(allocation="cost"),
    "race": BLOCKS | dict(racing="halving", recombination_top_k=2, population_size=9, mirrored=False),
    # A metric of the user's own, which needs all logits of a child in one place.
    "metric": dict(kind="resnet", population_size=5, decomposition="random", density=0.5, fitness="f1", elitism=False),
    # Steps and soups: sums over batches, and candidates that follow from the scores of others.
    "steps": BLOCKS
    | dict(recombination="gauss_newton", mirrored=True, population_size=6, scaling_share=0.4, sigma=0.05),
    # The head is fitted on features that every process has a share of. By them, the images of a generation are drawn.
    "head": dict(
        kind="resnet",
        recombination="gauss_newton",
        fitness_sampling="importance",
        fitness_samples_per_generation=20,
        population_size=4,
        warm_start=True,
        refit_head=True,
        sigma=0.01,
        save_children=1,
        elitism=False,
    ),
    # BatchNorm statistics, and a loss that looks at all predictions before children are scored.
    "unlabeled": dict(
        kind="resnet", population_size=4, unlabeled=True, warm_start=True, recombination="gauss_newton", sigma=0.01
    ),
    "soup": dict(kind="resnet", population_size=5, recombination="greedy_soup", fitness="accuracy"),
    # Values of several objectives, on two data sets; the front of the run and an ensemble of it.
    "front": dict(
        kind="vit",
        decomposition="blocks",
        population_size=5,
        sigma=0.002,
        objectives=["nll", "calibration_error", "mutated_fraction", "ood_auroc"],
        ensemble_size=3,
        ensemble_selection="front",
    ),
    # Fewer children, and fewer batches, than processes; rows that cannot be read, found by all of them.
    "few": dict(
        kind="resnet",
        population_size=2,
        per_device_eval_batch_size=64,
        num_generations=1,
        elitism=False,
        bad=3,
        on_bad_images="skip",
    ),
    # Other runtimes than eager: each child starts at a cut of a graph, with the bits of a whole pass.
    "openvino": BLOCKS | dict(runtime="openvino"),
    "compiled": BLOCKS | dict(runtime="compiled"),
    # Children in bfloat16; in OpenVINO where the processor computes in it, as elsewhere it silently takes float32.
    # A ResNet: the logits of this random ViT fall apart in bfloat16, and OpenVINO is refused.
    "bf16": BLOCKS | dict(kind="resnet", runtime="openvino" if has_bf16() else "eager", precision="bf16"),
    # All that a run can leave, and Trainer's own evaluation, over all processes.
    "everything": dict(
        kind="timm_resnet",
        population_size=4,
        labels=["north", "south", "east"],
        ensemble_size=3,
        save_children=1,
        racing="halving",
        recombination_top_k=1,
        bf16=True,
        image_cache_gb=1e-4,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="nll",
        greater_is_better=False,
        elitism=False,
    ),
}
"""Run under each way of spreading, as CASE-SPREAD; the results are the same bytes on any number of processes."""

FAILURES = ("image", "metric")
"""What fails in process 1, as fail-WHAT, after which it goes on with the next case, or crash-WHAT."""


class Unreadable(TorchDataset):
    """A data set on a disk that fails in the middle of a run."""

    def __init__(self, dataset: Dataset, good_reads: int):
        self.dataset = dataset
        self.good_reads = good_reads

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.good_reads -= 1
        if self.good_reads < 0:
            raise OSError("the disk of this machine is gone")
        return self.dataset[index]


def make_dataset(count: int, seed: int, names: list[str], bad: int = 0) -> Dataset:
    """Images with labels, every fifth of the first of which is followed by one that cannot be read."""
    labels = np.random.default_rng(seed).permutation(np.arange(count) % len(names)).tolist()
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    images = tiny_images(count, 16, seed)
    for place in range(0, 5 * bad, 5):
        images.insert(place, {"bytes": b"", "path": None})
        labels.insert(place, 0)
    return Dataset.from_dict({"image": images, "label": labels}, features=features)


def f1(prediction) -> dict[str, float]:
    return {"f1": f1_score(prediction.label_ids, prediction.predictions.argmax(-1), average="macro")}


def make_trainer(
    folder: Path, spread: str, kind: str, labels: list[str] | None = None, bad: int = 0, **kwargs
) -> EvolutionTrainer:
    names = labels or label_names(4)
    return EvolutionTrainer(
        tiny_model(kind),
        plain_arguments(str(folder), spread=spread, **COMMON | kwargs),
        train_dataset=make_dataset(40, 1, names, bad),
        eval_dataset=make_dataset(26, 2, names),
        ood_dataset=make_dataset(21, 3, names) if "objectives" in kwargs else None,
        processing_class=tiny_processor(),
        compute_metrics=f1 if kwargs.get("fitness") == "f1" else None,
    )


def run(folder: Path, name: str) -> dict[str, Any]:
    case, _, spread = name.partition("-")
    trainer = make_trainer(folder / name, spread, **CASES[case])
    trainer.train()
    return {
        "hash": weights_hash(trainer.model),
        "report": trainer.report,
        "evaluated": trainer.evaluate(),
    }


def fail(folder: Path, name: str) -> None:
    """A run in whose process 1 something fails, while the others are at work."""
    what, fails = name.partition("-")[2], RANK == 1

    def metrics(prediction) -> dict[str, float]:
        if what == "metric" and fails:
            raise ZeroDivisionError("there is no such class")
        if what == "death" and fails:
            os._exit(7)
        return f1(prediction)

    trainer = make_trainer(folder / name, "data", "resnet", population_size=4, fitness="f1")
    trainer.evolution.fitness.compute_metrics = metrics
    if what == "image" and fails:
        trainer.images.fitness.dataset = Unreadable(trainer.train_dataset, good_reads=5)
    trainer.train()


def be_lost(after: int) -> None:
    """Process 1 is killed when it has written so many cells; but not when the launcher has started it again."""
    if RANK == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        kill_after(after)


def kill_after(cells: int) -> None:
    """Kills this process when it has written so many cells."""
    write, written = LineWriter.write, 0

    def watched(writer: LineWriter, entry: dict[str, Any]) -> None:
        nonlocal written
        write(writer, entry)
        written += 1
        if written == cells:
            os.kill(os.getpid(), signal.SIGKILL)

    LineWriter.write = watched


def watch_writes(folder: Path, seen: list[str]) -> None:
    """Lists what this process writes, makes or removes below a folder."""

    def hook(event: str, args: tuple) -> None:
        writes = event in ("os.mkdir", "os.remove", "os.rename", "os.rmdir") or (
            event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        if writes and isinstance(args[0], str | bytes | Path) and os.fsdecode(args[0]).startswith(str(folder)):
            seen.append(f"{event} {os.fsdecode(args[0])}")

    sys.addaudithook(hook)


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    writes: list[str] = []
    watch_writes(folder, writes)
    for name in names:
        seen: dict[str, Any] = {}
        try:
            if name.startswith(("fail-", "crash-")):
                fail(folder, name)
            else:
                if name.startswith("lost-"):
                    be_lost(after=20)
                seen = run(folder, name.removeprefix("lost-"))
        except Exception as error:
            if not name.startswith("fail-"):
                raise
            seen = {"error": f"{type(error).__name__}: {error}"}
        seen["writes"] = list(writes)
        (folder / f"{name}.{RANK}.json").write_text(json.dumps(seen))
        writes.clear()


if __name__ == "__main__":
    main()
