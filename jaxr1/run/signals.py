"""Signals that ask a command to stop, heard at a safe place."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from jaxr1.parallel import gather

# A batch system sends SIGUSR1 or SIGTERM ahead of its limit, a terminal that closes SIGHUP.
STOPPING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
# A terminal and a launcher may both pass on one and the same signal.
ECHO_SECONDS = 0.5


class Interrupted(Exception):
    """A signal asked the run to stop."""


class Signals:
    """The first signal becomes a flag that `check` raises; a second one is immediate.

    Args:
      notice: called with the name of the first signal.

    Attributes:
      received: the first signal of this host.
      stopped_by: the signal, of whichever host, that `check` has raised for.
    """

    def __init__(self, notice: Callable[[str], None] = lambda name: None):
        self.notice = notice
        self.received: int | None = None
        self.stopped_by: int | None = None
        self.received_at = 0.0
        self.previous: dict[int, Any] = {}

    def _handle(self, number, _frame) -> None:
        if self.received is not None:
            if time.monotonic() - self.received_at < ECHO_SECONDS:
                return
            raise KeyboardInterrupt
        self.received, self.received_at = number, time.monotonic()
        # It may come in the middle of a line that is being printed, or find the terminal gone.
        with contextlib.suppress(RuntimeError, OSError):
            self.notice(signal.Signals(number).name)

    def check(self) -> None:
        """Raises Interrupted if a signal had come, on this host or on another one.

        What is raised is decided by what was gathered: a signal that comes meanwhile is for the
        next time, on all hosts alike.
        """
        found = gather(lambda: self.received)
        came = [(number, host) for host, number in enumerate(found) if number is not None]
        if not came:
            return
        self.stopped_by, host = came[0]
        if self.received is None:
            self.notice(f"{signal.Signals(self.stopped_by).name} on host {host}")
        raise Interrupted

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for name in STOPPING:
                number = getattr(signal, name, None)  # Windows has two of them
                if number is None or (name == "SIGHUP" and _is_ignored(number)):
                    continue
                self.previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def _is_ignored(number: int) -> bool:
    """Whether whoever started the process wants it to outlive a signal, as nohup does."""
    return signal.getsignal(number) == signal.SIG_IGN
