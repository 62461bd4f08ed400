"""Ctrl-C and SIGTERM, at a safe place."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from typing import Any


class Interrupted(Exception):
    """A signal asked the run to stop."""


class Signals:
    """The first Ctrl-C or SIGTERM becomes a flag that `check` raises; a second is immediate.

    Args:
      notice: called with the name of the first signal.
    """

    def __init__(self, notice: Callable[[str], None] = lambda name: None):
        self.notice = notice
        self.received: int | None = None
        self.previous: dict[int, Any] = {}

    def _handle(self, number, _frame) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        with contextlib.suppress(
            RuntimeError
        ):  # it may come in the middle of a line that is being printed
            self.notice(signal.Signals(number).name)

    def check(self) -> None:
        """Raises Interrupted if a signal came."""
        if self.received is not None:
            raise Interrupted

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self.previous = {
                n: signal.signal(n, self._handle) for n in (signal.SIGINT, signal.SIGTERM)
            }
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
