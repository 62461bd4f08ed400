"""One worker process seen from outside: JSON lines to and from it, deadlines, and its end."""

from __future__ import annotations

import contextlib
import json
import math
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
KILL_SECONDS = 5.0  # for SIGKILL to be obeyed
MAX_FORWARDED = 64 * 1024  # bytes that workers may print to our standard error, all together
TAIL_BYTES = 2000


class Ended(Exception):
    """The worker process closed its answers."""


class Late(Exception):
    """The deadline passed without a line."""


def _is_ready(descriptor: int, event: int, deadline: float) -> bool:
    """Waits until a descriptor can be read or written; False at the deadline."""
    poll = select.poll()  # select() itself ends at descriptor 1023, and epoll takes another one
    poll.register(descriptor, event)
    left = max(0.0, deadline - time.monotonic())
    return bool(poll.poll(math.ceil(1000 * left)))


class Process:
    """One worker process and its pipes. Used by one thread.

    Attributes:
      process: as `subprocess` has it; the leader of a process group of its own.
      graded: items graded so far.
      at: index of the reward function that runs, -1 where it is not known.
      together: whether it runs for all items that were sent.
      tail: the last bytes that it printed.
    """

    def __init__(self, forward: Forward, devices: str = ""):
        """Starts it.

        Args:
          forward: gets what it prints.
          devices: the GPUs that it sees, see `WorkerOptions`.

        Raises:
          OSError, RuntimeError: there is no process, thread or descriptor to be had.
        """
        package_root = str(Path(__file__).resolve().parents[2])
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [package_root, environment.get("PYTHONPATH", "")])
        )
        environment |= {"CUDA_VISIBLE_DEVICES": devices, "PYTHONUNBUFFERED": "1"}
        if not devices:
            environment["JAX_PLATFORMS"] = "cpu"
        # several workers share the machine with the sampler: one thread each
        environment.setdefault("OMP_NUM_THREADS", "1")
        environment.setdefault("OPENBLAS_NUM_THREADS", "1")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jaxr1.rewards.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            # a group of its own: Ctrl-C is the trainer's, and kills reach its children
            start_new_session=True,
        )
        self.graded = 0
        self.at = -1
        self.together = False
        self.tail = b""
        self._received = b""  # not yet a whole line
        self._forward = forward
        self._drain = threading.Thread(target=self._read_stderr, daemon=True)
        try:
            assert self.process.stdin is not None
            os.set_blocking(self.process.stdin.fileno(), False)
            self._drain.start()
        except BaseException:
            self.process.kill()
            raise

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        descriptor = self.process.stderr.fileno()
        with contextlib.suppress(OSError, ValueError):
            while data := os.read(descriptor, 65536):
                self.tail = (self.tail + data)[-TAIL_BYTES:]
                self._forward.write(data)

    def send(self, message: dict[str, Any], deadline: float) -> None:
        """Writes one line.

        Raises:
          Late: not all of it was read before the deadline (time.monotonic() seconds).
          Ended: nobody reads it.
        """
        assert self.process.stdin is not None
        descriptor = self.process.stdin.fileno()
        left = memoryview(json.dumps(message).encode() + b"\n")
        while left:
            if not _is_ready(descriptor, select.POLLOUT, deadline):
                raise Late
            try:
                left = left[os.write(descriptor, left) :]
            except BlockingIOError:
                continue
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
        while b"\n" not in self._received:
            if not _is_ready(descriptor, select.POLLIN, deadline):
                raise Late
            data = os.read(descriptor, 1 << 20)
            if not data:
                raise Ended
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        try:
            return json.loads(line)
        except ValueError:
            # something wrote to a descriptor that was private: nothing it says can be trusted
            raise Ended from None

    def kill(self) -> None:
        """Ends the process and everything it started: SIGTERM, a short wait, SIGKILL."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(TERM_SECONDS)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)  # its children too, after it is gone itself
        with contextlib.suppress(subprocess.TimeoutExpired):  # it hangs in the kernel
            self.process.wait(KILL_SECONDS)
        self._drain.join(1.0)
        pipes = [self.process.stdin, self.process.stdout]
        if not self._drain.is_alive():  # else it is still being read
            pipes.append(self.process.stderr)
        for pipe in filter(None, pipes):
            with contextlib.suppress(OSError):
                pipe.close()

    def describe_end(self) -> str:
        """How the process ended, and the last line it printed."""
        try:
            code = self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "the worker closed its answers"
        self._drain.join(1.0)
        text = f"the worker exited with {code}"
        if code < 0:
            text = f"the worker was killed by {signal.Signals(-code).name}"
        lines = self.tail.decode(errors="replace").strip().splitlines()
        return f"{text}; it last printed: {lines[-1][:300]}" if lines else text


@dataclass
class Forward:
    """Passes on what reward functions print, up to a limit: a print must not fill a log."""

    left: int = MAX_FORWARDED
    lock: threading.Lock = field(default_factory=threading.Lock)

    def write(self, data: bytes) -> None:
        with self.lock:
            if self.left <= 0:
                return
            text = data[: self.left].decode(errors="replace")
            self.left -= len(data)
            if self.left <= 0:
                text += (
                    f"\n[jaxr1: reward functions have printed {MAX_FORWARDED} bytes; "
                    "the rest is not shown]\n"
                )
        # a closed or replaced stderr is no reason to lose grades
        with contextlib.suppress(Exception):
            sys.stderr.write(text)
            sys.stderr.flush()
