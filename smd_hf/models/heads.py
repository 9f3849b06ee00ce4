"""
The classifier head: which layers make the logits, and a new one for other classes.

This does not depend on the architecture: a forward pass shows which linear layer's output is the logits. A new head is a
linear probe on the frozen features, a logistic regression by scikit-learn, or random; no gradient is taken in either case.
"""

import itertools
import warnings
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ..errors import SMDError
from ..remote_code.members_smd_ensemble import logits_of
from .inputs import as_inputs, noise_inputs
from .load import is_timm_model

logger = logging.get_logger(__name__)

Head = nn.Linear | nn.Conv2d
Inputs = torch.Tensor | Mapping[str, torch.Tensor]

FEW_IMAGES = 4
"""Images that show where the head is."""

PROBE_ITERATIONS = 1000
"""Limit on the steps of the logistic regression; standardised features rarely need a tenth of it."""


@torch.no_grad()
def find_heads(model: PreTrainedModel, inputs: Inputs) -> dict[str, Head]:
    """
    The layers whose output is the logits.

    Args:
        inputs (mapping of `str` to `torch.Tensor`): any images that it takes, as keyword arguments of its forward; a bare tensor
            is the `pixel_values`.

    Returns:
        `dict[str, nn.Module]`: from name to layer (linear, or convolution of size 1). One layer for most models; several
        where the logits are the mean of several layers (distilled DeiT).
    """
    outputs, logits = trace(model, inputs)
    heads = {name: layer for name, (layer, output) in outputs.items() if _same(output, logits)}
    if heads:
        return heads
    # Several layers make the logits: the last ones in a row with one output for each class.
    shaped = reversed(outputs.items())
    last = itertools.takewhile(lambda item: item[1][1].numel() == logits.numel(), shaped)
    heads = {name: layer for name, (layer, _) in last}
    if not heads:
        raise SMDError(
            f"No linear layer of {type(model).__name__} makes its logits, so its classifier head cannot be found. Expected "
            "a model that ends in a linear layer (or a convolution of size 1): do not replace its head or name it as a group."
        )
    return dict(reversed(heads.items()))


def head_parameter_names(model: PreTrainedModel) -> set[str]:
    """
    Names in memory of the parameters of the classifier head.

    They are found by a forward pass of one image of noise.

    Raises:
        `SMDError`: if it cannot be found.
    """
    try:
        heads = find_heads(model, noise_inputs(model))
    except SMDError:
        # Several layers make the logits, and not by their mean alone (VOLO): timm still names its classifier.
        heads = _named_by_timm(model)
        if not heads:
            raise
    return {f"{name}.{parameter}" for name, head in heads.items() for parameter, _ in head.named_parameters()}


def _named_by_timm(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The classifier of a timm model by its name; empty for other models."""
    if not is_timm_model(model):
        return {}
    classifier = model.timm_model.get_classifier()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    wanted = {id(each) for each in (classifier if isinstance(classifier, tuple | list) else [classifier])}
    return {name: layer for name, layer in model.named_modules() if id(layer) in wanted}


def replace_head(
    model: PreTrainedModel,
    labels: list[str],
    batches: Iterable[tuple[Inputs, torch.Tensor]] | None = None,
    *,
    head_init: Literal["linear_probe", "random"] = "linear_probe",
    seed: int = 0,
) -> None:
    """
    Replaces the model's head by one for other classes, in place.

    The linear probe is a multinomial logistic regression (L2, C = 1) on standardised features. The standardisation is folded
    into weight and bias, so that the logits of the new head are the decision function of the probe.

    Args:
        model (`PreTrainedModel`): an image classifier, in eval mode. Its configuration is changed too, so that the model
            saves and loads with the new classes.
        batches (iterable of `(inputs, labels)`, *optional*): images, as for [`find_heads`], with the numbers of their classes,
            for the linear probe; read once. A random head reads the first batch only, to find the head that it replaces.
        head_init (`str`, *optional*, defaults to `"linear_probe"`): `"linear_probe"` or `"random"` (uniform, as
            `torch.nn.Linear` begins).
    """
    if len(labels) < 2 or len(set(labels)) != len(labels):
        raise SMDError(
            f"A new head needs at least two classes with names of their own, and {len(labels)} were given of which "
            f"{len(set(labels))} are different: check the label names of the data set."
        )
    if head_init == "random":
        first = next(iter(batches), None) if batches is not None else None
        heads = find_heads(model, noise_inputs(model) if first is None else first[0])
        generator = torch.Generator().manual_seed(seed)
        new = {name: _random_weights(head, len(labels), generator) for name, head in heads.items()}
    else:
        heads, features, targets = _collect_features(model, batches or ())
        _check_targets(targets, labels)
        new = {
            name: _fit_probe(features[name], targets, intercept=head.bias is not None) for name, head in heads.items()
        }
    for name, head in heads.items():
        model.set_submodule(name, _make_head(head, *new[name]), strict=True)
    _relabel(model, labels)


def trace(model: PreTrainedModel, inputs: Inputs) -> tuple[dict[str, tuple[Head, torch.Tensor]], torch.Tensor]:
    """
    Outputs of the linear layers in the order of their last calls, and the logits, of the first few images: all outputs are held at
    once.
    """
    outputs: dict[str, tuple[Head, torch.Tensor]] = {}

    def record(name: str):
        def hook(layer: Head, args: tuple, output: torch.Tensor) -> None:
            outputs.pop(name, None)
            outputs[name] = (layer, output)

        return hook

    handles = [
        layer.register_forward_hook(record(name)) for name, layer in model.named_modules() if _may_be_head(layer)
    ]
    try:
        few = {name: tensor[:FEW_IMAGES] for name, tensor in as_inputs(inputs, model).items()}
        logits = logits_of(model(**few))
    finally:
        for handle in handles:
            handle.remove()
    return outputs, logits


def _may_be_head(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))


def _same(output: torch.Tensor, logits: torch.Tensor) -> bool:
    return output.numel() == logits.numel() and torch.equal(output.reshape(logits.shape), logits)


@torch.no_grad()
def _collect_features(
    model: PreTrainedModel, batches: Iterable[tuple[Inputs, torch.Tensor]]
) -> tuple[dict[str, Head], dict[str, np.ndarray], np.ndarray]:
    """The heads, what goes into each over all images, `(images, features)` in float64, and the labels."""
    heads: dict[str, Head] = {}
    features: dict[str, list[torch.Tensor]] = {}
    targets: list[torch.Tensor] = []
    for inputs, labels in batches:
        heads = heads or find_heads(model, inputs)
        with _recorded_inputs(heads) as recorded:
            model(**as_inputs(inputs, model))
        for name, value in recorded.items():
            features.setdefault(name, []).append(value.flatten(1).cpu().double())
        targets.append(labels.cpu().reshape(-1))
    if not targets:
        raise SMDError(
            "The linear probe of a new head needs images with labels, and there are none: give it fitness data."
        )
    return heads, {name: torch.cat(values).numpy() for name, values in features.items()}, torch.cat(targets).numpy()


@contextmanager
def _recorded_inputs(heads: dict[str, Head]):
    inputs: dict[str, torch.Tensor] = {}

    def record(name: str):
        def hook(layer: Head, args: tuple[torch.Tensor, ...]) -> None:
            inputs[name] = args[0]

        return hook

    handles = [head.register_forward_pre_hook(record(name)) for name, head in heads.items()]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def _check_targets(targets: np.ndarray, labels: list[str]) -> None:
    beyond = targets[(targets < 0) | (targets >= len(labels))]
    if beyond.size:
        raise SMDError(
            f"The fitness data has the label {beyond[0]}; expected 0 to {len(labels) - 1} for {len(labels)} classes: check "
            "the label column."
        )
    missing = [labels[i] for i in np.setdiff1d(np.arange(len(labels)), targets)]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise SMDError(
            f"The fitness data has no image of {shown}, so a linear probe cannot learn the new head. Give more images (raise "
            "max_train_samples), or begin with head_init='random'."
        )


def _fit_probe(
    features: np.ndarray, targets: np.ndarray, *, intercept: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight `(classes, features)` and bias `(classes,)` in float64 of a logistic regression on standardised features."""
    if not np.isfinite(features).all():
        raise SMDError(
            "The model's features of the fitness images are not finite, so no head can be fitted on them. Check the images, "
            "or load the model with dtype='float32'."
        )
    # Without an intercept nothing could absorb a shift of the features: they are only scaled.
    mean = features.mean(0) if intercept else np.zeros(features.shape[1])
    scale = np.sqrt(((features - mean) ** 2).mean(0))
    scale[scale == 0] = 1.0
    probe = LogisticRegression(fit_intercept=intercept, max_iter=PROBE_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit((features - mean) / scale, targets)
    if max(probe.n_iter_) >= PROBE_ITERATIONS:
        logger.warning(f"The linear probe stopped after {PROBE_ITERATIONS} steps, before it converged.")
    weight, bias = probe.coef_ / scale, np.atleast_1d(probe.intercept_) - (probe.coef_ / scale) @ mean
    if len(weight) == 1:
        # Two classes: scikit-learn returns only the logit of the second against the first.
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return torch.from_numpy(weight), torch.from_numpy(bias) if intercept else None


def _random_weights(head: Head, classes: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor | None]:
    inputs = head.weight.shape[1]
    numbers = torch.rand(classes, inputs + 1, generator=generator, dtype=torch.float64)
    numbers = (2 * numbers - 1) / inputs**0.5
    return numbers[:, :inputs], numbers[:, inputs] if head.bias is not None else None


@torch.no_grad()
def _make_head(old: Head, weight: torch.Tensor, bias: torch.Tensor | None) -> Head:
    """A layer of the old one's type, device, dtype and mode, with these weights."""
    classes, inputs = weight.shape
    place = {"bias": bias is not None, "device": old.weight.device, "dtype": old.weight.dtype}
    head = (
        nn.Linear(inputs, classes, **place) if isinstance(old, nn.Linear) else nn.Conv2d(inputs, classes, 1, **place)
    )
    head.weight.copy_(weight.reshape(head.weight.shape))
    if bias is not None and head.bias is not None:
        head.bias.copy_(bias)
    head.train(old.training)
    return head.requires_grad_(old.weight.requires_grad)


def _relabel(model: PreTrainedModel, labels: list[str]) -> None:
    """Records the new classes everywhere that loading the model reads them."""
    config: Any = model.config
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    config.num_labels = len(labels)
    model.num_labels = len(labels)  # pyright: ignore[reportArgumentType]
    if config.problem_type is not None:
        config.problem_type = "single_label_classification"
    if is_timm_model(model):
        model.timm_model.num_classes = len(labels)  # pyright: ignore
        config.label_names = list(labels)
        # Descriptions and the offset of the labels belong to the old classes.
        vars(config).pop("label_descriptions", None)
        if getattr(config, "pretrained_cfg", None):
            stale = ("label_names", "label_descriptions", "label_offset", "num_classes")
            config.pretrained_cfg = {key: value for key, value in config.pretrained_cfg.items() if key not in stale}
