"""
Watching the calls of a model's blocks: their order, their effects and their outputs.

A *unit* is a module whose calls are watched: an element of a `Sequential`, a `ModuleList` or a similar module, or a module
above or beside such lists. Time is counted in events: beginnings and ends of calls of units.
"""

import dataclasses
import enum
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .quantized import scales_of

# A tensor, and how often it was modified.
Version = tuple[torch.Tensor, int]

LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# Values which nobody can change: safe to hand out again.
CONSTANTS = (
    *(type(None), bool, int, float, complex, str, bytes, enum.Enum, type, torch.Size),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)
# Reading these of a parameter is no use of its values.
_METADATA = {
    *(getattr(torch.Tensor, name).__get__ for name in ("dtype", "device", "shape", "ndim", "layout", "requires_grad")),
    *(getattr(torch.Tensor, name).__get__ for name in ("is_cuda", "is_mps", "is_meta", "is_sparse", "is_quantized")),
    *(torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.stride, torch.Tensor.element_size),
    *(torch.Tensor.is_floating_point, torch.Tensor.is_contiguous, torch.Tensor.get_device, torch.Tensor.__len__),
}


@dataclasses.dataclass(slots=True)
class Call:
    """A call of a unit; `start` and `end` count the calls begun and ended before it begins (ends), itself included."""

    unit: int
    start: int
    end: int = 0
    replayable: bool = True
    cloned: bool = False


class Trace:
    """Wraps units and numbers their calls in the order in which they begin."""

    def __init__(self):
        # The unit where a call begins, its complement where one ends.
        self.events: list[int] = []
        self.begun = 0

    def begin(self, unit: int, args: tuple, kwargs: dict) -> Any:
        raise NotImplementedError

    def finish(self, unit: int, index: int, before: Any, inputs: tuple, output: Any) -> None:
        raise NotImplementedError

    def wrapper(self, unit: int) -> Callable:
        def run(forward: Callable, *args, **kwargs) -> Any:
            index, self.begun = self.begun, self.begun + 1
            before = self.begin(unit, args, kwargs)
            output = forward(*args, **kwargs)
            self.finish(unit, index, before, (args, kwargs), output)
            return output

        return run


class Recording(Trace):
    """Keeps outputs, and the time of each event."""

    def __init__(self, calls: list[Call], kept: set[int], cuda: bool):
        super().__init__()
        self.calls, self.kept, self.cuda = calls, kept, cuda
        self.outputs: dict[int, Any] = {}
        self.stamps: list[Any] = []

    def stamp(self) -> None:
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.stamps.append(event)
        else:
            self.stamps.append(time.perf_counter())

    def begin(self, unit: int, args: tuple, kwargs: dict) -> None:
        self.events.append(unit)
        self.stamp()

    def finish(self, unit: int, index: int, before: None, inputs: tuple, output: Any) -> None:
        self.events.append(~unit)
        self.stamp()
        if index in self.kept and self.calls[index].replayable:
            # An output of another kind than the probe saw is not kept, and its call will run.
            with suppress(TypeError):
                self.outputs[index] = rebuild(output, torch.clone if self.calls[index].cloned else itself)


class Probe(Trace, TorchFunctionMode):
    """Learns when tensors of the model are first used, and which calls have effects beyond their outputs."""

    def __init__(self, model: nn.Module, units: list[nn.Module]):
        Trace.__init__(self)
        TorchFunctionMode.__init__(self)
        self.calls: list[Call] = []
        self.uses: dict[int, int] = {}
        self._looking = False
        self._units = units
        # What the latest call has returned, until any torch function is called.
        self._untouched: list[Version] | None = None
        self._own = {id(tensor) for tensor in chain(model.parameters(), model.buffers())}
        self._results: list[tuple[Call, bool, list[Version]]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if not self._looking and func not in _METADATA:
            self._untouched = None
            self._watch(args)
            self._watch((kwargs or {}).values())
        return func(*args, **(kwargs or {}))

    def _watch(self, values: Iterable[Any]) -> None:
        for value in values:
            if isinstance(value, torch.Tensor):
                if id(value) in self._own:
                    self.uses.setdefault(id(value), len(self.events))
            elif isinstance(value, tuple | list):
                self._watch(value)

    def begin(self, unit: int, args: tuple, kwargs: dict) -> tuple[list[Version] | None, list[Version] | None, int]:
        self.events.append(unit)
        self.calls.append(Call(unit, len(self.events)))
        former, self._untouched = self._untouched, None
        return self._versions((args, kwargs)), former, len(self.uses)

    def finish(self, unit: int, index: int, before: tuple, inputs: tuple, output: Any) -> None:
        self.events.append(~unit)
        call = self.calls[index]
        call.end = len(self.events)
        (earlier, former, uses), results = before, self._versions(output)
        weightless = uses == len(self.uses) and next(self._units[unit].parameters(), None) is None
        if former and results and weightless and _one_tensor(former, earlier, results):
            # The previous call's output passes through, perhaps modified (an activation in place), and nobody saw it in
            # between. No child's pass can begin in between either, so both calls may return its final value.
            former[:] = results
            self._results.append((call, True, former))
            self._untouched = former
            return
        self._untouched = None
        if earlier is None or results is None or not _same_items(earlier, self._versions(inputs) or []):
            call.replayable = False
            return
        with self._unwatched():
            read = {tensor.untyped_storage().data_ptr() for tensor, _ in earlier}
            written = [tensor.untyped_storage().data_ptr() for tensor, _ in results]
        aliased = len(set(written)) < len(written) or not read.isdisjoint(written)
        self._results.append((call, aliased, results))
        if not aliased:
            self._untouched = results

    @contextmanager
    def _unwatched(self) -> Iterator[None]:
        """Within it, the probe's own reading of tensors does not count as use."""
        self._looking = True
        try:
            yield
        finally:
            self._looking = False

    def _versions(self, value: Any) -> list[Version] | None:
        """Its tensors with the number of times that each was modified; `None` for a value of an unknown kind."""
        with self._unwatched():
            try:
                return [(tensor, modifications(tensor)) for tensor in tensors_in(value)]
            except TypeError:
                return None

    def conclude(self) -> None:
        """After the pass: an output which was modified since must be cloned; where a clone differs, the call runs."""
        for call, aliased, results in self._results:
            if any(modifications(tensor) != version for tensor, version in results):
                call.cloned = True
                call.replayable = not aliased and all(_clones_alike(tensor) for tensor, _ in results)
        self._results = []


@contextmanager
def wrapped(wrappers: dict[nn.Module, Callable]) -> Iterator[None]:
    """Runs `wrapper(forward, *args, **kwargs)` instead of each module's `forward`, by an attribute of the instance."""

    def bind(wrapper: Callable, forward: Callable) -> Callable:
        return lambda *args, **kwargs: wrapper(forward, *args, **kwargs)

    try:
        for module, wrapper in wrappers.items():
            module.__dict__["forward"] = bind(wrapper, module.forward)
        yield
    finally:
        for module in wrappers:
            module.__dict__.pop("forward", None)


def holds_blocks(module: nn.Module) -> bool:
    """
    Whether more than half of the children that have parameters are blocks: have several weights that are matrices or kernels.

    A child with at most one such weight is a layer (a convolution with its norm): a residual block mostly holds layers, and a
    stage or a model mostly holds blocks. A module around a single other module counts as that module.
    """
    counts = [
        sum(sum(size > 1 for size in parameter.shape) >= 2 for parameter in child.parameters())
        for child in module.children()
        if next(child.parameters(), None) is not None
    ]
    if len(counts) == 1 and not isinstance(module, LISTS):
        return False
    return 2 * sum(count >= 2 for count in counts) > len(counts)


def find_units(model: nn.Module) -> list[nn.Module]:
    """The children of the model, and in turn of each unit that is or has a list of modules or a module that holds blocks."""
    units: dict[int, nn.Module] = {}

    def visit(module: nn.Module) -> None:
        for child in module.children():
            if id(child) not in units:
                units[id(child)] = child
                if any(isinstance(below, LISTS) or holds_blocks(below) for below in child.modules()):
                    visit(child)

    visit(model)
    return list(units.values())


def first_uses(model: nn.Module, units: list[nn.Module], probe: Probe) -> dict[str, int]:
    """
    When each parameter and buffer is first used. One which no torch call has touched (compiled code may use it) counts from
    the first call of the innermost called unit that has it, or from the start.
    """
    calls = {}
    for call in probe.calls:
        calls.setdefault(id(units[call.unit]), call.start)
    modules = dict(model.named_modules(remove_duplicate=False))
    named = list(
        chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)),
    )
    first = {}
    for name, tensor in named:
        position, owner = probe.uses.get(id(tensor)), name
        while position is None and owner:
            owner = owner.rpartition(".")[0]
            position = calls.get(id(modules[owner]))
        # Two tensors with one memory change together.
        memory = tensor.data_ptr() or id(tensor)
        first[memory] = min(first.get(memory, sys.maxsize), position or 0)
    found = {}
    for name, tensor in named:
        found[name] = first[tensor.data_ptr() or id(tensor)]
        found.update((scale, found[name]) for scale, _ in scales_of(name, tensor))
    return found


def _one_tensor(former: list[Version], before: list[Version] | None, after: list[Version]) -> bool:
    """Whether a call took one tensor, the one that the previous call returned, and returned it."""
    return (
        len(former) == len(before := before or []) == len(after) == 1 and former[0][0] is before[0][0] is after[0][0]
    )


def _same_items(before: list, after: list) -> bool:
    return len(before) == len(after) and all(a is b and m == n for (a, m), (b, n) in zip(before, after))


def modifications(tensor: torch.Tensor) -> int:
    """How often the tensor, or one that shares its memory, was modified in place; not counted in inference mode."""
    return 0 if tensor.is_inference() else tensor._version


def _clones_alike(tensor: torch.Tensor) -> bool:
    """Whether a clone has the tensor's strides, without which another kernel may run."""
    return not tensor.storage_offset() and torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def rebuild(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """
    A copy of nested tuples, lists, dicts and dataclasses (so of a `ModelOutput`), with `change` done to each tensor.

    Raises:
        `TypeError`: for a value of any other kind.
    """
    if type(value) in (torch.Tensor, nn.Parameter):
        return change(value)
    if isinstance(value, CONSTANTS):
        return value
    if type(value) in (tuple, list):
        return type(value)([rebuild(item, change) for item in value])
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*[rebuild(item, change) for item in value])
    if isinstance(value, dict) and type(value) in (dict, OrderedDict):
        return type(value)((key, rebuild(item, change)) for key, item in value.items())
    if dataclasses.is_dataclass(value):
        fields = {field.name: rebuild(getattr(value, field.name), change) for field in dataclasses.fields(value)}
        if vars(value).keys() <= fields.keys() and all(field.init for field in dataclasses.fields(value)):
            return type(value)(**fields)
    raise TypeError(f"a value of type {type(value).__name__}")


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors in a nested value, in order. Raises `TypeError` as [`rebuild`] does."""
    found = []
    rebuild(value, lambda tensor: found.append(tensor) or tensor)
    return found
