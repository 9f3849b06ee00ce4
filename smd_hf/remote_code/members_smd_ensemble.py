"""
Members of an ensemble as sparse changes of their parent, and how the members' logits are combined.

A change is a pair of flat indices into a tensor, in row-major order, and *new values*, not differences. Putting values in
and putting back what stood there are copies: nothing is ever rounded.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from .configuration_smd_ensemble import SMDEnsembleConfig

# What models of each task call their predictions.
PREDICTIONS = ("logits", "logits_per_image", "predicted_depth")

Change = tuple[torch.Tensor | None, torch.Tensor]
"""Flat indices (`None` for the whole tensor) and the new values, as [`exchange`] takes them."""


@torch.no_grad()
def exchange(tensor: torch.Tensor, indices: torch.Tensor | None, values: torch.Tensor) -> torch.Tensor:
    """Put `values` in place, at flat `indices` (int32 or int64; `None`: everywhere), and return those that stood there."""
    if indices is None:
        before = tensor.detach().clone()
        tensor.copy_(values)
        return before
    indices = indices.long()
    before = tensor.take(indices)
    tensor.put_(indices, values)
    return before


class Segment(NamedTuple):
    """What a member changes in one tensor: its name in memory, its shape, the number of indices (0: the whole tensor)."""

    name: str
    shape: torch.Size
    indices: int

    @property
    def values(self) -> int:
        return self.indices or self.shape.numel()


class SparseMember(nn.Module):
    """
    The changes that make a member out of the parent. Those of all `segments` follow one another, by the tensors' names in a
    checkpoint. `indices` (of [`index_dtype`]) or `values` are `None` if there are none: an empty tensor cannot be saved.
    """

    def __init__(self, segments: list[Segment], indices: torch.Tensor | None, values: torch.Tensor | None):
        super().__init__()
        self.segments = segments
        self.register_buffer("indices", indices)
        self.register_buffer("values", values)

    @classmethod
    def blank(cls, segments: list[Segment]) -> "SparseMember":
        """A member with room for its changes, which are loaded later; in the default dtype, on the default device."""
        sizes = sum(segment.indices for segment in segments), sum(segment.values for segment in segments)
        indices = torch.zeros(sizes[0], dtype=index_dtype(segments)) if sizes[0] else None
        return cls(segments, indices, torch.zeros(sizes[1]) if sizes[1] else None)

    def changes(self) -> Iterator[tuple[str, Change]]:
        """(name in memory, [`Change`]) by tensor: views of the buffers."""
        index, value = 0, 0
        for segment in self.segments:
            values = self.values[value : value + segment.values]  # pyright: ignore
            if segment.indices:
                yield segment.name, (self.indices[index : index + segment.indices], values)  # pyright: ignore
            else:
                yield segment.name, (None, values.view(segment.shape))
            index, value = index + segment.indices, value + segment.values

    @contextmanager
    def within(self, parent: nn.Module) -> Iterator[None]:
        """Within the block, the parent is this member; its bytes come back, also where the block raises."""
        undo, caching = [], keepers(parent)
        try:
            for name, (indices, values) in self.changes():
                tensor = attrgetter(name)(parent)
                indices = None if indices is None else indices.to(tensor.device)
                undo.append((tensor, indices, exchange(tensor, indices, values.to(tensor.device, tensor.dtype))))
            # Autocast keeps casts by tensor, and a change in place goes unnoticed.
            torch.clear_autocast_cache()
            forget_derived(caching)
            yield
        finally:
            for tensor, indices, before in undo:
                exchange(tensor, indices, before)
            torch.clear_autocast_cache()
            forget_derived(caching)


def keepers(model: nn.Module) -> list[nn.Module]:
    """The modules that may keep what they derived from their weights (LeViT): those that act when their mode changes."""
    return [part for part in model.modules() if type(part).train not in (nn.Module.train, PreTrainedModel.train)]


def forget_derived(modules: Iterable[nn.Module]) -> None:
    """Make modules in evaluation mode drop what they derived from their weights; others keep nothing."""
    for module in modules:
        if not module.training:
            module.train()  # timm's returns nothing
            module.eval()


def index_dtype(segments: Iterable[Segment]) -> torch.dtype:
    """The dtype of a member's indices: int32 where every changed tensor has fewer than 2^31 coordinates."""
    largest = max((segment.shape.numel() for segment in segments if segment.indices), default=0)
    return torch.int32 if largest < 2**31 else torch.int64


def changeable_tensors(parent: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a model that a member may change, by name in memory: its floating-point parameters."""
    return {name: tensor for name, tensor in parent.named_parameters() if tensor.is_floating_point()}


def checkpoint_names(model: Any) -> dict[str, str]:
    """Names in a checkpoint, no two equal, by those in memory; the same where transformers does not tell, or not one to one."""
    names = unchanged = {name: name for name, _ in model.named_parameters()}
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import PrefixChange, WeightRenaming

        for conversion in reversed(get_model_conversion_mapping(model, add_legacy=False)):
            # A prefix depends on who wrote the checkpoint: timm's own have none, those of transformers do.
            if isinstance(conversion, WeightRenaming) and not isinstance(conversion, PrefixChange):
                renaming = conversion.reverse_transform()
                names = {name: renaming.rename_source_key(saved)[0] for name, saved in names.items()}
    # All of it is private to transformers, and may be renamed or take other arguments.
    except (ImportError, AttributeError, TypeError, ValueError, LookupError):
        return unchanged
    return names if len(set(names.values())) == len(names) else unchanged


def segments_from_counts(parent: nn.Module, config: SMDEnsembleConfig) -> list[list[Segment]]:
    """Each member's segments by an ensemble's configuration, or a `ValueError`; nothing is allocated."""
    tensors = changeable_tensors(parent)
    in_memory = {stored: name for name, stored in checkpoint_names(parent).items()}
    members: list[list[Segment]] = [[] for _ in config.member_weights]
    for stored, counts in sorted(config.changes.items()):
        # Each tensor once. What transformers says comes first: its names in memory differ between versions.
        found = (in_memory.get(stored), config.names_in_memory.get(stored), stored)
        name = next((name for name in found if name in tensors), None)
        if name is None:
            raise ValueError(
                f"The ensemble's config.json lists changes of {stored}, but its parent ({type(parent).__name__}) has "
                "no floating-point parameter of this name: parent_config and changes do not belong together, or this "
                "transformers gives it another name. Then install the version named there as transformers_version."
            )
        shape = tensors.pop(name).shape
        for segments, count in zip(members, counts):
            if count is not None and count > shape.numel():
                size = f"{stored}, which has {shape.numel()} coordinates"
                raise ValueError(f"The ensemble's config.json lists {count} changes of {size}.")
            if count != 0:
                segments.append(Segment(name, shape, count or 0))
    return members


def logits_of(output: Any) -> torch.Tensor:
    """The logits, `(batch, classes)`, or depths, in an output without a loss. PPLCNet names logits `last_hidden_state`."""
    output = {"logits": output[0]} if isinstance(output, tuple) else output
    for name in (*PREDICTIONS, "last_hidden_state"):
        found = output.get(name) if hasattr(output, "get") else getattr(output, name, None)
        if isinstance(found, torch.Tensor) and (name in PREDICTIONS or found.ndim == 2):
            return found
    expected = "Expected an image classifier: its output has `logits` of shape (batch, classes)."
    raise ValueError(f"The model returns {type(output).__name__}, which holds no logits. {expected}")


def combine(logits: torch.Tensor, weights: torch.Tensor, combination: str, of_labels: bool = False) -> torch.Tensor:
    """
    The log-probabilities of an ensemble, `(batch, classes, ...)`, by log-sum-exp: nothing overflows or becomes log 0. Or depths.

    Args:
        logits (`torch.Tensor`): the members', `(batch, members, classes, ...)`, float32 or float64; or depths, without classes.
        weights (`torch.Tensor`): of shape `(members,)`, at least 0 and not all 0.
        combination (`str`): `"mean"` of depths; of logits `"mean_probabilities"`, `"mean_logits"` or `"majority_vote"`, where
            each member votes with its weight for its most probable class. A class's probability is then (1 - e) share + e p,
            with the share of the votes, the mean of the members' probabilities p, and e = 1 / (members + 1), or smaller where
            p would reverse the order of shares. So it is never 0, classes rank by votes, equal votes by p.
        of_labels (`bool`): each label is there or not, by itself: logits `(batch, labels)`, whose sigmoids are combined.
    """
    if of_labels:
        both = combine(torch.stack([torch.zeros_like(logits), logits], dim=2), weights, combination)
        return both[:, 1] - both[:, 0]
    shares = (weights / weights.sum()).to(logits.dtype)
    if combination in ("mean", "mean_logits"):
        mean = torch.einsum("bm...,m->b...", logits, shares)
        return mean if combination == "mean" else mean.log_softmax(dim=1)
    log_probabilities = logits.log_softmax(dim=2)
    mean = (log_probabilities + shares.log().view(-1, *[1] * (logits.ndim - 2))).logsumexp(dim=1)
    if combination == "mean_probabilities":
        return mean
    ballots = torch.nn.functional.one_hot(log_probabilities.argmax(dim=2), logits.shape[2]).movedim(-1, 2)
    votes = torch.einsum("bm...,m->b...", ballots.to(shares.dtype), shares)
    votes = votes.round(decimals=5)  # so that 0.1 + 0.2 = 0.3
    gaps = -votes.sort(dim=1, descending=True).values.diff(dim=1)
    gap = gaps.masked_fill(gaps <= 0, 1).amin(dim=1, keepdim=True)
    smoothing = (gap / (1 + gap)).clamp(max=1 / (len(shares) + 1))
    voted = votes.log() + (1 - smoothing).log()
    return torch.logaddexp(voted, mean + smoothing.log()).log_softmax(dim=1)
