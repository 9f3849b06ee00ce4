"""
Applies deltas to a model's weights, restores the weights, and finds the smallest form of a change.
"""

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ...errors import SMDError
from ...models.checkpoints import checkpoint_names
from ...models.quantized import scales_of, stored_parts
from ...remote_code.members_smd_ensemble import exchange, forget_derived
from ...scoring.changes import Change
from .config import shown
from .storage import VALUE_DTYPES, check

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class AppliedDelta:
    """
    A delta that is applied to a model's weights. [`~AppliedDelta.restore`], or the end of a `with` block, restores them.

    The object keeps the base's values of the changed coordinates. If it is deleted, the child stays in the model.
    """

    def __init__(
        self, tensors: Mapping[str, torch.Tensor], changes: Mapping[str, Change], caching: Iterable[nn.Module] = ()
    ):
        self._tensors = tensors
        self._caching = list(caching)
        self._before: list[tuple[str, Change]] = []
        try:
            for name, (indices, values) in changes.items():
                device = tensors[name].device
                indices = None if indices is None else indices.to(device)
                self._before.append((name, (indices, exchange(tensors[name], indices, values.to(device)))))
        except BaseException:
            self.restore()
            raise
        forget_derived(self._caching)

    def restore(self) -> None:
        """Restores the base's values bit for bit. A second call has no effect."""
        while self._before:
            name, (indices, values) = self._before[-1]
            exchange(self._tensors[name], indices, values)
            self._before.pop()
        forget_derived(self._caching)

    def __enter__(self) -> "AppliedDelta":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()


def checkpoint_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """
    Parameters and persistent buffers by checkpoint name, and scales of quantised ones. A tensor with several names is listed
    under the first.
    """
    names = checkpoint_names(model)
    distinct = {id(tensor): (name, tensor) for name, tensor in reversed(model.state_dict(keep_vars=True).items())}
    tensors = {}
    for name, tensor in reversed(distinct.values()):
        tensors[names.get(name, name)] = tensor.detach()
        tensors.update((names[scale], inner) for scale, inner in scales_of(name, tensor))
    return tensors


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """
    Whether two tensors of one shape and dtype hold the same bytes: 0.0 is not -0.0. Of a quantised one, the scales are compared for
    themselves.
    """
    parts, others = (_without_scales(tensor) for tensor in (first, second))
    if parts.keys() != others.keys():
        return False
    return all(_same_part(part, others[name]) for name, part in parts.items())


def _without_scales(tensor: torch.Tensor) -> dict[str, Any]:
    scales = dict(scales_of("", tensor))
    return {name: part for name, part in stored_parts("", tensor) if name not in scales}


def _same_part(part: torch.Tensor | str, other: torch.Tensor | str) -> bool:
    if not isinstance(part, torch.Tensor) or not isinstance(other, torch.Tensor):
        return part is other or (isinstance(part, str) and part == other)
    part, other = (tensor.cpu().contiguous().flatten().view(torch.uint8) for tensor in (part, other))
    return torch.equal(part, other)


def smallest_change(
    name: str, tensor: torch.Tensor, indices: torch.Tensor | None, values: torch.Tensor
) -> tuple[Change, int]:
    """The change in its smallest form, without unchanged coordinates, and the number of changed coordinates."""
    base = tensor.detach().cpu().flatten()
    indices, values = None if indices is None else indices.detach().cpu(), values.detach().cpu()
    if tensor.dtype not in VALUE_DTYPES.values():
        raise SMDError(
            f"The child changes {shown(name)}, a tensor of {tensor.dtype}. Expected one of "
            f"{', '.join(map(str, VALUE_DTYPES.values()))}: leave it unchanged."
        )
    check(name, indices, values, tensor.shape, tensor.dtype)
    flat, before = (values.flatten(), base) if indices is None else (values, base[indices.long()])
    # Compare bits: 0.0 and -0.0 are different weights with different hashes.
    bits = _BITS[flat.element_size()]
    differing = (flat.contiguous().view(bits) != before.view(bits)).nonzero().flatten()
    positions = differing if indices is None else indices[differing]
    index_dtype = torch.int64 if tensor.numel() >= 2**31 else torch.int32
    if len(positions) * (index_dtype.itemsize + flat.element_size()) < tensor.numel() * flat.element_size():
        return (positions.to(index_dtype), flat[differing].clone()), len(positions)
    whole = base.clone()
    whole[positions.long()] = flat[differing]
    return (None, whole.view(tensor.shape)), len(positions)
