"""One worker process seen from outside: JSON lines to it and from it, deadlines, and its end with
all that it started.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TERM_SECONDS = 0.3  # between SIGTERM and SIGKILL
MAX_FORWARDED = 64 * 1024  # bytes that workers may print to our standard error, all together
TAIL_BYTES = 2000


class Ended(Exception):
    """The worker process closed its answers."""


class Late(Exception):
    """The deadline passed without a line."""


class Process:
    """One worker process and its pipes. Used by one thread."""

    def __init__(self, hello: dict[str, Any], forward: Forward):
        """Starts it and sends `hello`; what it prints goes to `forward`. Raises Ended as `send`."""
        package_root = str(Path(__file__).resolve().parents[2])
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [package_root, environment.get("PYTHONPATH", "")])
        )
        # a reward that does use an accelerator library must not take the trainer's device, or its
        # memory
        environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}
        # several workers share the machine with the sampler: one thread each
        environment.setdefault("OMP_NUM_THREADS", "1")
        environment.setdefault("OPENBLAS_NUM_THREADS", "1")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jaxr1.rewards.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # a group of its own: Ctrl-C is the trainer's, and kills reach its children
        )
        self.buffer = b""
        self.graded = 0
        self.tail = b""
        self._forward = forward
        self._drain = threading.Thread(target=self._read_stderr, daemon=True)
        self._drain.start()
        self.send(hello)

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        descriptor = self.process.stderr.fileno()
        with contextlib.suppress(OSError, ValueError):
            while data := os.read(descriptor, 65536):
                self.tail = (self.tail + data)[-TAIL_BYTES:]
                self._forward.write(data)

    def send(self, message: dict[str, Any]) -> None:
        """Writes one line.

        Raises:
          Ended: nobody reads it.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            raise Ended from error

    def receive(self, deadline: float) -> dict[str, Any]:
        """The next line, as an object.

        Raises:
          Late: none has come before the deadline (time.monotonic() seconds).
          Ended: none will come.
        """
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        while b"\n" not in self.buffer:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise Late
            data = os.read(descriptor, 1 << 20)
            if not data:
                raise Ended
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        try:
            return json.loads(line)
        except ValueError:
            raise Ended from None  # something wrote to a descriptor that was private: nothing it says can be trusted

    def kill(self) -> None:
        """Ends the process and everything it started: SIGTERM, a short wait, SIGKILL."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(TERM_SECONDS)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)  # its children too, after it is gone itself
        self.process.wait()
        self._drain.join(1.0)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None and not (pipe is self.process.stderr and self._drain.is_alive()):
                with contextlib.suppress(OSError):
                    pipe.close()

    def describe_end(self) -> str:
        """How the process ended, and the last line it printed."""
        try:
            code = self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "the worker closed its answers"
        self._drain.join(1.0)
        text = (
            f"the worker was killed by {signal.Signals(-code).name}"
            if code < 0
            else f"the worker exited with {code}"
        )
        lines = self.tail.decode(errors="replace").strip().splitlines()
        return f"{text}; it last printed: {lines[-1][:300]}" if lines else text


@dataclass
class Forward:
    """Passes on what reward functions print, up to a limit: a print in a reward must not fill a
    log.
    """

    left: int = MAX_FORWARDED
    lock: threading.Lock = field(default_factory=threading.Lock)

    def write(self, data: bytes) -> None:
        with self.lock:
            if self.left <= 0:
                return
            part, self.left = data[: self.left], self.left - len(data)
            text = part.decode(errors="replace")
            if self.left <= 0:
                text += f"\n[jaxr1: reward functions have printed {MAX_FORWARDED} bytes; the rest is not shown]\n"
        with contextlib.suppress(
            Exception
        ):  # a closed or replaced stderr is no reason to lose grades
            sys.stderr.write(text)
            sys.stderr.flush()
