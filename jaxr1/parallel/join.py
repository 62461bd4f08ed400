"""Joining the hosts of a run: from the environment, or from options.

--hosts.coordinator node0:1234 --hosts.count 4 --hosts.index 2      one command on each host
srun, mpirun, a TPU pod                                             the same without options
Kubernetes, indexed job        coordinator and count; the index comes from the pod
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import importlib.util
import itertools
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

import jaxr1.parallel.hosts as hosts
import jaxr1.parallel.watch as watch
from jaxr1.base.checks import OptionError, check_positive, check_types

log = logging.getLogger(__name__)

# {launcher: (variable with the number of its processes, variable that says that this is one)}.
LAUNCHERS = {
    "Slurm": ("SLURM_NTASKS", "SLURM_STEP_NODELIST"),
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_MCA_orte_hnp_uri"),
}
INDICES = ("JAX_PROCESS_ID", "JOB_COMPLETION_INDEX")  # the second is that of Kubernetes


@dataclasses.dataclass(frozen=True)
class HostOptions:
    """The hosts of a run, one process on each; as they are, they come from the environment.

    Attributes:
      coordinator: address "name:port" of host 0, where any free port will do; "" is
        $JAX_COORDINATOR_ADDRESS, or what the launcher says.
      count: how many there are; 0 is $JAX_NUM_PROCESSES, or what the launcher says.
      index: of this one, 0 to count - 1; -1 is $JAX_PROCESS_ID, $JOB_COMPLETION_INDEX, or what the
        launcher says.
      watch_port: of host 0, where hosts tell each other that they are there; 0 is any.
      heartbeat_s: a host that is silent for so long is gone, and the others end.
      wait_s: how long a host waits for another that is at work.
    """

    coordinator: str = ""
    count: int = 0
    index: int = -1
    watch_port: int = 0
    heartbeat_s: float = 30.0
    wait_s: float = 3600.0

    def __post_init__(self):
        check_types(self, "hosts: ")
        check_positive(self, "heartbeat_s", "wait_s", path="hosts: ")

    def filled(self, environment: Mapping[str, str]) -> HostOptions:
        """The options with what environment variables say of what is open.

        Raises:
          OptionError: a variable that is no number, or an address without count and index.
        """
        coordinator = self.coordinator or environment.get("JAX_COORDINATOR_ADDRESS", "")
        count = self.count or _number(environment, ("JAX_NUM_PROCESSES",), 0)
        index = self.index if self.index >= 0 else _number(environment, INDICES, -1)
        if coordinator and not (0 <= index < count):
            raise OptionError(
                f"hosts: the coordinator is {coordinator!r}, but this would be host {index} of "
                f"{count}: give --hosts.count N and --hosts.index 0 to N - 1, or "
                "JAX_NUM_PROCESSES and JAX_PROCESS_ID"
            )
        if coordinator and not coordinator.rpartition(":")[2].isdecimal():
            raise OptionError(f"hosts.coordinator: expected name:port, got {coordinator!r}")
        if self.count > 1 and not coordinator:
            raise OptionError(f"hosts.count is {count}: give --hosts.coordinator name:port as well")
        return dataclasses.replace(self, coordinator=coordinator, count=count, index=index)


def _number(environment: Mapping[str, str], names: tuple[str, ...], default: int) -> int:
    for name in names:
        if name in environment:
            if not environment[name].isdecimal():
                raise OptionError(f"{name}: expected a number, got {environment[name]!r}")
            return int(environment[name])
    return default


def launched(environment: Mapping[str, str]) -> bool:
    """Whether a launcher that jax knows has started several processes, this one among them."""
    for size, sign in LAUNCHERS.values():
        if sign in environment and environment.get(size, "1") != "1":
            return True
    return False


def on_tpu(environment: Mapping[str, str]) -> bool:
    """Whether this machine may be one of a TPU pod; jax finds out by asking around."""
    has_library = importlib.util.find_spec("libtpu") is not None
    return has_library and "cpu" not in environment.get("JAX_PLATFORMS", "")


@contextlib.contextmanager
def joined(options: HostOptions) -> Iterator[None]:
    """The hosts of a run, joined and watched; nothing where there is but one.

    Whatever ends this block on one host only ends it on all of them.

    Raises:
      OptionError: options that do not fit, or a host that does not come.
    """
    start(options)
    if hosts.host_count() == 1:
        yield
        return
    hosts.set_wait(options.wait_s)
    watching = _watched(options)
    _watching.append(watching)
    try:
        yield
        hosts.together(lambda: None)
    except BaseException as error:
        if not (getattr(error, ALIKE, False) or failed_alike(error)):
            with contextlib.suppress(subprocess.TimeoutExpired):
                watching.wait(10)
            # The others are ended: what jax does at exit would wait for them.
            atexit.register(lambda: os._exit(1))
        raise
    finally:
        _say(watching, watch.BYE)
        _watching.clear()


ALIKE = "jaxr1_on_all_hosts"
"""Attribute of an error that all hosts have ended with."""

_failures = itertools.count()  # the same on all hosts: a barrier has a name of its own
_watching: list[subprocess.Popen] = []  # the watch of this host, while hosts are joined


def failed_alike(error: BaseException, seconds: float = 20.0) -> bool:
    """Whether all hosts have come to an error in this place; else they part here.

    Only a second signal, which is for this host alone, is not waited for.
    """
    if hosts.host_count() == 1:
        return True
    if hosts.is_parted():
        return False
    alike = isinstance(error, Exception) and hosts.barrier(f"failed {next(_failures)}", seconds)
    setattr(error, ALIKE, alike)
    if not alike:
        part(error)
    return alike


def part(error: BaseException) -> None:
    """Tells the watches that this host ends with an error, so that they end the others by name."""
    if not hosts.is_parted():
        hosts.part()
        _say(_watching[0], watch.FAILED, f"has failed: {type(error).__name__}: {error}")


def start(options: HostOptions) -> None:
    """Lets jax join the hosts, where there are several; once in a process."""
    from jax._src import distributed

    if distributed.global_state.client is not None:
        return
    given = options.filled(os.environ)
    is_sure = bool(given.coordinator) or launched(os.environ)
    if not is_sure and not on_tpu(os.environ):
        return
    place: dict[str, Any] = {}
    if given.coordinator:
        place = {
            "coordinator_address": given.coordinator,
            "num_processes": given.count,
            "process_id": given.index,
        }
    try:
        jax.distributed.initialize(
            **place,
            # Later than the watch, which knows names.
            heartbeat_timeout_seconds=max(1, int(1.5 * given.heartbeat_s)),
            shutdown_timeout_seconds=20,
            initialization_timeout=300,
        )
    except (RuntimeError, ValueError) as e:
        if not is_sure:  # a TPU that is no part of a pod, or jax was at work before
            log.warning("this process runs alone: %s", e)
            return
        raise OptionError(f"hosts: they could not be joined: {e}") from e


def _watched(options: HostOptions) -> subprocess.Popen:
    """Starts the watch of this host."""
    from jax._src import distributed

    address = distributed.global_state.coordinator_address or ""
    listening = hosts.together(lambda: _listening(options) if hosts.is_main() else None)
    name = f"{socket.gethostname()}, process {os.getpid()}"
    port = listening.getsockname()[1] if listening is not None else 0
    known = hosts.gather(lambda: (name, port))
    listen = listening.fileno() if listening is not None else -1
    settings = watch.Settings(
        index=hosts.host_index(),
        names=[name for name, _ in known],
        run=os.getpid(),
        address=(address.rpartition(":")[0].strip("[]"), known[0][1]),
        listen=listen,
        heartbeat_s=options.heartbeat_s,
    )
    started = subprocess.Popen(
        [sys.executable, "-I", str(Path(watch.__file__)), json.dumps(dataclasses.asdict(settings))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=[listen] if listening is not None else [],
    )
    if listening is not None:
        listening.close()
    hosts.together(lambda: _ready(started))
    return started


def _listening(options: HostOptions) -> socket.socket:
    """Where host 0's watch is found by the others."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    place, count = ("", options.watch_port), hosts.host_count()
    try:
        return socket.create_server(place, family=family, backlog=count, dualstack_ipv6=both)
    except OSError as e:
        raise OptionError(f"hosts.watch_port: {options.watch_port} cannot be used: {e}") from e


def _ready(watching: subprocess.Popen) -> None:
    assert watching.stdout is not None
    if watching.stdout.readline().strip() != watch.READY:
        raise hosts.HostError(f"host {hosts.host_index()} cannot be watched by the others")


def _say(watching: subprocess.Popen, kind: str, text: str = "") -> None:
    assert watching.stdin is not None
    with contextlib.suppress(OSError):  # it has ended, as it does with its last word
        watching.stdin.write(json.dumps({"kind": kind, "text": text}) + "\n")
        watching.stdin.flush()
