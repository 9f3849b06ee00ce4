"""
How a run is told to end: by Ctrl-C, by SIGTERM, or because its time is up.

A signal only leaves a note. The run looks at it between two cells (a child on a batch), when the parent is in the model again
and the cell is recorded, and ends with an exception that all processes raise together. A process that waits for others in a
collective cannot look: a thread ends it instead, some seconds later, for what it waits for may be gone.
"""

import atexit
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE = 5.0
"""Seconds that a process which has been told to end may wait for others."""

FOLLOWS = 2.0
"""Seconds within which a launcher tells the other processes to end, once one of them is gone."""


class Interrupted(KeyboardInterrupt):
    """The run was ended by Ctrl-C, between two cells. The message says how to go on."""


class Terminated(SystemExit):
    """The run was ended by SIGTERM, between two cells; where nothing catches it, the process exits with code 143."""

    def __init__(self, *args: object):
        super().__init__(*args)
        self.code = 128 + signal.SIGTERM


class OutOfTime(Exception):
    """The time for a generation is up: it is given up, and the parent is in the model again."""


ENDINGS = (Interrupted, Terminated, OutOfTime)
"""What [`Stop.check`] raises, in one process or in all."""


class Stop:
    """
    Whether a run has been told to end.

    Attributes:
        signal (`int`, *optional*): the signal that told it.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._deadline: float | None = None
        self._waiting_since: float | None = None

    @property
    def wanted(self) -> bool:
        """Whether the run is to end at the next place where it can: [`Stop.check`] would raise."""
        return self.signal is not None or (self._deadline is not None and time.monotonic() >= self._deadline)

    def check(self) -> None:
        """
        Ends the run here if it has been told to.

        Raises:
            `Interrupted`, `Terminated`: after a signal.
            `OutOfTime`: after the deadline.
        """
        if self.signal is not None:
            raise self._ending()
        if self.wanted:
            raise OutOfTime

    def _ending(self) -> Interrupted | Terminated:
        return Interrupted() if self.signal == signal.SIGINT else Terminated()

    @contextmanager
    def before(self, seconds: float | None) -> Iterator[None]:
        """Sets a deadline for what happens inside, so many seconds from now; none for `None`."""
        self._deadline = None if seconds is None else time.monotonic() + seconds
        try:
            yield
        finally:
            self._deadline = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """
        Around a collective. If it fails because another process has been told to end, so has this one, or will be in a moment.

        Raises:
            `Interrupted`, `Terminated`: in place of the collective's own error.
        """
        self._waiting_since = time.monotonic()
        try:
            yield
        except Exception as error:
            give_up = time.monotonic() + FOLLOWS
            while self.signal is None and time.monotonic() < give_up:
                time.sleep(0.05)
            if self.signal is None:
                raise
            raise self._ending() from error
        finally:
            self._waiting_since = None

    @contextmanager
    def listening(self, num_processes: int = 1) -> Iterator[None]:
        """
        Takes note of SIGINT and SIGTERM as long as the context lasts; then the handlers of before are back.

        A second SIGINT raises `KeyboardInterrupt` at once, wherever the process is. Outside of the main thread, which alone
        may handle signals, nothing is listened to.

        Args:
            num_processes (`int`, *optional*, defaults to 1): of the run. Of several, each ends by itself if it cannot end with
                the others (see `GRACE`).
        """
        self.signal = None
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        process = os.getpid()

        def take_note(number: int, frame: FrameType | None) -> None:
            # A process that was forked from this one, to read images, is told by this one when it is to end.
            if os.getpid() != process:
                return
            if self.signal is not None and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.signal = self.signal or number

        before = {number: signal.signal(number, take_note) for number in (signal.SIGINT, signal.SIGTERM)}
        watch = _Watch(self) if num_processes > 1 else None
        ending: Interrupted | Terminated | None = None
        try:
            yield
        except (Interrupted, Terminated) as told:
            ending = told
            raise
        except Exception as error:
            # Without the others, collectives fail.
            if self.signal is None or num_processes == 1:
                raise
            ending = self._ending()
            raise ending from error
        finally:
            if watch is not None:
                watch.end()
            for number, handler in before.items():
                signal.signal(number, handler)
            if ending is not None and num_processes > 1:
                _expect_another(signal.SIGINT if isinstance(ending, Interrupted) else signal.SIGTERM)

    def stuck_since(self, told: float) -> float | None:
        """Since when a process that was told to end at `told` has not come to it; `None` where it is on its way."""
        if self.signal is None:
            return told  # The handler has not run: the main thread is in the midst of a call.
        return None if self._waiting_since is None else max(told, self._waiting_since)


def _expect_another(number: int) -> None:
    """
    Passes over one more signal, and any while the interpreter ends: it would change the exit code of a process that is ending.

    A launcher tells each process, one after another, and again those that are left when one is gone. A process that has ended
    because another was told may hear of it only now.
    """
    before = signal.getsignal(number)
    signal.signal(number, lambda *_: signal.signal(number, before))
    atexit.register(signal.signal, number, signal.SIG_IGN)


class _Watch:
    """A thread that hears of signals while the main thread is in a call which does not return."""

    def __init__(self, stop: Stop):
        self.stop = stop
        self._over = threading.Event()
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._run, name="smd_hf-signals", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """The fd of before is back, and the thread has ended."""
        signal.set_wakeup_fd(self._before)
        self._over.set()
        self._writer.close()
        self._thread.join()
        self._reader.close()

    def _run(self) -> None:
        number = None
        while number is None:
            heard = self._reader.recv(16)
            if not heard:
                return
            number = next((each for each in heard if each in (signal.SIGINT, signal.SIGTERM)), None)
        told = time.monotonic()
        while not self._over.wait(0.1):
            since = self.stop.stuck_since(told)
            if since is not None and time.monotonic() - since > GRACE:
                message = f"Process {os.getpid()} was told to end and waits for others in vain: it ends by itself.\n"
                os.write(2, message.encode())
                os._exit(128 + number)
