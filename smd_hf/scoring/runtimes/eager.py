"""The model as it is, run by PyTorch operation by operation. Children are written into its weights and taken out again."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ...errors import SMDError
from ...models.quantized import named_tensors
from ...remote_code.members_smd_ensemble import forget_derived, keepers, logits_of
from ..changes import Change, applied
from ..prefix_replay import PrefixReplay
from .protocol import Forward, Inputs


class Eager:
    """
    Calls the model itself.

    Args:
        model (`torch.nn.Module`): in eval mode.
        prefix_replay (`bool`, *optional*, defaults to `True`): passes over recorded inputs begin at the first changed block.
        call (`Callable`, *optional*): what is called in place of the model: the same, compiled.
    """

    name = "eager"
    wants_one_thread = False

    def __init__(
        self,
        model: nn.Module,
        prefix_replay: bool = True,
        call: Callable | None = None,
        read: Callable[[Any], torch.Tensor] = logits_of,
    ):
        self.parameters = named_tensors(model)
        self._call = model if call is None else call
        self._read = read
        self._replay = PrefixReplay(model) if prefix_replay and call is None else None
        self._caching = keepers(model)

    def forward(self, inputs: Inputs) -> torch.Tensor:
        forget_derived(self._caching)
        output = self._call(**inputs)
        try:
            return self._read(output)
        except ValueError as error:
            raise SMDError(str(error)) from error

    def begin(self) -> None:
        self.clear()

    @contextmanager
    def child(
        self, changes: Iterable[tuple[str, Change]], changed: Collection[str] | None = None
    ) -> Iterator[Forward]:
        with applied(self.parameters, changes):
            replay = self._replay
            if replay is None or changed is None:
                yield self.forward
                return

            def forward(inputs: Inputs) -> torch.Tensor:
                with replay.replay(changed):
                    return self.forward(inputs)

            yield forward

    def record(self, inputs: Inputs, starts: Iterable[Collection[str]]) -> torch.Tensor:
        if self._replay is None:
            return self.forward(inputs)
        with self._replay.record(starts):
            return self.forward(inputs)

    def can_replay(self) -> bool:
        return self._replay is not None and self._replay.supported[0]

    def suffix_share(self, changed: Collection[str]) -> float:
        return 1.0 if self._replay is None else self._replay.suffix_share(changed)

    def clear(self) -> None:
        if self._replay is not None:
            self._replay.clear()
        # The weights may change next, and whoever calls the model then does not know of what it caches.
        forget_derived(self._caching)
