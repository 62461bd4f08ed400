"""Several processes as several hosts, over loopback."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Ended:
    """How a host's process ended.

    `after_s` is how long after the first one's end.
    """

    code: int
    output: str
    after_s: float


class Host(subprocess.Popen):
    """A process whose output goes to a file: a pipe that nobody reads would hold it up."""

    def __init__(self, command: Sequence[str], env: dict[str, str]):
        self.file = tempfile.TemporaryFile("w+")
        super().__init__(command, env=env, stdout=self.file, stderr=subprocess.STDOUT)

    def output(self) -> str:
        """All of it, when the process has ended."""
        self.file.seek(0)
        with self.file:
            return self.file.read()


def place(index: int, count: int, port: int) -> dict[str, str]:
    """The environment of one of `count` hosts; that of a process alone where there is but one."""
    if count == 1:
        return {}
    return {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(index),
    }


def start(script: Path, arguments: Sequence[Sequence[str]], devices: int = 2) -> list:
    """A process of a script for each list of arguments, with so many devices each."""
    port, count = free_port(), len(arguments)
    return [
        Host(
            [sys.executable, str(script), *own],
            os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)} | place(index, count, port),
        )
        for index, own in enumerate(arguments)
    ]


def ended(processes: Sequence[Host], timeout: float = 240.0) -> list[Ended]:
    """Waits for all of them; none outlives this."""
    times: dict[int, float] = {}
    try:
        deadline = time.monotonic() + timeout
        while len(times) < len(processes):
            assert time.monotonic() < deadline, "a host has not ended"
            for index, process in enumerate(processes):
                if index not in times and process.poll() is not None:
                    times[index] = time.monotonic()
            time.sleep(0.02)
        first = min(times.values())
        return [
            Ended(process.returncode, process.output(), times[index] - first)
            for index, process in enumerate(processes)
        ]
    finally:
        for process in processes:
            process.kill()


def run(script: Path, *arguments: Sequence[str], devices: int = 2) -> list[Ended]:
    """As `start`, to their end."""
    return ended(start(script, arguments, devices))
