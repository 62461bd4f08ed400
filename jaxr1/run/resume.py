"""The resolved configuration of a run as JSON, and how it differs from that of a run directory."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows has no such lock
    fcntl = None  # type: ignore[assignment]

from jaxr1.base.checks import OptionError
from jaxr1.base.files import write_whole
from jaxr1.parallel import gather, host_count, host_index, on_main, together
from jaxr1.rewards.spec import Reward
from jaxr1.run.state import ResumeError

SHARED_S = 30.0
"""Seconds until what one host writes is seen by another, at most."""
# Fields that say where and how a run is shown, not what it computes: they may differ on resume.
FREE = (
    "run_dir",
    "hosts",
    "tensorboard",
    "wandb",
    "report",
    "export",
    "keep_checkpoints",
    "save_minutes",
    "save_first",
)


def resolved(config: Any) -> Any:
    """A config tree as JSON values; dataclasses name their class: a change of kind shows."""
    if isinstance(config, Reward):
        return {"class": "Reward", **config.to_json()}
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = {f.name: resolved(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"class": type(config).__name__, **fields}
    if isinstance(config, list | tuple):
        return [resolved(x) for x in config]
    if isinstance(config, dict):
        return {str(k): resolved(v) for k, v in config.items()}
    return config if isinstance(config, str | int | float | bool | type(None)) else str(config)


def differences(
    old: Any, new: Any, path: str = "", *, said: str = "{} in the run, now {}"
) -> list[str]:
    """One line per field that differs: "stages.1.kl.coef: 0.01 in the run, now 0.0"."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted({*old, *new}):
            if path or key not in FREE:
                where = f"{path}.{key}" if path else key
                pair = (old.get(key, "absent"), new.get(key, "absent"))
                lines += differences(*pair, where, said=said)
        return lines
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        lines = []
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            lines += differences(a, b, f"{path}.{i}", said=said)
        return lines
    if old == new:
        return []
    return [f"{path}: {said.format(json.dumps(old), json.dumps(new))}"]


def check_config(run_dir: Path, config: dict, override: bool, ended: int = 0) -> list[str]:
    """Compares with the config.json that is there, if there is one.

    Args:
      override: accept differences.
      ended: how many stages are over: they cannot be done in another way any more.

    Returns:
      The differences that were accepted, one line each.

    Raises:
      ResumeError: there are some and `override` is not set, or some are of a stage that is over;
        lists the fields.
    """
    file = run_dir / "config.json"
    before = json.loads(file.read_text()) if file.is_file() else config
    changed = differences(before, config)
    if late := _of_ended_stages(before["stages"], config["stages"], ended):
        raise ResumeError(
            f"{run_dir}: the run has passed the stages before stages.{ended}, where a change has "
            "no effect any more:\n  "
            + "\n  ".join(late)
            + "\nLeave them as they were, or use another --run-dir."
        )
    if changed and not override:
        raise ResumeError(
            f"{run_dir} holds a run with another configuration:\n  "
            + "\n  ".join(changed)
            + "\nUse another --run-dir, or --override-resume to go on with the new values."
        )
    return changed


def _of_ended_stages(before: list, now: list, ended: int) -> list[str]:
    """The differences among the first stages; fields that older releases did not have are none."""
    lines = []
    for number, old in enumerate(before[:ended]):
        new = now[number] if number < len(now) else "absent"
        lines += differences(old, new, f"stages.{number}")
    return [line for line in lines if ': "absent" in the run' not in line]


@contextlib.contextmanager
def only_process(run_dir: Path) -> Iterator[None]:
    """Makes a run directory, and keeps other processes out; the lock ends with the process.

    Raises:
      OptionError: it cannot be written to.
      ResumeError: another one is in it.
    """
    try:
        (run_dir / "rollouts").mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OptionError(f"run_dir: {run_dir} cannot be written to ({e})") from e
    with open(run_dir / ".lock", "a+") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise ResumeError(
                    f"{run_dir} is in use by process {file.read().strip() or '?'}"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield


def check_shared(run_dir: Path) -> None:
    """Raises OptionError where hosts do not see one and the same run directory."""
    if host_count() == 1:
        return
    file = run_dir / ".hosts"
    token = gather(lambda: secrets.token_hex(8))[0]
    on_main(lambda: write_whole(file, token.encode()))

    def look() -> None:
        deadline = time.monotonic() + SHARED_S
        while not (file.is_file() and file.read_text() == token):
            if time.monotonic() > deadline:
                raise OptionError(
                    f"run_dir: host {host_index()} does not see in {run_dir} what host 0 has "
                    "written there: all hosts need one folder on a shared file system"
                )
            time.sleep(0.2)

    together(look)


def check_same(what: str, here: Any) -> None:
    """Raises OptionError on all hosts where one of them has something else than host 0.

    Args:
      what: it is; begins the message.
      here: its JSON value on this host.
    """
    main, *others = map(json.loads, gather(lambda: json.dumps(here)))
    for host, other in enumerate(others, 1):
        if lines := differences(main, other, said=f"{{}} on host 0, {{}} on host {host}"):
            raise OptionError(f"{what} must be the same on all hosts:\n  " + "\n  ".join(lines))


def write_config(run_dir: Path, config: dict) -> None:
    """Writes config.json by atomic rename."""
    write_whole(run_dir / "config.json", json.dumps(config, indent=2).encode())
