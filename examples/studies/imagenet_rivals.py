"""
What evolution is compared with in `imagenet.py`: BatchNorm statistics re-estimated, gradients, other methods without them, and what
its own steps would be if the children knew all directions.
"""

import argparse
import copy
import time
from collections.abc import Iterator
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from baselines import Forward, Images, evolution_strategies, restated, sgd, spsa
from common import image_batches
from exact_jacobian import generation
from torch import nn

from smd_hf.arguments.recipes import read_recipe
from smd_hf.data.batches import ImageBatches
from smd_hf.data.fitness_samples import FreshSamples, split_indices
from smd_hf.metrics.comparison import measured
from smd_hf.metrics.statistics import nll
from smd_hf.models.linear_head import HeadInputs
from smd_hf.models.load import load_image_processor, load_model
from smd_hf.scoring.evaluator import Evaluator
from smd_hf.scoring.runtimes.choose import RuntimeChoice
from smd_hf.search.head.alone import fit_head

SELECTION_FRACTION = 0.1
SAMPLES = read_recipe("adapt")["fitness_samples_per_generation"]
"""Images of a generation."""

BACKWARD_BATCH = 25
"""Images of a batch of a backward pass, which keeps what is computed on the way."""

NORMS_AND_HEAD = ["norms", "head"]
RIVALS: dict[str, dict[str, Any]] = {
    "statistics": {},
    "sgd_norms_head": {"step": sgd, "parameters": NORMS_AND_HEAD, "rates": (0.003, 0.01, 0.03)},
    "sgd_all": {"step": sgd, "parameters": ["all"], "rates": (0.001, 0.003, 0.01)},
    "sgd_norms_head_from_head": {
        "step": sgd, "parameters": NORMS_AND_HEAD, "rates": (0.001, 0.003, 0.01), "fitted": True,
    },
    "evolution_strategies": {
        "step": evolution_strategies, "parameters": NORMS_AND_HEAD, "rates": (0.003, 0.01), "fitted": True,
        "forward_only": True,
    },
    "spsa": {
        "step": spsa, "parameters": NORMS_AND_HEAD, "rates": (0.0001, 0.0003), "fitted": True, "forward_only": True,
    },
    "exact_jacobian": {"generations": 3, "products": 8},
}  # fmt: skip
"""Parameters, the step sizes that are tried, whether the method begins with the fitted head, and whether it takes no gradient."""

SHOWN = {
    "statistics": "BatchNorm statistics re-estimated",
    "sgd_norms_head": "SGD on norms and head",
    "sgd_all": "SGD on all weights",
    "sgd_norms_head_from_head": "SGD on norms and head, from the fitted head",
    "evolution_strategies": "evolution strategies on norms and head, from the fitted head",
    "spsa": "SPSA on norms and head, from the fitted head",
    "exact_jacobian": "three generations of `adapt` with the exact Jacobian of the norms",
}


class Rivals:
    """
    A parent and its images, and what other methods make of them.

    Args:
        args (`argparse.Namespace`): of `imagenet.py`.
        train, test (`datasets.Dataset`): as evolution is given them. A part of the former chooses step sizes.
        seed (`int`): of the split, the order of images and the noise.
    """

    def __init__(self, args: argparse.Namespace, train: Any, test: Any, seed: int):
        self.args, self.seed = args, seed
        self.device = torch.device(args.device)
        options = {"trust_remote_code": args.trust_remote_code}
        self.parent = load_model(args.model, dtype="float32", **options).to(self.device)
        self.processor = load_image_processor(args.model, model=self.parent, **options)
        self.train, self.test = train, self.batches(test)
        everything = self.batches(train)
        self.learn, choose = split_indices(everything.labels, SELECTION_FRACTION, seed)
        self.choose = self.batches(train, choose)
        self.evaluator = Evaluator(self.parent, self.device, prefix_replay=False)

    def batches(self, dataset: Any, indices: np.ndarray | None = None) -> ImageBatches:
        return image_batches(self.parent, self.processor, dataset, indices, self.args.batch_size)

    @cached_property
    def images(self) -> Images:
        return Images.read(self.batches(self.train, self.learn), self.device)

    @cached_property
    def parent_logits(self) -> np.ndarray:
        return self.evaluator.logits(self.test)

    @cached_property
    def with_fitted_head(self) -> nn.Module:
        """The parent with the best head that one pass over the features gives."""
        model = copy.deepcopy(self.parent).eval()
        self.fit_head(model)
        return model

    def fit_head(self, model: nn.Module, whole: bool = True) -> None:
        """Puts the best head into the model, as a run of many images has it: with `whole`, not only prior and temperature."""
        evaluator, batches = Evaluator(model, self.device, prefix_replay=False), self.batches(self.train, self.learn)
        head = HeadInputs(model, evaluator.inputs(batches.first_batch()))
        fit_head(evaluator, head, batches, self.choose, whole)

    def selection_loss(self, model: nn.Module) -> float:
        return float(nll(self.logits(model, self.choose), self.choose.labels).mean())

    def logits(self, model: nn.Module, batches: ImageBatches) -> np.ndarray:
        return Evaluator(model, self.device, prefix_replay=False).logits(batches)

    def run(self, method: str, passes: float, rate: float | None = None) -> dict[str, Any]:
        """
        One method, in the best of its step sizes by the selection images, or in the given one.

        Returns:
            `dict`: as `imagenet.py` reports a run; `passes` without those of the other step sizes, which are in `tuning_passes`.
        """
        began = time.monotonic()
        rival = RIVALS[method]
        rates = rival.get("rates", (None,)) if rate is None else (rate,)
        found = {rate: self.trained(rival, rate, passes) for rate in rates}
        seconds = (time.monotonic() - began) / len(found)
        losses = {rate: self.selection_loss(model) for rate, (model, _) in found.items()}
        best = min(losses, key=lambda rate: np.nan_to_num(losses[rate], nan=np.inf))
        model, spent = found[best]
        logits = self.logits(model, self.test)
        scores, difference = measured(self.parent_logits, logits, self.test.labels, "evolved", self.seed)
        parent, _ = measured(self.parent_logits, self.parent_logits, self.test.labels, "parent", self.seed)
        return {
            "parent": parent, "evolved": scores, "difference": difference, "passes": spent, "seconds": seconds,
            "rate": best, "tuning_passes": passes * (len(found) - 1),
        }  # fmt: skip

    def trained(self, rival: dict[str, Any], rate: float | None, passes: float) -> tuple[nn.Module, float]:
        """A model, and what it cost in passes over the training images."""
        if not rival:
            pixels = self.images.pixels.split(self.args.batch_size)
            return restated(copy.deepcopy(self.parent), ({"pixel_values": each} for each in pixels)), 1.0
        if "generations" in rival:
            return self.with_exact_jacobian(**rival)
        fitted = bool(rival.get("fitted"))
        model = copy.deepcopy(self.with_fitted_head if fitted else self.parent)
        total, spent = passes * len(self.learn), 0
        options = {"forward": self.forward(model, int(total))} if rival.get("forward_only") else {}
        steps: Iterator[int] = rival["step"](
            model, self.images, parameters=rival["parameters"], rate=rate, total=total, seed=self.seed, **options
        )
        for images in steps:
            spent += images
            if spent >= total:
                break
        return model.eval(), passes + fitted

    def forward(self, model: nn.Module, total: int) -> Forward:
        """Logits of the model in the runtime that children have."""
        choice = RuntimeChoice(model.eval(), self.args.runtime, images=total)
        runtime = choice.runtime(choice.settle({"pixel_values": self.images.pixels[: self.args.batch_size]}).name)
        return lambda pixels: runtime.forward({"pixel_values": pixels})

    def with_exact_jacobian(self, generations: int, products: int) -> tuple[nn.Module, float]:
        """Class prior or temperature first, exact Gauss-Newton steps over the norms on fresh samples, the head last: as `adapt`."""
        model = copy.deepcopy(self.parent).eval()
        self.fit_head(model, whole=False)
        labels = self.images.labels.cpu().numpy()
        samples = FreshSamples(np.arange(len(labels)), labels, SAMPLES, self.seed)
        spent = 2.0
        for number in range(generations):
            rows = torch.from_numpy(samples.indices(number)).to(self.device)
            images = Images(self.images.pixels[rows], self.images.labels[rows])
            cost = generation(model, images, ["norms"], partial(self.selection_loss, model), products, BACKWARD_BATCH)
            spent += cost / len(labels)
        self.fit_head(model)
        return model, spent
