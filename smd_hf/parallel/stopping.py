"""
Stops a run on Ctrl-C, on SIGTERM, or when its time is up.

A signal handler only sets a flag. The run checks it between two cells (a child on a batch), when the parent's weights are
restored and the cell is recorded. It then stops with an exception, which all processes raise together. A process that waits
for others in a collective cannot check the flag, and the others may be gone. So a thread ends it after some seconds.
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
"""Seconds that a process may wait for others after it has been asked to stop."""

FOLLOWS = 2.0
"""Seconds within which a launcher stops the other processes after one of them has ended."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C stopped the run, between two cells. The message says how to resume it."""


class Terminated(SystemExit):
    """SIGTERM stopped the run, between two cells. If nothing catches it, the process exits with code 143."""

    def __init__(self, *args: object):
        super().__init__(*args)
        self.code = 128 + signal.SIGTERM


class OutOfTime(Exception):
    """The time for a generation is up. The generation is abandoned, and the parent's weights are restored."""


ENDINGS = (Interrupted, Terminated, OutOfTime)
"""The exceptions that [`Stop.check`] raises, in one process or in all."""


class Stop:
    """
    Whether a run has been asked to stop.

    Attributes:
        signal (`int`, *optional*): the signal that asked for it.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._deadline: float | None = None
        self._waiting_since: float | None = None
        self._at_once = False

    @property
    def wanted(self) -> bool:
        """Whether the run should stop at the next check: [`Stop.check`] would raise."""
        return self.signal is not None or (self._deadline is not None and time.monotonic() >= self._deadline)

    def check(self) -> None:
        """
        Stops the run if it has been asked to.

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
        """Sets a deadline for the context, in seconds from now. `None` sets none."""
        self._deadline = None if seconds is None else time.monotonic() + seconds
        try:
            yield
        finally:
            self._deadline = None

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """
        Within the context, a signal stops the run wherever it is. For steps that leave nothing half done.

        A compiler may wait for processes of its own, which the same signal has ended: it would never come to the next check.

        Raises:
            `Interrupted`, `Terminated`: in the midst of the step.
        """
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """
        Wraps a collective. If it fails because another process was asked to stop, this process is asked too, or soon will be.

        Raises:
            `Interrupted`, `Terminated`: instead of the collective's error.
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
        Handles SIGINT and SIGTERM within the context, then restores the previous handlers.

        A second SIGINT raises `KeyboardInterrupt` at once, wherever the process is. The context has no effect outside the main
        thread, because only the main thread can handle signals.

        Args:
            num_processes (`int`, *optional*, defaults to 1): number of processes of the run. With several, each process ends
                by itself if it cannot stop together with the others (see `GRACE`).
        """
        self.signal = None
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        process = os.getpid()

        def handle(number: int, frame: FrameType | None) -> None:
            # This process stops the processes that it has forked to read images.
            if os.getpid() != process:
                return
            if self.signal is not None and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.signal = self.signal or number
            if self._at_once:
                raise self._ending()

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        watch = _Watch(self) if num_processes > 1 else None
        ending: Interrupted | Terminated | None = None
        try:
            yield
        except (Interrupted, Terminated) as told:
            ending = told
            raise
        except Exception as error:
            # Collectives fail when the other processes have ended.
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
        """The time since which a process has been stuck that was asked to stop at `told`; `None` if it is not stuck."""
        if self.signal is None:
            return told  # The handler has not run: the main thread is inside a call.
        return None if self._waiting_since is None else max(told, self._waiting_since)


def _expect_another(number: int) -> None:
    """
    Ignores one more signal, and all signals while the interpreter ends: they would change the exit code.

    A launcher signals each process in turn, and the remaining ones again when one has ended. A process that has stopped
    because another was signalled may get its own signal only now.
    """
    before = signal.getsignal(number)
    signal.signal(number, lambda *_: signal.signal(number, before))
    atexit.register(signal.signal, number, signal.SIG_IGN)


class _Watch:
    """A thread that notices signals while the main thread is inside a call that does not return."""

    def __init__(self, stop: Stop):
        self.stop = stop
        self._over = threading.Event()
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._run, name="smd_hf-signals", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Restores the previous file descriptor and ends the thread."""
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
                message = f"Process {os.getpid()} was asked to stop, but other processes do not respond: it exits.\n"
                os.write(2, message.encode())
                os._exit(128 + number)
