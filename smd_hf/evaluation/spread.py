"""
Spreading the scoring over processes: each does a share of the cells (variant, batch), and all get every result.

Batches are the same on any number of processes and results are put together in a fixed order, so that 1, 2 and 4
processes give the same bytes.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from accelerate.utils import gather_object

from ..errors import SMDError

T = TypeVar("T")

MODES = ("auto", "data", "children")


SEGMENTS = 64
"""Sums over batches are taken by so many contiguous parts of the data, whatever the number of processes, then over these."""


def segment(number: int, numbers: range) -> int:
    """Which contiguous part of the data a batch belongs to."""
    return (number - numbers.start) * min(SEGMENTS, len(numbers)) // len(numbers)


class Spread:
    """
    Which process scores what.

    Args:
        mode (`str`, *optional*, defaults to `"auto"`): `"data"`: each process scores all variants on every
            `num_processes`-th batch; `"children"`: each scores every `num_processes`-th variant on all data; `"auto"`:
            whichever leaves the busiest process less to do.
        process_index (`int`, *optional*, defaults to 0), num_processes (`int`, *optional*, defaults to 1): of accelerate.
    """

    def __init__(self, mode: str = "auto", process_index: int = 0, num_processes: int = 1):
        if mode not in MODES:
            raise SMDError(f"spread='{mode}' is not one of {', '.join(MODES)}.")
        self.mode = mode
        self.process_index = process_index
        self.num_processes = num_processes

    def share(self, num_variants: int, numbers: range, by_segments: bool = False) -> tuple[range, Sequence[int]]:
        """
        This process's variants and batches.

        Args:
            num_variants (`int`): how many variants there are.
            numbers (`range`): the numbers of the batches.
            by_segments (`bool`, *optional*, defaults to `False`): all variants, on whole segments of the data (see
                [`segment`]), for sums over batches that go by them.

        Returns:
            `tuple[range, range]`: numbers of variants and of batches; possibly none of one of them.
        """
        if by_segments:
            mine = [n for n in numbers if segment(n, numbers) % self.num_processes == self.process_index]
            return range(num_variants), mine
        mode = self._mode(num_variants, len(numbers))
        mine = slice(self.process_index, None, self.num_processes)
        return (range(num_variants), numbers[mine]) if mode == "data" else (range(num_variants)[mine], numbers)

    def _mode(self, num_variants: int, num_batches: int) -> str:
        if self.mode != "auto":
            return self.mode
        busiest_by_data = num_variants * -(-num_batches // self.num_processes)
        busiest_by_children = num_batches * -(-num_variants // self.num_processes)
        return "data" if busiest_by_data <= busiest_by_children else "children"

    def copy_from_first(self, tensors: Iterable[torch.Tensor]) -> None:
        """Gives tensors the values that they have on the first process, in place, on every process."""
        for tensor in tensors if self.num_processes > 1 else ():
            whole = tensor.detach().contiguous()
            # Bytes of any dtype: not every backend takes each.
            torch.distributed.broadcast(whole.reshape(-1).view(torch.uint8), src=0)
            tensor.detach().copy_(whole)

    def each(self, count: int, value: Callable[[int], T]) -> list[T]:
        """
        `value(number)` for each number below `count`, on every process, each worked out by one of them.

        So all processes go by the same values, also those of a function that does not give the same value twice.
        """
        mine = range(count)[self.process_index :: self.num_processes]
        values: dict[int, T] = {}
        for part in self.together(lambda: {number: value(number) for number in mine}):
            values.update(part)
        return [values[number] for number in range(count)]

    def together(self, work: Callable[[], T]) -> list[T]:
        """
        What `work` returns on each process, in their order, on every process.

        Raises:
            Whatever `work` raises here; `RuntimeError`, naming the process and its error, where it raised elsewhere. No
            process is left waiting.
        """
        if self.num_processes == 1:
            return [work()]
        result = failure = message = None
        try:
            result = work()
        except Exception as error:
            failure, message = error, f"{type(error).__name__}: {error}"
        outcomes = gather_object([(result, message)])
        if failure is not None:
            raise failure
        for process, (_, message) in enumerate(outcomes):
            if message is not None:
                raise RuntimeError(f"Process {process} of {self.num_processes} failed: {message}")
        return [result for result, _ in outcomes]
