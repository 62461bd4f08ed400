"""What a run observes of itself: compilations, memory, signals, the machine."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.monitoring


class CompileCounter:
    """Counts XLA compilations of this process (those answered by the persistent cache included)."""

    def __init__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        self.count += event.endswith("backend_compile_duration")

    def close(self) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def __enter__(self) -> CompileCounter:
        return self

    def __exit__(self, *_) -> None:
        self.close()


PEAK_TFLOPS = {
    "TPU v4": 275, "TPU v5 lite": 197, "TPU v5e": 197, "TPU v5": 459, "TPU v5p": 459, "TPU v6 lite": 918, "TPU v6e": 918,
    "A100": 312, "H100": 989, "H100 PCIe": 756, "H100 NVL": 835, "H200": 989, "GH200": 989, "B200": 2250, "GB200": 2500,
    "L4": 121, "L40S": 362,
}  # fmt: skip
"""Dense bfloat16 TFLOP/s of one device by words of its name, from the makers' data sheets."""


def peak_flops() -> float:
    """Floating-point operations per second of all devices at their best in bfloat16; 0 where a device is not known."""
    total = 0.0
    for device in jax.devices():
        words = f" {device.device_kind.replace('-', ' ')} "
        known = [name for name in PEAK_TFLOPS if f" {name} " in words]
        if not known:
            return 0.0
        total += PEAK_TFLOPS[max(known, key=len)] * 1e12
    return total


class Interrupted(Exception):
    """A signal asked the run to stop."""


class Signals:
    """Turns the first Ctrl-C or SIGTERM into a flag that `check` raises at a safe place; the second one is immediate.

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
        with contextlib.suppress(RuntimeError):  # it may come in the middle of a line that is being printed
            self.notice(signal.Signals(number).name)

    def check(self) -> None:
        """Raises Interrupted if a signal came."""
        if self.received is not None:
            raise Interrupted

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self.previous = {n: signal.signal(n, self._handle) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def memory_metrics() -> dict[str, float]:
    """Resident memory of this process and, where the backend tells, peak memory of the fullest device, in GiB."""
    out = {}
    try:
        with open("/proc/self/status") as f:
            found = {line.split(":")[0]: line.split()[1] for line in f if line.startswith(("VmRSS", "VmHWM"))}
        out["memory/host_rss_gib"] = int(found["VmRSS"]) / 2**20
        out["memory/host_peak_gib"] = int(found["VmHWM"]) / 2**20
    except (OSError, KeyError):  # not Linux: no such file
        pass
    stats = [d.memory_stats() or {} for d in jax.local_devices()]
    if any("peak_bytes_in_use" in s for s in stats):
        out["memory/device_gib"] = max(s.get("peak_bytes_in_use", 0) for s in stats) / 2**30
    return out


def environment() -> dict:
    """Versions, devices and the commit of this package, for environment.json."""
    packages = (
        "jaxr1",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "transformers",
        "numpy",
        "pillow",
        "grain",
    )
    versions: dict[str, str | None] = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    commit: str | None = None
    git = lambda *args: subprocess.run(
        ["git", "-C", str(Path(__file__).parent), *args], capture_output=True, text=True, timeout=10, check=True
    )
    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an installed copy may lie in somebody else's checkout
        commit = git("rev-parse", "HEAD").stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or no checkout
        pass
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "devices": [str(d) for d in jax.devices()],
        "hosts": jax.process_count(),
        "git": commit,
    }
