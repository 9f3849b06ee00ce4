"""Progress bars for long steps other than generations: they appear after two seconds and move every second."""

import threading
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self

from tqdm.auto import tqdm

from ..data.batches import Batch
from .work import Work

DELAY = 2.0
"""Seconds after which a bar appears: what is done sooner shows none."""

TICK = 1.0
"""Seconds between two refreshes, whether anything was counted or not."""

_UNCOUNTED = "{desc}: {elapsed}"


class TickingBar:
    """
    A bar that shows the time spent also while nothing can be counted. A context manager.

    Args:
        shown (`bool`, *optional*, defaults to `True`): shows nothing otherwise.
        total (`float`, *optional*): how many images there are, where images are counted.

    Attributes:
        done (`float`), total (`float`, *optional*): set by whoever does the work, at any time.
    """

    def __init__(self, description: str, shown: bool = True, total: float | None = None):
        self.description = description
        self.shown = shown
        self.done = 0.0
        self.total = total
        self._start = time.time()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self.shown:
            self._thread = threading.Thread(target=self._run, name="smd_hf-bar", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def counting(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, each counted when the next one is asked for."""
        for batch in batches:
            yield batch
            self.done += len(batch)

    def _run(self) -> None:
        if self._over.wait(DELAY):
            return
        # Counted or not is decided when the bar appears.
        style: dict[str, Any] = (
            {"bar_format": _UNCOUNTED} if self.total is None else {"unit": " images", "unit_scale": True}
        )
        with tqdm(desc=self.description, total=self.total, dynamic_ncols=True, smoothing=0, **style) as bar:
            bar.start_t = self._start
            over = False
            while not over:
                bar.n, bar.total = self.done, self.total
                bar.refresh()
                over = self._over.wait(TICK)
            bar.n, bar.total = self.done, self.total


class ScoringBar(TickingBar, Work):
    """A bar for scoring calls, in images. Its total grows with each call, where more calls follow than one."""

    def begin(self, images: float, known: float) -> None:
        self.total = (self.total or 0.0) + images
        self.done += known

    def advance(self, images: float) -> None:
        self.done += images

    def end(self) -> None:
        self.done = self.total
