"""What the benchmarks share: models with random weights, JPEG files, interleaved timing, medians with intervals, the report."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import timm
import torch
from PIL import Image
from scipy.stats import binom
from torch import nn
from transformers import PreTrainedModel, TimmWrapperConfig, TimmWrapperForImageClassification

from smd_hf.data.batches import ImageBatches
from smd_hf.data.pixels import codec_for
from smd_hf.data.rows import ImageCollator
from smd_hf.models.checkpoints import weights_hash
from smd_hf.models.load import load_image_processor
from smd_hf.scoring.costs import suffix_costs
from smd_hf.scoring.evaluator import Evaluator, Variant
from smd_hf.search.mutation import Mutation
from smd_hf.search.parameter_space import parameter_space
from smd_hf.search.subspaces import make_decomposition

MODELS = {
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "vit_ti": "vit_tiny_patch16_224",
    "vit_s": "vit_small_patch16_224",
    "efficientnet_b0": "efficientnet_b0",
}
"""Short names; any other name is taken for a timm architecture."""

SIGMA = 0.01
NUM_CLASSES = 1000
PARENT = Variant("parent", changed=frozenset())
PACKAGES = ("torch", "transformers", "timm", "accelerate", "numpy")


def make_parser(description: str, models: Sequence[str], **defaults: int) -> argparse.ArgumentParser:
    """The arguments that all benchmarks have; `defaults` are those of `children`, `images` and `batch_size`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--json", type=Path, help="Where to write the results.")
    parser.add_argument("--quick", action="store_true", help="A smaller run, for a look: under a minute.")
    parser.add_argument("--models", nargs="+", default=list(models), help=f"Of {', '.join(MODELS)} or timm's names.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of each process.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda.")
    parser.add_argument("--repeats", type=int, default=5, help="How often each arm is timed.")
    parser.add_argument("--children", type=int, default=defaults["children"], help="Children a generation.")
    parser.add_argument("--images", type=int, default=defaults["images"], help="JPEG files to score on.")
    parser.add_argument("--batch-size", type=int, default=defaults["batch_size"], help="Images a batch.")
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: for one thread on a machine that others use too.",
    )
    return parser


def settle(args: argparse.Namespace, quick: dict[str, Any], parser: argparse.ArgumentParser) -> None:
    """Puts the values of a quick run in the place of what was left at its default, and fixes the number of threads."""
    for name, value in quick.items() if args.quick else ():
        if getattr(args, name) == parser.get_default(name):
            setattr(args, name, value)
    if args.clock == "cpu" and (args.threads != 1 or args.device != "cpu"):
        parser.error("--clock cpu counts the time of all threads: it needs --threads 1 and --device cpu.")
    torch.set_num_threads(args.threads)


# ---- What is scored -----------------------------------------------------------------------------------------------------


def build_model(name: str, device: str = "cpu") -> PreTrainedModel:
    """
    A model of timm with random weights, the same in every process, in eval mode.

    BatchNorm statistics are taken from one batch of noise: without them, random EfficientNets fade to denormal numbers,
    which are slow.
    """
    architecture = MODELS.get(name, name)
    config = {
        "architecture": architecture,
        "num_classes": NUM_CLASSES,
        "pretrained_cfg": timm.models.get_pretrained_cfg(architecture).to_dict(),
    }
    torch.manual_seed(0)
    model = TimmWrapperForImageClassification(TimmWrapperConfig.from_dict(config)).eval()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = None
            norm.train()
        if norms:
            model(pixel_values=torch.randn(4, *config["pretrained_cfg"]["input_size"]))
    return model.eval().to(device)


def write_jpegs(folder: Path, count: int, size: tuple[int, int] = (500, 375)) -> list[str]:
    """Photograph-like JPEG files of ImageNet's usual size: smooth shapes under some noise. Returns their paths."""
    generator = np.random.default_rng(0)
    paths = []
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
        noisy = smooth + generator.normal(0, 12, smooth.shape)
        path = folder / f"{number:05d}.jpg"
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        paths.append(str(path))
    return paths


@dataclass
class Task:
    """
    A model and images to score it on.

    Args:
        model (`PreTrainedModel`), dataset (`datasets.Dataset`), collator (`ImageCollator`): as the trainer has them.
        device (`str`), batch_size (`int`): of all passes.
    """

    model: PreTrainedModel
    dataset: datasets.Dataset
    collator: ImageCollator
    device: str
    batch_size: int

    @classmethod
    def make(cls, name: str, jpegs: Sequence[str], device: str, batch_size: int) -> "Task":
        model = build_model(name, device)
        labels = np.random.default_rng(1).integers(0, NUM_CLASSES, len(jpegs)).tolist()
        dataset = datasets.Dataset.from_dict({"image": list(jpegs), "label": labels})
        dataset = dataset.cast_column("image", datasets.Image())
        collator = ImageCollator(load_image_processor(name, model=model), "image", "label")
        return cls(model, dataset, collator, device, batch_size)

    def batches(self, num_images: int | None = None) -> ImageBatches:
        """The images, of which none is decoded yet; they are kept once they are."""
        return ImageBatches(
            self.dataset,
            self.collator,
            self.batch_size,
            None if num_images is None else range(min(num_images, len(self.dataset))),
            cache_bytes=10**12,
            codec=codec_for(self.collator.processor),
            pin_memory=self.device.startswith("cuda"),
        )

    def evaluator(self, **choices: Any) -> Evaluator:
        return Evaluator(self.model, torch.device(self.device), **choices)

    def mutation(
        self, decomposition: str, children: int, density: float | None = None, by_cost: bool = False
    ) -> Mutation:
        costs = None
        if by_cost:
            [batch] = self.batches(1)
            costs = suffix_costs(self.model, batch.inputs(self.model.device, self.model.dtype))
        space = parameter_space(self.model)
        return Mutation(self.model, make_decomposition(decomposition, space, children, density, suffix_costs=costs))


def variants(mutation: Mutation, generation: int) -> list[Variant]:
    """The children of a generation, as the engine takes them."""
    return [
        Variant(f"child {child.index}", lambda child=child: mutation.changes(child), mutation.changed_names(child))
        for child in mutation.children(generation, SIGMA)
    ]


@contextmanager
def same_parent(model: PreTrainedModel) -> Iterator[None]:
    """Refuses to go on, so that nothing is reported, if the model does not leave the context with the weights it had."""
    before = weights_hash(model)
    yield
    if weights_hash(model) != before:
        raise RuntimeError("The parent's weights have changed: nothing is reported.")


# ---- Time and memory ------------------------------------------------------------------------------------------------------


class Clock:
    """Seconds of a piece of work; on a GPU until it is done there too."""

    def __init__(self, args: argparse.Namespace):
        self._read = time.process_time if args.clock == "cpu" else time.perf_counter
        self._wait = torch.cuda.synchronize if args.device.startswith("cuda") else lambda: None

    def __call__(self, work: Callable[[], Any]) -> float:
        self._wait()
        start = self._read()
        work()
        self._wait()
        return self._read() - start

    def interleaved(
        self, arms: dict[str, Callable[[int], Any]], repeats: int, chunks: int = 1
    ) -> dict[str, list[float]]:
        """
        Seconds of each arm in each repeat.

        Args:
            arms (mapping of `str` to `Callable`): take the number of the chunk, counted over all repeats.
            repeats (`int`): how often; arms take turns, and each repeat begins with another one.
            chunks (`int`, *optional*, defaults to 1): parts of a repeat whose times are added up, so that arms take turns
                more often.
        """
        seconds = {name: [0.0] * repeats for name in arms}
        names = list(arms)
        for number in range(repeats * chunks):
            for place in range(len(names)):
                name = names[(number + place) % len(names)]
                seconds[name][number // chunks] += self(partial(arms[name], number))
        return seconds


def summary(values: Sequence[float]) -> dict[str, Any]:
    """
    Median and a distribution-free interval for it: order statistics, the narrowest of at least 90 % coverage, or the range
    where there are too few for that. `coverage` is what it really covers.
    """
    ordered, n = sorted(map(float, values)), len(values)
    outside = max((k for k in range(n // 2) if 1 - 2 * binom.cdf(k, n, 0.5) >= 0.9), default=0)
    return {
        "median": float(np.median(ordered)),
        "interval": [ordered[outside], ordered[n - 1 - outside]],
        "coverage": float(1 - 2 * binom.cdf(outside, n, 0.5)),
        "values": [float(value) for value in values],
    }


def ratios(above: Sequence[float], below: Sequence[float], factor: float = 1.0) -> dict[str, Any]:
    """Summary of `factor * above / below`, repeat by repeat."""
    return summary([factor * a / b for a, b in zip(above, below)])


def resident_bytes(field: str = "VmRSS") -> int:
    """Memory of this process from `/proc`: `VmRSS` now, `VmHWM` at its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}.")


@contextmanager
def peak_memory(device: str) -> Iterator[dict[str, int]]:
    """
    What the work inside needs at its peak, in bytes: on a GPU all that is allocated there; on the CPU (Linux only) what is
    resident beyond what was at the start (`extra`), and with that (`total`). For a fresh process: a peak never falls.
    """
    memory = {"start": resident_bytes() if device == "cpu" else 0}
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    yield memory
    memory["total"] = resident_bytes("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated()
    memory["extra"] = memory["total"] - memory["start"]


# ---- The report -----------------------------------------------------------------------------------------------------------


def hardware(args: argparse.Namespace) -> dict[str, Any]:
    cuda = args.device.startswith("cuda")
    return {
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "device": args.device,
        "threads": args.threads,
        "load_average": list(os.getloadavg()),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def settings(args: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(args).items() if name != "json"}


def report(name: str, args: argparse.Namespace, started: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """Prints the results, and writes them where `--json` says. `started` is [`hardware`] before the first measurement."""
    document = {"benchmark": name, "hardware": started, "settings": settings(args), **results}
    text = json.dumps(document, indent=2, default=str)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(text + "\n", encoding="utf-8")
    print(text)
    return document


def worker_environment(threads: int) -> dict[str, str]:
    """For processes that a benchmark starts: the same threads, and this copy of the package."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}


def worker_options(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Arguments of a process that works on one model."""
    return {
        "models": name,
        "device": args.device,
        "threads": args.threads,
        "images": args.images,
        "batch-size": args.batch_size,
    }


def worker_command(script: str, options: dict[str, Any]) -> list[str]:
    parts = (part for name, value in options.items() for part in (f"--{name}", str(value)))
    return [sys.executable, script, *parts]


class Worker:
    """
    A process of its own that does the same work whenever it is asked to, for an arm that must not share memory settings with
    others. The script calls [`serve`].

    Attributes:
        first (`Any`): what the first piece of work gave, from JSON.
    """

    def __init__(self, script: str, options: dict[str, Any], threads: int):
        self._process = subprocess.Popen(
            worker_command(script, options),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=worker_environment(threads),
        )
        self.first = json.loads(self._answer())

    def __call__(self, number: int) -> None:
        assert self._process.stdin is not None
        print(number, file=self._process.stdin, flush=True)
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        while not (line := self._process.stdout.readline()).startswith(ANSWER):
            if not line:
                raise RuntimeError(f"A worker ended with status {self._process.wait()}.")
        return line.removeprefix(ANSWER)

    def close(self) -> None:
        self._process.communicate()


ANSWER = "answer: "
"""Begins a worker's lines that are not those of some library."""


def serve(work: Callable[[], Any]) -> None:
    """In a [`Worker`]'s process: works once and says what it gave, then again for every line that comes, until none comes."""
    print(f"{ANSWER}{json.dumps(work())}", flush=True)
    for _ in sys.stdin:
        work()
        print(ANSWER, flush=True)


def run_worker(script: str, options: dict[str, Any], threads: int) -> Any:
    """
    What a process of its own that runs the script with these options prints last, from JSON.

    Without the threshold, glibc keeps freed blocks of up to 32 MB, and the peak of the same work differs by 20 % from run
    to run.
    """
    command = worker_command(script, options)
    environment = worker_environment(threads) | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment, text=True).stdout
    return json.loads(output.splitlines()[-1])


def logger_line(text: str) -> None:
    """Progress, apart from the results."""
    print(text, file=sys.stderr, flush=True)


datasets.disable_progress_bars()
