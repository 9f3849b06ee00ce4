"""
Reading ahead: threads make what comes next while what is there is worked on.

Threads, not processes: PIL and torchvision release Python's lock while they decode and resize, nothing is pickled, and
nothing is started for each call. Results come in order, so they are the same for any number of threads.
"""

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch.utils.data import DataLoader

from ..errors import SMDError
from ..parallel.threads import num_threads

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_THREADS = 8
"""More threads wait for each other, as decoders hold Python's lock for a part of their time."""

JOIN_SECONDS = 1.0
"""How long closing waits for images that are being decoded."""


def usable_cores() -> int:
    """Cores that this process may use: its share, if a run has several processes on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def default_threads() -> int:
    """Reading threads by default: one for each core, at most [`MOST_THREADS`]."""
    return min(MOST_THREADS, usable_cores())


def spare_threads(device: torch.device) -> int:
    """
    Reading threads while the model runs: one for each core that it leaves idle, and at least one.

    On an accelerator, the model takes one core; on the CPU, as many as torch has threads.
    """
    return max(1, min(MOST_THREADS, usable_cores() - _cores_of_model(device)))


def seconds_in_the_way(reading: float, first: float, working: float, threads: int, device: torch.device) -> float:
    """
    Estimates by how many seconds reading images delays the work on them.

    Args:
        reading (`float`): seconds that one thread needs for all of them.
        first (`float`): seconds that it needs for the first batch, before which no work can start.
        threads (`int`): how many read; 0 where the work waits for each batch.
    """
    if threads == 0:
        return reading
    spare = usable_cores() - _cores_of_model(device)
    if spare < 1:
        # All cores are busy with the work: reading takes them from it.
        return max(first, reading / threads)
    return max(first, reading / min(threads, spare) - working)


def _cores_of_model(device: torch.device) -> int:
    return num_threads() if device.type == "cpu" else 1


class ReadAhead(Generic[Item, Result]):
    """
    Results of a function for several items, in order, computed by threads ahead of time.

    The first error ends the reading and is raised in place of its result.

    Args:
        window (`int`, *optional*): most results that are being made or not taken yet; `threads` by default. It may be
            set at any time.
        repeatable (`bool`, *optional*, defaults to `True`): whether `read` surely draws no random numbers. If not, the caller
            makes the first result, and all others too if a global generator has changed by then: in order, a run can be
            repeated.

    Attributes:
        draws (`bool`): whether random numbers were drawn.
    """

    def __init__(
        self,
        read: Callable[[Item], Result],
        items: Sequence[Item],
        threads: int,
        spare: int | None = None,
        window: int | None = None,
        repeatable: bool = True,
    ):
        self.read = read
        self.items = items
        self.draws = False
        self._most = min(threads, len(items))
        self._spare = self._most if spare is None else min(spare, self._most)
        self._window = max(1, threads if window is None else window)
        self._changed = threading.Condition()
        self._results: dict[int, tuple[Any, BaseException | None]] = {}
        self._begun = self._taken = self._running = 0
        self._waited_for = self._over = False
        self._threads: list[threading.Thread] = []
        self._tries_first = not repeatable and self._most > 0
        if not self._tries_first:
            self._start()

    def __iter__(self) -> Iterator[Result]:
        return self

    def __next__(self) -> Result:
        if self._taken == len(self.items):
            raise StopIteration
        if not self._threads:
            return self._read_here()
        with self._changed:
            self._waited_for = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._taken in self._results)
            self._waited_for = False
            result, error = self._results.pop(self._taken)
            self._taken += 1
            self._changed.notify_all()
        if error is not None:
            self.close()
            raise error
        return result

    @property
    def ready(self) -> bool:
        """Whether to ask now: the next result is there, or only the caller can make it."""
        with self._changed:
            return not self._threads or self._taken in self._results

    @property
    def window(self) -> int:
        return self._window

    @window.setter
    def window(self, most: int) -> None:
        with self._changed:
            self._window = max(1, most)
            self._changed.notify_all()

    def close(self) -> None:
        """Starts nothing more, and waits briefly for what is being read."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        until = time.monotonic() + JOIN_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _start(self) -> None:
        for number in range(self._most):
            # A thread that hangs must not keep the interpreter from ending.
            thread = threading.Thread(target=self._work, name=f"smd_hf-reading-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _read_here(self) -> Result:
        before = random_state() if self._tries_first else None
        index, self._taken = self._taken, self._taken + 1
        self._begun = self._taken
        result = self.read(self.items[index])
        if before is not None:
            self._tries_first = False
            self.draws = random_state() != before
            if not self.draws:
                self._start()
        return result

    def _work(self) -> None:
        use_one_core()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._over or self._may_begin())
                if self._over or self._begun == len(self.items):
                    return
                index, self._begun = self._begun, self._begun + 1
                self._running += 1
            try:
                outcome = self.read(self.items[index]), None
            except BaseException as error:
                outcome = None, error
            with self._changed:
                self._running -= 1
                self._results[index] = outcome
                # What comes after an error is not wanted.
                self._over = self._over or outcome[1] is not None
                self._changed.notify_all()

    def _may_begin(self) -> bool:
        if self._begun == len(self.items):
            return True
        most = self._most if self._waited_for else self._spare
        return self._running < most and self._begun - self._taken < self._window


def use_one_core() -> None:
    """In the calling thread, torch's operations start no threads."""
    # torch sets the number at a thread's first operation: run one first.
    if torch.get_num_threads() > 1:
        _controller().limit(limits=1, user_api="openmp")


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


def random_state() -> tuple[Any, ...]:
    """The states of the global generators: of Python, NumPy and torch, the last on the CPU."""
    _, keys, *rest = np.random.get_state(legacy=True)
    return random.getstate(), np.asarray(keys).tobytes(), *rest, torch.get_rng_state().numpy().tobytes()


class WorkerProcesses:
    """
    The batches of a `DataLoader` with worker processes, in the form of [`ReadAhead`].

    Args:
        dataset, collator: passed to the processes, by pickling where they are not forked.
    """

    ready = False
    draws = False

    def __init__(
        self,
        dataset: Any,
        collator: Callable,
        batches: Sequence[list[int]],
        num_workers: int,
        prefetch_factor: int | None = None,
    ):
        loader = DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=_ErrorsAsResults(collator),
            num_workers=num_workers,
            prefetch_factor=prefetch_factor,
        )
        # Processes start when the first batch is asked for, if any is.
        self._results: Iterator[Any] | None = iter(loader) if batches else iter(())
        self.window = num_workers * (prefetch_factor or 2)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        assert self._results is not None
        result = next(self._results)
        if isinstance(result, SMDError):
            raise result
        return result

    def close(self) -> None:
        """Ends the processes."""
        self._results = None


class _ErrorsAsResults:
    """A collator that returns an `SMDError` from a worker process unchanged; the loader would add a traceback."""

    def __init__(self, collator: Callable):
        self.collator = collator

    def __call__(self, rows: list[Any]) -> Any:
        try:
            return self.collator(rows)
        except SMDError as error:
            return error
