"""The machine that a run is on: compilations, memory, versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.monitoring

from jaxr1.parallel import on_device
from jaxr1.rl.learner import TrainState
from jaxr1.stages.programs import COMPILED


class CompileCounter:
    """Counts XLA compilations of this process (those answered by the persistent cache included).

    Attributes:
      count: all of them.
      programs: those of functions whose names are in `stages.programs.COMPILED`.
    """

    def __init__(self):
        self.count = self.programs = 0
        self._planned: tuple[int, int | None] = (-1, None)  # count when it was looked at, bytes
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event.endswith("backend_compile_duration"):
            self.count += 1
            name = str(kwargs.get("fun_name", ""))
            self.programs += name.removeprefix("jit(").removesuffix(")") in COMPILED

    def metrics(self, since: int) -> dict[str, float]:
        """Compilations after the first `since`, and what temporaries take on a device, in GiB.

        These are activations most of all. It is the compiler's own account, of the program with
        most of them among all that this process has compiled and keeps; asked for when there are
        new ones. Nothing is compiled for it. Absent where the backend does not tell.
        """
        if self._planned[0] != self.count:
            self._planned = (self.count, planned_temporaries())
        most = self._planned[1]
        planned = {} if most is None else {"memory/activations_gib": most / 2**30}
        return {"perf/compiles": self.count - since, **planned}

    def close(self) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def __enter__(self) -> CompileCounter:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def planned_temporaries() -> int | None:
    """Bytes on a device of the temporaries of the compiled program with most of them.

    None where the backend does not tell.
    """
    try:
        programs = jax.local_devices()[0].client.live_executables()
        return max(
            (program.get_compiled_memory_stats().temp_size_in_bytes for program in programs),
            default=None,
        )
    except (AttributeError, NotImplementedError, jax.errors.JaxRuntimeError):
        return None


def state_metrics(states: Mapping[str, TrainState]) -> dict[str, float]:
    """What learners hold on a device between steps, and the sums of gradients in one, in GiB."""
    every = states.values()
    return {
        "memory/parameters_gib": on_device([state.params for state in every]),
        "memory/optimiser_gib": on_device([state.opt for state in every]),
        "memory/gradients_gib": on_device([state.trainable for state in every], itemsize=4),
    }


def memory_metrics() -> dict[str, float]:
    """Resident memory and, where the backend tells, the fullest device's peak, in GiB."""
    out = {}
    try:
        with open("/proc/self/status") as f:
            found = {
                line.split(":")[0]: line.split()[1]
                for line in f
                if line.startswith(("VmRSS", "VmHWM"))
            }
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
        ["git", "-C", str(Path(__file__).parent), *args],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    try:
        git(
            "ls-files", "--error-unmatch", Path(__file__).name
        )  # an installed copy may lie in somebody else's checkout
        commit = git("rev-parse", "HEAD").stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or no checkout
        pass
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "devices": [str(d) for d in jax.devices()],
        "device_kind": jax.devices()[0].device_kind,
        "hosts": jax.process_count(),
        "git": commit,
    }
