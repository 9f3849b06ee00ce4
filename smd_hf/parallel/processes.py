"""
Distributes the scoring over processes: each scores a share of the cells (variant, batch), and all get every result.

Batches do not depend on the number of processes, and results are combined in a fixed order. So 1, 2 and 4 processes give the
same bytes.
"""

import atexit
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, TypeVar

import torch
from accelerate.utils import gather_object

from .stopping import ENDINGS, Stop

T = TypeVar("T")


SEGMENTS = 64
"""Sums over batches are taken within this many contiguous segments of the data, then over the segments. The number does not
depend on the number of processes."""


def segment(number: int, numbers: range) -> int:
    """The contiguous segment of the data that a batch belongs to."""
    return (number - numbers.start) * min(SEGMENTS, len(numbers)) // len(numbers)


def _end_gloo() -> None:
    """
    Ends gloo's threads while the interpreter still runs.

    A thread that frees a tensor later aborts the process, and the launcher reports a finished run as failed
    (pytorch/pytorch#190489).
    """
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        torch.distributed.destroy_process_group()


class Processes:
    """
    The processes of a run: decides what each of them scores, and exchanges values between them.

    Args:
        mode (`str`, *optional*, defaults to `"auto"`): `"data"`: each process scores all variants on every
            `num_processes`-th batch; `"children"`: each scores every `num_processes`-th variant on all batches; `"auto"`:
            chooses the one with less work for the busiest process.

    Attributes:
        stop ([`Stop`]): whether this process has been asked to stop.

    Raises:
        `SMDError`: if the mode is unknown.
    """

    def __init__(self, mode: str = "auto", process_index: int = 0, num_processes: int = 1):
        self.mode = mode
        self.process_index = process_index
        self.num_processes = num_processes
        self.stop = Stop()
        if num_processes > 1:
            atexit.unregister(_end_gloo)
            atexit.register(_end_gloo)

    def share(
        self, num_variants: int, numbers: range, known: Collection[Any] = (), by_segments: bool = False
    ) -> dict[int, Collection[int]]:
        """
        The cells that this process has to score.

        Args:
            by_segments (`bool`, *optional*, defaults to `False`): gives each process all variants on whole segments of the
                data (see [`segment`]), as sums over batches need.

        Returns:
            dict of `int` to collection of `int`: the variants to score, for each batch of this process.
        """
        everything, mine = range(num_variants), slice(self.process_index, None, self.num_processes)
        if by_segments:
            places = sorted({segment(number, numbers) for number in numbers}.difference(known))[mine]
            return {number: everything for number in numbers if segment(number, numbers) in set(places)}
        if not known:
            if self._mode(num_variants, [num_variants] * len(numbers)) == "data":
                return dict.fromkeys(numbers[mine], everything)
            return dict.fromkeys(numbers, everything[mine]) if everything[mine] else {}
        left = {number: frozenset(v for v in everything if (v, number) not in known) for number in numbers}
        left = {number: variants for number, variants in left.items() if variants}
        variants = sorted(set().union(*left.values()))
        if self._mode(len(variants), [len(each) for each in left.values()]) == "data":
            return dict(list(left.items())[mine])
        part = frozenset(variants[mine])
        return {number: each & part for number, each in left.items() if each & part}

    def _mode(self, num_variants: int, by_batch: Sequence[int]) -> str:
        """The mode with less work for the busiest process, given the number of variants, in total and for each batch."""
        if self.mode != "auto":
            return self.mode
        processes = range(self.num_processes)
        busiest_by_data = max(sum(by_batch[process :: self.num_processes]) for process in processes)
        busiest_by_children = len(by_batch) * -(-num_variants // self.num_processes)
        return "data" if busiest_by_data <= busiest_by_children else "children"

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Copies the first process's values into the tensors of every process, in place."""
        for tensor in tensors if self.num_processes > 1 else ():
            whole = tensor.detach().contiguous()
            # As bytes: not every backend supports every dtype.
            torch.distributed.broadcast(whole.reshape(-1).view(torch.uint8), src=0)
            tensor.detach().copy_(whole)

    def map(self, count: int, value: Callable[[int], T]) -> list[T]:
        """
        Returns `value(number)` for each number below `count`. One process computes each value, and every process gets all.

        So all processes use the same values, even if the function is not deterministic.
        """
        mine = range(count)[self.process_index :: self.num_processes]
        values: dict[int, T] = {}
        for part in self.gather(lambda: {number: value(number) for number in mine}):
            values.update(part)
        return [values[number] for number in range(count)]

    def gather(self, work: Callable[[], T]) -> list[T]:
        """
        Runs `work` on each process and returns all results, ordered by process, on every process.

        Raises:
            The error of `work`, on a process where it fails. `RuntimeError` with that process and its error, on the other
            processes. If one process has been asked to stop, its exception on all processes (see [`Stop`]). So no process is
            left waiting.
        """
        if self.num_processes == 1:
            return [work()]
        result = failure = message = ending = None
        try:
            result = work()
        except ENDINGS as told:
            ending = told
        except Exception as error:
            failure, message = error, f"{type(error).__name__}: {error}"
        with self.stop.waiting():
            outcomes = gather_object([(result, message, ending)])
        if failure is not None:
            raise failure
        for process, (_, message, _) in enumerate(outcomes):
            if message is not None:
                raise RuntimeError(f"Process {process} of {self.num_processes} failed: {message}")
        for _, _, ending in outcomes:
            if ending is not None:
                raise ending
        return [result for result, _, _ in outcomes]
