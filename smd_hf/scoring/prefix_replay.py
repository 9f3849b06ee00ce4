"""
Prefix replay: a child's forward pass begins at the first weight that it changes.

During the parent's pass each block call's output is kept; in a child's pass every call that had ended before the first use
of a changed parameter returns what it returned then. Outermost calls are replayed whole, what runs between blocks still
runs, and the logits are those of a full pass bit for bit.

Nothing is assumed of the architecture. The first recording is preceded by a pass over two images that watches every torch
call, and so learns when each parameter is first used (by whichever module, tied or not), which outputs are modified in place
later on (these are kept as clones) and which calls modify their own inputs (these always run). What cannot be replayed
exactly runs in full, with one line in the log that says why.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, pairwise
from typing import Any

import torch
from torch import nn

from ..models.block_calls import (
    Probe,
    Recording,
    find_units,
    first_uses,
    itself,
    modifications,
    rebuild,
    tensors_in,
    wrapped,
)
from .replay_checks import has_hooks, same_state, signature, state_of, static_refusal

logger = logging.getLogger(__name__)


class PrefixReplay:
    """
    Records a pass of a model and replays its beginning in passes with other weights.

    The model carries wrapped `forward`s inside of the two contexts only. It must be in eval mode, without gradients; record
    and replay under the same autocast and inference mode. Change weights in place, in the same tensors.

    Args:
        model (`torch.nn.Module`): the model, on any device and in any dtype.

    Attributes:
        positions (`dict[str, int]`): after a first recording, when each parameter and buffer is first used in a pass, as a
            count of calls begun and ended before; 0 where it was not seen. Empty before, and where replay is not supported.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.positions: dict[str, int] = {}
        self._told: set[str] = set()
        self._structure: list[int] = []
        self._restart(None)

    def clear(self) -> None:
        """Free the recording, and keep what was learned about the model (calls, positions, times)."""
        self._outputs: dict[int, Any] = {}
        self._inputs: list[tuple[torch.Tensor, int]] = []
        self._plans: dict[int, dict[int, list[int | None]]] = {}
        self._queues: dict[int, Iterator[int | None]] = {}

    def _restart(self, key: str | None) -> None:
        """Forget what holds for one kind of input alone."""
        self.clear()
        self.positions = {}
        self._key = key
        # Set by the first recording.
        self._probe: Any = None
        self._proven = False
        self._units: list[nn.Module] = []
        self._refusal: str | None = None
        self._durations: list[float] | None = None
        self._stamps: list[Any] = []

    @property
    def supported(self) -> tuple[bool, str | None]:
        """Whether passes can be replayed, and the reason if not; before the first recording, as far as can be seen."""
        reason = static_refusal(self.model) or self._refusal
        return reason is None, reason

    @contextmanager
    def record(self, starts: Iterable[Iterable[str]] | None = None) -> Iterator[None]:
        """
        Record the pass of the model that runs inside, for one batch: a later pass takes its place.

        Args:
            starts (`Iterable[Iterable[str]]`, *optional*): the sets of parameter names that children change. Only the
                outputs which these children replay are kept; another child then replays what it can of them. Without it,
                the outputs of all calls are kept.
        """
        self.clear()
        torch.clear_autocast_cache()
        structure = [id(part) for part in chain(self.model.modules(), self.model.parameters(), self.model.buffers())]
        if structure != self._structure:
            self._restart(None)
            self._structure = structure
        self._starts = None if starts is None else [frozenset(changed) for changed in starts]
        reason = static_refusal(self.model)
        if reason is not None:
            self._tell(reason)
            yield
            return
        with wrapped({self.model: self._record}):
            yield

    @contextmanager
    def replay(self, changed: Iterable[str]) -> Iterator[None]:
        """
        Let the passes of the model that run inside begin at the first use of a changed parameter.

        Passes over other inputs than the recorded ones, or in another autocast or inference mode, run in full.

        Args:
            changed (`Iterable[str]`): names in memory of all parameters (and buffers) that differ from the recorded pass.

        Raises:
            `KeyError`: if the model has no parameter of such a name.
        """
        # Under autocast, casts of the parent's weights may still be cached.
        torch.clear_autocast_cache()
        plan = self._plan(self._cut(changed)) if self._outputs else {}
        if not plan:
            yield
            return
        wrappers = {self._units[unit]: self._replayer(unit) for unit in plan}

        def run(forward: Callable, *args, **kwargs) -> Any:
            if self._same_inputs(args, kwargs):
                self._queues = {unit: iter(calls) for unit, calls in plan.items()}
            try:
                return forward(*args, **kwargs)
            finally:
                self._queues = {}

        with wrapped({self.model: run, **wrappers}):
            yield

    def suffix_share(self, changed: Iterable[str]) -> float:
        """
        The estimated share of a full pass that a child costs, in [0, 1]; 1 as long as nothing is recorded.

        From the times of the recorded passes, of each stretch the shortest (on a CUDA device by events on its stream).

        Args:
            changed (`Iterable[str]`): names in memory of the parameters which the child changes.

        Raises:
            `KeyError`: if the model has no parameter of such a name.
        """
        self._take_times()
        if self._durations is None:
            return 1.0
        replayed = set()
        for calls in self._plan_over(self._cut(changed), set(range(len(self._probe.calls)))).values():
            replayed.update(calls)
        calls = [self._probe.calls[index] for index in replayed - {None}]
        saved = sum(sum(self._durations[call.start : call.end]) for call in calls)
        return 1.0 - saved / sum(self._durations)

    # Recording

    def _record(self, forward: Callable, *args, **kwargs) -> Any:
        self.clear()
        if torch.is_grad_enabled():
            self._tell("gradients are enabled")
            return forward(*args, **kwargs)
        try:
            key = signature((args, kwargs), self._device)
        except TypeError as error:
            self._tell(f"the model is called with {error}")
            return forward(*args, **kwargs)
        if key != self._key:
            self._restart(key)
        if self._probe is None and self._refusal is None:
            try:
                self._learn(forward, args, kwargs)
            except Exception as error:
                # Where the model or its input is at fault, the pass itself says so.
                output = forward(*args, **kwargs)
                self._refuse(f"the pass that learns about it failed with {type(error).__name__}: {error}")
                return output
        if self._refusal is not None:
            self._tell(self._refusal)
            return forward(*args, **kwargs)
        kept, probe = self._kept(), self._probe
        assert probe is not None
        before = state_of(self.model, self._device) if not self._proven else None
        take = Recording(probe.calls, kept, self._device.type == "cuda")
        with wrapped({module: take.wrapper(unit) for unit, module in enumerate(self._units)}):
            take.stamp()
            output = forward(*args, **kwargs)
            take.stamp()
        if take.events != probe.events:
            self._refuse("its blocks are not called in the same order in each pass")
        elif not self._proven and not same_state(before or [], state_of(self.model, self._device)):
            self._refuse("a pass changes a buffer or an attribute of a module, or draws random numbers")
        elif has_hooks(self.model):
            self._refuse("forward hooks are registered on it")
        else:
            self._proven = True
            self._outputs = take.outputs
            self._inputs = [(tensor, modifications(tensor)) for tensor in tensors_in((args, kwargs))]
            self._take_times()
            self._stamps = take.stamps
        return output

    def _learn(self, forward: Callable, args: tuple, kwargs: dict) -> None:
        """Watch a pass over two images: the order of calls, and what each does to tensors that others see."""
        units = find_units(self.model)
        probe = Probe(self.model, units)
        inputs = []

        def small(tensor: torch.Tensor) -> torch.Tensor:
            copy = (tensor[:2] if tensor.ndim else tensor).clone()
            inputs.append((copy, copy._version))
            return copy

        # Outside of inference mode, for tensors there do not count their versions.
        with torch.inference_mode(False), torch.no_grad():
            small_args, small_kwargs = rebuild((args, kwargs), small)
            with wrapped({module: probe.wrapper(unit) for unit, module in enumerate(units)}), probe:
                forward(*small_args, **small_kwargs)
        if any(tensor._version != version for tensor, version in inputs):
            self._refuse("it modifies its input in place")
            return
        probe.conclude()
        self._probe, self._units = probe, units
        self.positions = first_uses(self.model, units, probe)

    def _kept(self) -> set[int]:
        """Which calls' outputs are worth their memory."""
        everything = set(range(len(self._probe.calls)))
        if self._starts is None:
            return everything
        kept = set()
        for cut in {self._cut(changed) for changed in self._starts}:
            kept.update(*self._plan_over(cut, everything).values())
        return kept - {None}

    # Replaying

    def _replayer(self, unit: int) -> Callable:
        def run(forward: Callable, *args, **kwargs) -> Any:
            index = next(self._queues.get(unit, iter(())), None)
            if index is None:
                return forward(*args, **kwargs)
            if self._probe.calls[index].cloned:
                return rebuild(self._outputs[index], torch.clone)
            return rebuild(self._outputs[index], itself)

        return run

    def _cut(self, changed: Iterable[str]) -> int:
        """The first use of a changed parameter."""
        changed = list(changed)
        if not self.positions:
            return 0
        return min((self.positions[name] for name in changed), default=len(self._probe.events))

    def _plan(self, cut: int) -> dict[int, list[int | None]]:
        if cut not in self._plans:
            self._plans[cut] = self._plan_over(cut, self._outputs.keys())
        return self._plans[cut]

    def _plan_over(self, cut: int, available: Iterable[int]) -> dict[int, list[int | None]]:
        """
        What each unit's calls do, in order, in a pass whose first change comes at `cut`: the index of the call to replay,
        or `None` for one that runs. A unit which replays nothing is left out.
        """
        plan, covered = {}, 0
        for index, call in enumerate(self._probe.calls):
            if call.start >= cut:
                break
            if call.start < covered:
                continue
            replays = call.end <= cut and call.replayable and index in available
            plan.setdefault(call.unit, []).append(index if replays else None)
            if replays:
                covered = call.end
        return {unit: calls for unit, calls in plan.items() if any(index is not None for index in calls)}

    def _same_inputs(self, args: tuple, kwargs: dict) -> bool:
        try:
            same = signature((args, kwargs), self._device) == self._key
        except TypeError:
            same = False
        if same and all(
            modifications(recorded) == version
            and (given is recorded or (given.shape == recorded.shape and torch.equal(given, recorded)))
            for (recorded, version), given in zip(self._inputs, tensors_in((args, kwargs)))
        ):
            return True
        self._tell("its inputs, or the autocast, inference or gradient mode, are not those of the recording")
        return False

    # Times and words

    @property
    def _device(self) -> torch.device:
        return next(chain(self.model.parameters(), self.model.buffers()), torch.empty(0)).device

    def _take_times(self) -> None:
        if not self._stamps:
            return
        if self._device.type == "cuda":
            self._stamps[-1].synchronize()
            times = [start.elapsed_time(end) for start, end in pairwise(self._stamps)]
        else:
            times = [end - start for start, end in pairwise(self._stamps)]
        self._durations = times if self._durations is None else list(map(min, self._durations, times))
        self._stamps = []

    def _refuse(self, reason: str) -> None:
        self._restart(self._key)
        self._refusal = reason
        self._tell(reason)

    def _tell(self, reason: str) -> None:
        if reason not in self._told:
            self._told.add(reason)
            logger.warning("Prefix replay: %s runs in full, because %s.", type(self.model).__name__, reason)
