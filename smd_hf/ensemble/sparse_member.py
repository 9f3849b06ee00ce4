"""
A member of an ensemble as its difference from the parent: one buffer of indices and one of values, whatever the
tensors.

The changes of all tensors follow one another in the two buffers, in the order of the tensors' names in a checkpoint;
which part belongs to which tensor follows from the counts in the ensemble's configuration. So a member costs two
entries in a safetensors file, names with dots need no escaping, and `.to()` moves and casts the values as it does the
parent's weights.

This file travels with an ensemble's checkpoint: it imports torch and transformers alone.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange, WeightRenaming

from .sparse_changes import check_change

Change = tuple[torch.Tensor | None, torch.Tensor]
"""Flat indices (`None` for the whole tensor) and the new values, as [`exchange`] takes them."""


class Segment(NamedTuple):
    """
    What a member changes in one tensor.

    Args:
        name (`str`): of the tensor, in memory.
        shape (`torch.Size`): of the tensor.
        count (`int` or `None`): how many coordinates; `None` for the whole tensor, which has no indices.
    """

    name: str
    shape: torch.Size
    count: int | None

    @property
    def values(self) -> int:
        """How many values are stored."""
        return self.shape.numel() if self.count is None else self.count

    @property
    def indices(self) -> int:
        """How many indices are stored."""
        return self.count or 0


class SparseMember(nn.Module):
    """
    The changes that make a member out of the parent. It is a store, not a layer: it has no forward.

    Args:
        segments (list of [`Segment`]): by tensor, in the order in which the buffers hold them.
        indices (`torch.Tensor` or `None`): flat indices within each tensor, int32, or int64 where a tensor needs it;
            `None` where no segment has any, as an empty tensor cannot be saved beside another.
        values (`torch.Tensor` or `None`): the new values, flat; `None` where there is none.
    """

    def __init__(self, segments: list[Segment], indices: torch.Tensor | None, values: torch.Tensor | None):
        super().__init__()
        self.segments = segments
        self.register_buffer("indices", indices)
        self.register_buffer("values", values)

    @classmethod
    def blank(cls, segments: list[Segment]) -> "SparseMember":
        """A member with room for its changes, which are loaded later; in the default dtype, on the default device."""
        indices = sum(segment.indices for segment in segments)
        values = sum(segment.values for segment in segments)
        return cls(
            segments,
            torch.zeros(indices, dtype=index_dtype(segments)) if indices else None,
            torch.zeros(values) if values else None,
        )

    @classmethod
    def packed(cls, segments: list[Segment], changes: Mapping[str, Change], device: torch.device) -> "SparseMember":
        """A member from the changes of tensors by their names in memory; those of `segments` and no others."""
        parts = [changes[segment.name] for segment in segments]
        indices = [indices.to(device, index_dtype(segments)) for indices, _ in parts if indices is not None]
        # Tensors of several dtypes share the widest: every value is exact in it, and cast back when it is applied.
        values = [values.detach().to(device).reshape(-1) for _, values in parts]
        return cls(segments, torch.cat(indices) if indices else None, torch.cat(values) if values else None)

    @property
    def names(self) -> frozenset[str]:
        """The names in memory of the tensors that it changes."""
        return frozenset(segment.name for segment in self.segments)

    def changes(self) -> Iterator[tuple[str, Change]]:
        """(name in memory, [`Change`]) by tensor: views of the buffers."""
        index, value = 0, 0
        for segment in self.segments:
            indices = None
            if segment.count is not None:
                indices = self.indices[index : index + segment.count]
            values = self.values[value : value + segment.values]
            yield segment.name, (indices, values if segment.count is not None else values.view(segment.shape))
            index, value = index + segment.indices, value + segment.values

    def check(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """
        Refuse changes that do not fit the parent.

        Args:
            tensors (mapping of `str` to `torch.Tensor`): the parent's, by name in memory.

        Raises:
            `ValueError`: see [`check_change`].
        """
        for name, (indices, values) in self.changes():
            tensor = tensors[name]
            check_change(name, indices, values.to(tensor.dtype), tensor.shape, tensor.dtype)


def index_dtype(segments: Iterable[Segment]) -> torch.dtype:
    """The dtype of a member's indices: int32 where every changed tensor has fewer than 2^31 coordinates."""
    largest = max((segment.shape.numel() for segment in segments if segment.indices), default=0)
    return torch.int32 if largest < 2**31 else torch.int64


def changeable_tensors(parent: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a model that a member may change, by name in memory: its floating-point parameters."""
    return {name: tensor for name, tensor in parent.named_parameters() if tensor.is_floating_point()}


def checkpoint_names(model: PreTrainedModel) -> dict[str, str]:
    """
    The names that the parameters of a model have in a checkpoint, where transformers gives them others in memory.

    They depend on the model's class and configuration alone, not on where it was loaded from, and on renamings alone:
    a parameter which is stored otherwise than one to one keeps a name that no other has.

    Returns:
        `dict[str, str]`: name in memory -> name in a checkpoint; no two are the same.
    """
    conversions = reversed(get_model_conversion_mapping(model, add_legacy=False))
    # A prefix depends on who wrote the checkpoint: timm's own have none, those of transformers do.
    renamings = [
        conversion.reverse_transform()
        for conversion in conversions
        if isinstance(conversion, WeightRenaming) and not isinstance(conversion, PrefixChange)
    ]
    names = {name: name for name, _ in model.named_parameters()}
    for renaming in renamings:
        names = {name: renaming.rename_source_key(saved)[0] for name, saved in names.items()}
    if len(set(names.values())) < len(names):
        return {name: name for name in names}
    return names


def segments_from_counts(
    parent: PreTrainedModel, changes: Mapping[str, list[int | None]], member_count: int
) -> list[list[Segment]]:
    """
    Each member's segments, from the counts in a configuration. Nothing is allocated.

    Args:
        parent ([`PreTrainedModel`]): the members' parent; its weights may be on the meta device.
        changes (`dict[str, list[int | None]]`): [`SMDEnsembleConfig`]'s.
        member_count (`int`): how many members there are.

    Returns:
        list of lists of [`Segment`]: by member.

    Raises:
        `ValueError`: for a tensor that the parent does not have, or more changes than it has coordinates.
    """
    tensors = changeable_tensors(parent)
    in_memory = {stored: name for name, stored in checkpoint_names(parent).items()}
    members: list[list[Segment]] = [[] for _ in range(member_count)]
    for stored, counts in sorted(changes.items()):
        name = in_memory.get(stored)
        if name not in tensors:
            raise ValueError(
                f"The ensemble's config.json lists changes of {stored}, but its parent ({type(parent).__name__}) has "
                "no floating-point parameter of this name: parent_config and changes do not belong together."
            )
        shape = tensors[name].shape
        for segments, count in zip(members, counts):
            if count is not None and count > shape.numel():
                raise ValueError(
                    f"The ensemble's config.json lists {count} changes of {stored}, which has {shape.numel()} "
                    "coordinates."
                )
            if count != 0:
                segments.append(Segment(name, shape, count))
    return members
