"""
Mutation: computes the children of the current parent, as changes of its weights.

A child is theta + m * sigma * s * eps: eps is keyed noise, m its subspace, s the scale of each tensor (its standard
deviation if sigma is relative, else 1). A child that scales multiplies its tensors by 1 + sigma or 1 - sigma. A pruned child
is theta with zeros in its subspace. Only a description of each child is kept. Its changes are computed when they are needed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import InitVar, dataclass
from functools import partial

import numpy as np
import torch
from torch import nn
from transformers.utils import logging

from ..errors import SMDError
from ..keyed_random import keyed_generator, keyed_normal
from ..models.quantized import named_tensors
from ..scoring.changes import Change
from .kept_arrays import KeptArrays
from .subspaces import Decomposition, ParameterSpace

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Child:
    """
    The description of a child. Together with the parent's weights, it suffices to rebuild the child.

    Args:
        generation (`int`), index (`int`): count from 0.
        direction (`int`): which subspace and noise.
        sign (`int`): 1, or -1 for the second of a mirrored pair.
        sigma (`float`): mutation strength, before `match_norm` and the tensor's scale.
        step (`float`): factor of the noise, before the tensor's scale: sigma, or sigma / sqrt(density) with `match_norm`.
        count (`int`): number of coordinates that the child changes.
        density (`float`): `count` as a share of the mutable coordinates.
    """

    generation: int
    index: int
    direction: int
    sign: int
    sigma: float
    step: float
    count: int
    density: float


@dataclass(eq=False)
class Mutation:
    """
    Makes the children of a generation and computes the weights of each.

    Args:
        model (`torch.nn.Module`): holds the parent's weights.
        seed (`int`, *optional*, defaults to 0): keys the noise.
        sigma_units (`str`, *optional*, defaults to `"relative"`): `"relative"` multiplies sigma by each tensor's standard
            deviation in the parent (by its root mean square if all its values are equal); `"absolute"` does not.
        match_norm (`bool`, *optional*, defaults to `False`): divides sigma by sqrt(density), so that children of every
            density are as far from the parent as a dense one.
        mirrored (`bool`, *optional*, defaults to `False`): children come in pairs, theta + delta and theta - delta.
        prune (`bool`, *optional*, defaults to `False`): sets a child's coordinates to zero instead: delta is -theta there.

    Raises:
        `SMDError`: if sigma is relative and all mutable tensors are zero. If only some are zero, a warning names them.
    """

    model: InitVar[nn.Module]
    decomposition: Decomposition
    seed: int = 0
    sigma_units: str = "relative"
    match_norm: bool = False
    mirrored: bool = False
    prune: bool = False

    def __post_init__(self, model: nn.Module) -> None:
        parameters = named_tensors(model)
        self.parameters: dict[str, torch.Tensor] = {name: parameters[name] for name in self.space.names}
        self.scales: list[float] = []
        self._shared_noise = KeptArrays()
        self.parent_changed()
        self._check_zeros()

    @property
    def space(self) -> ParameterSpace:
        """The mutable parameters."""
        return self.decomposition.space

    def parent_changed(self) -> None:
        """Measures the parent's tensors again. Call it after every lasting change of its weights."""
        if self.prune or self.sigma_units == "absolute":
            self.scales = [1.0] * len(self.space.names)
        else:
            self.scales = [tensor_scale(self.parameters[name]) for name in self.space.names]

    def _check_zeros(self) -> None:
        """Reports tensors of zeros: their scale is 0, so relative noise has no effect on them."""
        names = [name for name, scale in zip(self.space.names, self.scales) if scale == 0]
        if not names:
            return
        shown = f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        if len(names) == len(self.scales):
            raise SMDError(
                f"All mutable tensors are zero ({shown}), and sigma is relative to each tensor's standard deviation, so no "
                "child would differ from the parent. Choose sigma_units='absolute' and set sigma, or choose other "
                "mutable_parameters."
            )
        logger.warning(
            f"{len(names)} of {len(self.scales)} mutable tensors are zero ({shown}). They stay zero, because sigma is relative "
            "to each tensor's standard deviation. To change them too, choose sigma_units='absolute' and set sigma. To leave "
            "them out without this warning, name them in frozen_parameters."
        )

    def children(self, generation: int, sigma: float) -> list[Child]:
        """The population of one generation: `directions` children, or twice as many if they are mirrored."""
        signs = (1, -1) if self.mirrored else (1,)
        children = []
        for direction in range(self.decomposition.directions):
            count = self.decomposition.count(generation, direction)
            density = count / self.space.total
            step = sigma / density**0.5 if self.match_norm else sigma
            for sign in signs:
                children.append(Child(generation, len(children), direction, sign, sigma, step, count, density))
        return children

    def delta(self, child: Child, tensor: int) -> tuple[np.ndarray | None, np.ndarray] | None:
        """
        The child's mutation of one tensor.

        Returns:
            Flat indices (int64, `(k,)`; `None` for all) and the values to add there (float32, `(k,)`; float64 for the pruning
            or scaling of a float64 tensor). `None` if the child does not change the tensor.
        """
        decomposition = self.decomposition
        indices = decomposition.indices(child.generation, child.direction, tensor)
        if indices is not None and len(indices) == 0:
            return None
        key, size = self.space.keys[tensor], self.space.sizes[tensor]
        if self.prune:
            return indices, -self._parent_values(tensor, indices)  # x + (-x) is zero to the bit
        if decomposition.scales(child.direction):
            draw = keyed_generator("scaling", self.seed, child.generation, child.direction, key).integers(2)
            values = self._parent_values(tensor, indices)
            return indices, values * values.dtype.type(child.sign * child.sigma * (1 if draw else -1))
        shared = decomposition.noise_key(child.direction)
        if shared is None:
            count = size if indices is None else len(indices)
            noise = keyed_normal(count, "noise", self.seed, child.generation, child.direction, key)
        else:
            make = partial(keyed_normal, size, "cut noise", self.seed, child.generation, shared, key)
            whole = self._shared_noise.get((child.generation, shared), tensor, make)
            noise = whole.copy() if indices is None else whole[indices]
        noise *= np.float32(child.sign * child.step * self.scales[tensor])
        return indices, noise

    def _parent_values(self, tensor: int, indices: np.ndarray | None) -> np.ndarray:
        """The parent's values at the indices, in the dtype in which changes are added to them."""
        values = self.parameters[self.space.names[tensor]].detach().reshape(-1)
        values = values if indices is None else values.take(torch.from_numpy(indices).to(values.device))
        return values.to("cpu", torch.promote_types(values.dtype, torch.float32)).numpy()

    def changes(self, child: Child) -> Iterator[tuple[str, Change]]:
        """The child's weights where they differ from the parent's: a pair (name in memory, [`Change`]) for each tensor."""
        return self.combination([(child, 1.0)])

    def changed_names(self, child: Child) -> frozenset[str]:
        """Names in memory of the parameters in which the child may differ from the parent."""
        count_in = self.decomposition.count_in
        return frozenset(
            name
            for tensor, name in enumerate(self.space.names)
            if count_in(child.generation, child.direction, tensor) > 0
        )

    def combination(self, parts: list[tuple[Child, float]]) -> Iterator[tuple[str, Change]]:
        """
        The weights theta + sum of coefficient x (child - theta), where they differ from the parent's.

        Args:
            parts (list of ([`Child`], `float`)): children and their coefficients. They are summed in float32 and in this
                order, and the sum is rounded to the parameter's dtype once.
        """
        for tensor, name in enumerate(self.space.names):
            mutation = self._sum_of_deltas(parts, tensor)
            if mutation is None:
                continue
            indices, delta = mutation
            parameter = self.parameters[name]
            wide = torch.promote_types(parameter.dtype, torch.float32)
            added = torch.from_numpy(delta).to(parameter.device)
            if indices is None:
                yield name, (None, (parameter.detach().to(wide) + added.view_as(parameter)).to(parameter.dtype))
            else:
                flat = torch.from_numpy(indices).to(parameter.device)
                yield name, (flat, (parameter.detach().take(flat).to(wide) + added).to(parameter.dtype))

    def _sum_of_deltas(
        self, parts: list[tuple[Child, float]], tensor: int
    ) -> tuple[np.ndarray | None, np.ndarray] | None:
        if len(parts) == 1:
            child, coefficient = parts[0]
            mutation = self.delta(child, tensor)
            if mutation is None or coefficient == 1.0:
                return mutation
            return mutation[0], mutation[1] * np.float32(coefficient)
        total = None
        for child, coefficient in parts:
            mutation = self.delta(child, tensor)
            if mutation is None:
                continue
            if total is None:
                total = np.zeros(self.space.sizes[tensor], dtype=np.float32)
            indices, delta = mutation
            total[slice(None) if indices is None else indices] += delta * np.float32(coefficient)
        return None if total is None else (None, total)


def zero_share(parameters: Mapping[str, torch.Tensor]) -> float:
    """The share of coordinates that are exactly zero, in [0, 1]."""
    zeros = sum(int((tensor == 0).sum()) for tensor in parameters.values())
    return zeros / sum(tensor.numel() for tensor in parameters.values())


def tensor_scale(tensor: torch.Tensor) -> float:
    """The standard deviation of a tensor's values, in float64; their root mean square if they are all equal."""
    # Sum in row-major order, whatever the memory layout: the order changes the last bits.
    # Copy first: MPS would convert before it copies, and has no float64.
    values = tensor.detach().cpu().double().contiguous().numpy()
    deviation = float(np.std(values))
    return deviation if deviation > 0 else float(np.sqrt(np.mean(values**2)))
