"""
One model through all that a run does: load, evolve one generation, save, load without smd_hf, ensemble.

The environment variable `ARCHITECTURES_TABLE` names a file which gets a line of JSON for each model: name, outcome
(`passed`, `refused` or `failed`), reason, seconds. Delete the file before a run.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import torch
from transformers import PreTrainedModel

from smd_hf import EvolutionTrainer
from smd_hf.artifacts.loading import load
from smd_hf.errors import SMDError
from smd_hf.models.checkpoints import weights_hash
from smd_hf.models.heads import head_parameter_names
from smd_hf.models.load import load_model, num_channels
from tests.architectures.fresh_process import FreshProcess, aligned
from tests.plain import plain_arguments
from tests.tiny import label_names, tiny_images

TRAIN_IMAGES, TEST_IMAGES, CLASSES = 8, 4, 4


def go_through(checkpoint: Path, folder: Path, fresh: FreshProcess, image_size: int, report: bool = True) -> None:
    """
    Takes a checkpoint through the steps; raises where one of them goes wrong.

    Args:
        checkpoint (`Path`): a folder, with four classes named by [`label_names`] and, but for timm, an image processor.
        folder (`Path`): where the run writes.
        fresh ([`FreshProcess`]): loads what the run has written.
        image_size (`int`): of the images given, which the image processor may resize.
        report (`bool`, *optional*, defaults to `True`): also measure the gain and write the cards, which takes seconds and
            depends little on the architecture.
    """
    # 1. Load and evolve. Blocks ask most of a model: operations are counted and prefixes replayed. The parent must not
    # survive, so that what is saved is new.
    arguments = plain_arguments(
        str(folder),
        population_size=2,
        num_generations=1,
        decomposition="blocks",
        allocation="cost",
        density=0.5,
        sigma=0.05,
        selection_fraction=0.25,
        elitism=False,
        ensemble_size=2,
        ensemble_selection="all",
        per_device_eval_batch_size=4,
        disable_tqdm=True,
        report_to="none",
        use_cpu=True,
    )
    train = _dataset(TRAIN_IMAGES, image_size, seed=0)
    test = _dataset(TEST_IMAGES, image_size, seed=1) if report else None
    trainer = EvolutionTrainer(str(checkpoint), arguments, train_dataset=train, eval_dataset=test)
    parent_hash = weights_hash(trainer.model)
    try:
        trainer.train()
    except SMDError as error:
        scored = trainer.evaluator.images_forwarded
        assert scored == 0, f"refused after {scored} images were scored: {error}"
        raise
    assert weights_hash(trainer.model) != parent_hash, "the parent is unchanged"
    if report:
        assert trainer.report["verdict"]
        assert 0 <= trainer.evaluate()["eval_accuracy"] <= 1
    assert head_parameter_names(trainer.model), "no head is found"

    # 2. What was saved is the evolved model, with smd_hf and without it.
    batch = trainer.data_collator([train[row] for row in range(2)])
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    evolved = _logits(trainer.model, inputs)
    assert evolved.isfinite().all() and not torch.equal(evolved[0], evolved[1]), f"odd logits {evolved}"
    assert torch.equal(_logits(load_model(folder), inputs), evolved), "loaded with smd_hf, it has other logits"
    assert torch.equal(fresh.logits(folder, inputs), evolved), "loaded without smd_hf, it has other logits"

    # 3. The ensemble predicts the same, with smd_hf and without it.
    ensemble = load(folder / "ensemble")
    assert len(ensemble.config.member_weights) == 2
    combined = _logits(ensemble, inputs)
    assert combined.isfinite().all() and combined.shape == evolved.shape
    without = fresh.logits(folder / "ensemble", inputs, trust_remote_code=True)
    assert torch.equal(without, combined), "the ensemble has other logits without smd_hf"


@torch.no_grad()
def enliven(model: PreTrainedModel, image_size: int) -> None:
    """
    Gives random weights the manners of trained ones, so that every part of the model counts, in place.

    Constant weights (norms, zero heads, layer scales of 1e-6) become random, and BatchNorm's statistics are measured on noise:
    with those it begins with, signals of untrained networks fade until all images have the same logits.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point() and (parameter.ndim <= 1 or parameter.min() == parameter.max()):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    if norms:
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.train().momentum = 1.0
        model(pixel_values=torch.randn(4, num_channels(model), image_size, image_size))
        for norm, momentum in zip(norms, momenta):
            norm.eval().momentum = momentum


@contextmanager
def recorded(name: str, refusals: dict[str, str]) -> Iterator[None]:
    """
    Writes the outcome into the table. What is listed in `refusals` must be refused, in one paragraph that holds the text.

    Args:
        name (`str`): of the architecture.
        refusals (`dict[str, str]`): from name to a part of the message.
    """
    start, outcome, reason = time.monotonic(), "failed", ""
    try:
        try:
            yield
            outcome = "passed"
        except SMDError as error:
            reason = str(error)
            if name not in refusals:
                raise
            outcome = "refused"
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}"
            raise
        if name in refusals:
            assert outcome == "refused", f"{name} works: take it off the list of what is refused"
            assert refusals[name] in reason and "\n" not in reason
    finally:
        path = os.environ.get("ARCHITECTURES_TABLE")
        if path:
            row = {"name": name, "outcome": outcome, "reason": reason[:600], "seconds": time.monotonic() - start}
            with open(path, "a", encoding="utf-8") as table:
                table.write(json.dumps(row) + "\n")


def _dataset(count: int, image_size: int, seed: int) -> datasets.Dataset:
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=label_names(CLASSES)))
    rows = {"image": tiny_images(count, image_size, seed), "label": [row % CLASSES for row in range(count)]}
    return datasets.Dataset.from_dict(rows, features=features)


def _logits(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    # As in the fresh process: weights that are made in inference mode take other paths (of SwiftFormer, for one).
    model = aligned(model.eval())
    with torch.inference_mode():
        output = model(**inputs)
    return output.logits if "logits" in output else output[0]
