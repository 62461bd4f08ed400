"""Several hosts: what is each one's own, and what all of them know.

Every host runs the same code over the same devices. It reads, encodes, decodes and grades the
prompts that are its own; numbers and texts are then exchanged, so that whatever decides a shape, a
branch or a weight is the same everywhere. Pixels stay where they were read.

    prompt      0 1 2 3 4 5 6 7        host 0   0 . 2 . 4 . 6 .        then   0 1 2 3 4 5 6 7
    owner       0 1 0 1 0 1 0 1        host 1   . 1 . 3 . 5 . 7               on both

Two rules keep hosts together. Whatever calls a function of this file, or a program over arrays of
all hosts, does so on every host as often and in the same order: no branch and no loop around it
may depend on what one host alone knows. And what one host does alone, and may raise, is done
inside `gather`, `together` or `on_main`: then all raise it, and end in the same place.
"""

from __future__ import annotations

import functools
import itertools
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax

from jaxr1.base.errors import UserError
from jaxr1.parallel.wire import packed, packed_error, unpacked, unpacked_error

T = TypeVar("T")


class HostError(UserError):
    """Another host has failed, or does not answer."""


def host_count() -> int:
    """Processes that run this program together, one for each host."""
    return jax.process_count()


def host_index() -> int:
    """The number of this one."""
    return jax.process_index()


def is_main() -> bool:
    """Whether this host writes files and talks to the user."""
    return host_index() == 0


def owner(number: int) -> int:
    """The host that reads, encodes, decodes and grades the prompt of this number in a list."""
    return number % host_count()


def gather(work: Callable[[], T], *kinds: type, tag: str = "") -> list[T]:
    """What `work` gives on each host, in their order, on all of them.

    Args:
      work: gives numbers, texts, arrays, and lists, tuples, dicts and dataclasses of these.
      kinds: the dataclasses among them.
      tag: what the exchange is about; "" is where `work` stands.

    Raises:
      Exception: what the first host raised whose work has failed.
      HostError: a host has not come here within the time that `Hosts.wait_s` gives it.
    """
    if host_count() == 1 or is_parted():
        return [work()]
    error = None
    try:
        told = packed((work(), None))
    except Exception as e:
        error, told = e, packed((None, packed_error(e)))
    named = {kind.__name__: kind for kind in kinds}
    tag = tag or _name(work)
    found = [unpacked(data, named) for data in _exchange(told, tag)]
    for host, (_, failed) in enumerate(found):
        if failed is not None:
            if host == host_index() and error is not None:
                raise error
            name, message = failed
            raise unpacked_error(name, message, HostError)
    return [given for given, _ in found]


def together(work: Callable[[], T]) -> T:
    """What `work` gives here, when all hosts have done theirs; raises as `gather`."""
    kept: list[T] = []
    gather(lambda: kept.append(work()), tag=_name(work))
    return kept[0]


def on_main(work: Callable[[], Any]) -> None:
    """Does `work` on the main host, while the others wait; what it raises is raised by all."""

    def here() -> None:
        if is_main():
            work()

    gather(here, tag=_name(work))


def agree(values: Sequence[int]) -> list[int]:
    """The main host's integers on every host (the identity on one host).

    Hosts that decide apart (a bucket, a stop, a retry) would launch different programs and hang in
    the first collective; asking the main host makes the decision once.
    """
    return gather(lambda: [int(value) for value in values])[0]


def wait_until(done: Callable[[], bool], check: Callable[[], None], look_s: float = 0.001) -> None:
    """Waits until every host is done; `check` is called as often on each, and may raise."""
    waiting = threading.Event()
    alone = host_count() == 1
    while not all(gather(done)):
        check()
        waiting.wait(look_s if alone else max(look_s, ROUND_S))


ROUND_S = 0.2
"""Seconds between two questions to other hosts while one waits for them."""

_parted = threading.Event()
_wait_s = 3600.0
_numbers = itertools.count()


def part() -> None:
    """From here on this host is alone: the others are not waited for any more."""
    _parted.set()


def is_parted() -> bool:
    """Whether the hosts have parted: this one ends, and can do nothing more with the others."""
    return _parted.is_set()


def set_wait(seconds: float) -> None:
    """How long hosts wait for one another. One that is dead is noticed sooner, by the watch."""
    global _wait_s
    _wait_s = seconds


def barrier(name: str, seconds: float) -> bool:
    """Whether all hosts come to the barrier of this name within so many seconds."""
    client = _client()
    try:
        _in_thread(lambda: client.wait_at_barrier(f"jaxr1/{name}", int(seconds * 1000)))
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _name(work: Callable) -> str:
    """Where in the text a piece of work stands."""
    work = getattr(work, "func", work)  # of functools.partial
    return f"{work.__module__}.{getattr(work, '__qualname__', type(work).__name__)}"


def _exchange(data: bytes, tag: str) -> list[bytes]:
    """The bytes of each host. They go through the service that jax coordinates hosts with: no
    program is compiled for it, and any thread may wait.

    Args:
      tag: what the exchange is about, the same on all hosts.
    """
    client, number, timeout = _client(), next(_numbers), int(_wait_s * 1000)

    def run() -> list[bytes]:
        client.key_value_set_bytes(f"jaxr1/{number}/{host_index()}", tag.encode() + b"\n" + data)
        client.wait_at_barrier(f"jaxr1/{number}", timeout)
        keys = [f"jaxr1/{number}/{host}" for host in range(host_count())]
        found = [client.blocking_key_value_get_bytes(key, timeout) for key in keys]
        # Everybody has read what was given one exchange ago: they have come to this one.
        if number:
            client.key_value_delete(f"jaxr1/{number - 1}/{host_index()}")
        return found

    try:
        found = [sent.split(b"\n", 1) for sent in _in_thread(run)]
    except jax.errors.JaxRuntimeError as e:
        raise HostError(
            f"host {host_index()} has waited for the others in vain ({e}): another host has ended, "
            "or the network has failed"
        ) from e
    if tags := {told.decode() for told, _ in found} - {tag}:
        raise HostError(
            f"host {host_index()} is at {tag}, another one at {tags.pop()}: this is a bug of jaxr1"
        )
    return [data for _, data in found]


def _in_thread(work: Callable[[], T]) -> T:
    """`work` in a thread: a signal is heard while the main one waits for it."""
    answers: queue.SimpleQueue = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((work(), None))
        except BaseException as e:
            answers.put((None, e))

    threading.Thread(target=run, name="jaxr1-hosts", daemon=True).start()
    value, error = answers.get()
    if error is not None:
        raise error
    return value


@functools.cache
def _client() -> Any:
    """jax's client of the coordination service; jax has no public name for it."""
    from jax._src import distributed

    return distributed.global_state.client
