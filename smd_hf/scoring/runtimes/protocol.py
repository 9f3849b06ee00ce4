"""What a runtime is: the engine that runs the forward passes of parent and children."""

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from ..changes import Change

Inputs = Mapping[str, torch.Tensor]
"""A batch, as keyword arguments of the model's forward."""

Forward = Callable[[Inputs], torch.Tensor]
"""From a batch to logits of shape `(batch, num_labels)`. The next call may overwrite them."""


class Runtime(Protocol):
    """
    Runs forward passes of a model and of children that differ from it in some weights.

    Attributes:
        name (`str`): one of the choices of `--runtime`.
        wants_one_thread (`bool`): whether what PyTorch computes between passes is little, and its threads would be in the way of the
            runtime's own.
    """

    name: str
    wants_one_thread: bool

    def forward(self, inputs: Inputs) -> torch.Tensor:
        """Logits of the parent, as its weights are now."""
        ...

    def begin(self) -> None:
        """Called before children are run: the parent may have other weights than before."""
        ...

    def child(
        self, changes: Iterable[tuple[str, Change]], changed: Collection[str] | None = None
    ) -> AbstractContextManager[Forward]:
        """
        A child, for as long as the context lasts.

        Args:
            changes (iterable of (name, [`Change`])): the weights in which it differs from the parent.
            changed (collection of `str`, *optional*): names of these weights. Given where the pass over the recorded batch is
                to begin at the first of them.
        """
        ...

    def record(self, inputs: Inputs, starts: Iterable[Collection[str]]) -> torch.Tensor:
        """
        Logits of the parent. Activations are kept from which children continue.

        Args:
            inputs (mapping of `str` to `torch.Tensor`): the batch that children are run on next.
            starts (iterable of collections of `str`): names of the weights that each of these children changes.
        """
        ...

    def can_replay(self) -> bool:
        """Whether the model can start in the middle, as far as it is known."""
        ...

    def suffix_share(self, changed: Collection[str]) -> float:
        """The share of a pass, in [0, 1], that is run for a child which changes these weights, over recorded inputs."""
        ...

    def clear(self) -> None:
        """Frees what was recorded."""
        ...
