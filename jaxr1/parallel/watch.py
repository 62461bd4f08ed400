"""A process beside each host's own, which notices that a host is gone and says so.

    host 0   run ==pipe== watch <---- beats ---- watch ==pipe== run   host 1
                             ---- verdict ---->

A collective operation waits for a dead host for ever, and jax ends a process that has lost its
coordinator on the spot; neither says which host it was. The watch of host 0 hears of every end in
the order of their coming: the first is the cause. It tells all, and each watch names the host and
ends its own run.

Runs as a script (`python watch.py`) and imports nothing but the standard library: it must start at
once and take no memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import selectors
import signal
import socket
import sys
import time
from typing import Any

MAIN = 0
READY = "ready"
BYE, FAILED, GONE, BEAT, VERDICT = "bye", "failed", "gone", "beat", "verdict"
CONNECT_S = 30.0
AGAIN = "The same command on all hosts goes on from the last checkpoint."


@dataclasses.dataclass
class Settings:
    """What a watch is started with, as JSON in its only argument.

    Attributes:
      index: of its host.
      names: of all hosts, with the process that runs on each.
      run: process id of its own run.
      address: (name, port) of host 0's watch.
      listen: file descriptor of the socket that host 0's watch listens at; -1 elsewhere.
      heartbeat_s: a host that is silent for so long is gone.
    """

    index: int
    names: list[str]
    run: int
    address: tuple[str, int]
    listen: int
    heartbeat_s: float

    def name(self, host: int) -> str:
        return f"host {host} of {len(self.names)} ({self.names[host]})"


class Lines:
    """Lines of JSON from a file descriptor, as they come."""

    def __init__(self, descriptor: int):
        self.descriptor, self.rest = descriptor, b""

    def read(self) -> list[dict[str, Any]] | None:
        """What is there; None at the end."""
        try:
            data = os.read(self.descriptor, 1 << 16)
        except BlockingIOError:  # nothing is there after all
            return []
        except OSError:
            data = b""
        if not data:
            return None
        *whole, self.rest = (self.rest + data).split(b"\n")
        return [json.loads(line) for line in whole if line]


class Watch:
    """The watch of one host.

    Attributes:
      peers: {host: its socket}: all others for host 0, host 0 for the others.
      left: hosts that have ended as they should.
    """

    def __init__(self, settings: Settings):
        self.at, self.is_main = settings, settings.index == MAIN
        self.events = selectors.DefaultSelector()
        self.peers: dict[int, socket.socket] = {}
        self.heard: dict[int, float] = {}
        self.left: set[int] = set()
        self.events.register(sys.stdin.fileno(), selectors.EVENT_READ, (MAIN, Lines(0), True))
        if not self.is_main:
            connection = socket.create_connection(settings.address, CONNECT_S)
            connection.sendall(_line(host=settings.index, kind=BEAT))
            self.add(MAIN, connection, Lines(connection.fileno()))

    def add(self, host: int, connection: socket.socket, lines: Lines) -> None:
        self.peers[host], self.heard[host] = connection, time.monotonic()
        self.events.register(connection, selectors.EVENT_READ, (host, lines, False))

    def accept(self) -> int | None:
        """Waits for the watches of all other hosts; the first one that does not come, or None."""
        with socket.socket(fileno=self.at.listen) as listening:
            listening.settimeout(CONNECT_S)
            while len(self.peers) < len(self.at.names) - 1:
                try:
                    connection, _ = listening.accept()
                except TimeoutError:
                    return next(h for h in range(1, len(self.at.names)) if h not in self.peers)
                connection.settimeout(CONNECT_S)
                lines = Lines(connection.fileno())
                if (first := _greeting(connection, lines)) is not None:
                    self.add(first["host"], connection, lines)
        return None

    def run(self) -> int:
        """Watches until the run has ended, or another host's has."""
        if self.is_main and (missing := self.accept()) is not None:
            return self._judge(missing, f"cannot reach host 0 at port {self.at.address[1]}")
        print(READY, flush=True)
        beat_s = self.at.heartbeat_s / 5
        beaten = 0.0
        while True:
            for key, _ in self.events.select(beat_s / 2):
                host, lines, is_own = key.data
                if (ended := self._hear(host, lines, is_own)) is not None:
                    return ended
            now = time.monotonic()
            if now - beaten > beat_s:
                beaten = now
                for peer in self.peers.values():
                    _send(peer, host=self.at.index, kind=BEAT)
            for host, heard in self.heard.items():
                if now - heard > self.at.heartbeat_s and host not in self.left:
                    return self._judge(host, f"has not answered for {now - heard:.0f} s")

    def _hear(self, host: int, lines: Lines, is_own: bool) -> int | None:
        """Takes what has come from the run or a peer; the exit status where this is the end."""
        found = lines.read()
        if is_own:
            return self._of_run(found)
        if found is None:
            self.events.unregister(self.peers.pop(host))
            self.heard.pop(host)
            if host in self.left:
                return None
            return self._judge(host, "is gone, its machine or the network with it")
        self.heard[host] = time.monotonic()
        for event in found:
            if event["kind"] == BYE:
                self.left.add(event["host"])
            elif event["kind"] == VERDICT:
                return self._end(event["host"], event["text"])
            elif event["kind"] in (GONE, FAILED):
                return self._judge(event["host"], event["text"])
        return None

    def _of_run(self, found: list[dict[str, Any]] | None) -> int | None:
        """What the run on this host has to say; None, its end without a word, is a death."""
        told = found if found is not None else [{"kind": GONE, "text": "has ended: it was killed"}]
        for event in ({**one, "host": self.at.index} for one in told):
            if event["kind"] == BYE or self.is_main:
                for peer in self.peers.values():
                    _send(peer, **event)
            if event["kind"] == BYE:
                return 0
            if self.is_main:
                return self._judge(self.at.index, event["text"])
            self.events.unregister(sys.stdin.fileno())
            _send(self.peers[MAIN], **event)  # its verdict is waited for: another may be the cause
        return None

    def _judge(self, host: int, text: str) -> int:
        """The cause is found: told to all, as far as they can be reached."""
        for peer in self.peers.values():
            _send(peer, host=host, kind=VERDICT, text=text)
        return self._end(host, text)

    def _end(self, host: int, text: str) -> int:
        """Names the host, and ends the run of this one."""
        if host != self.at.index:
            print(f"error: {self.at.name(host)} {text}. {AGAIN}", file=sys.stderr, flush=True)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.at.run, signal.SIGKILL)
        return 1


def _greeting(connection: socket.socket, lines: Lines) -> dict[str, Any] | None:
    """What a new peer says first; None where it says nothing."""
    while select.select([connection], [], [], CONNECT_S)[0]:
        found = lines.read()
        if found is None:
            return None
        if found:
            return found[0]
    return None


def _line(**event: Any) -> bytes:
    return json.dumps(event).encode() + b"\n"


def _send(peer: socket.socket, **event: Any) -> None:
    with contextlib.suppress(OSError):  # whoever is gone is noticed by what it does not send
        peer.sendall(_line(**event))


def main() -> int:
    # A terminal's Ctrl-C reaches every process in it: the run decides what comes of it.
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    return Watch(Settings(**json.loads(sys.argv[1]))).run()


if __name__ == "__main__":
    sys.exit(main())
