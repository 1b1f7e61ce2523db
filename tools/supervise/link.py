"""The watchdog's end of the spawner's socket: connect and reconnect, orders out, events in, and mutual suspicion.

A spawner that does not answer beats is killed, for its twin to take its place; if no spawner comes back at all, a fresh
one is executed. Called by tools.supervise.watchdog only.
"""

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from types import NoneType
from typing import Any

from bus import fds as fdsocket
from bus.loop import Loop
from bus.runtime import Runtime, living
from common import limits
from common.errors import Gone, WireError
from common.log import Log
from common.shown import shown
from tools.supervise.launch import SPAWNER, kill, launch

_RETRY_S = limits.RECONNECT_MS / 1000
_RELAUNCH_S = 20.0  # a fresh start takes seconds in the emulated guest
_NUMBER, _TEXT, _NUMBER_OR_NONE = (int,), (str,), (int, NoneType)
_EVENTS: dict[str, dict[str, tuple[type, ...]]] = {
    "hello": {"pid": _NUMBER, "twin": _NUMBER_OR_NONE, "children": (list,)},
    "twin": {"pid": _NUMBER_OR_NONE},
    "spawned": {"role": _TEXT, "serial": _NUMBER, "pid": _NUMBER, "generation": _NUMBER},
    "refused": {"role": _TEXT, "serial": _NUMBER, "why": _TEXT},
    "exit": {"role": _TEXT, "pid": _NUMBER, "status": _NUMBER_OR_NONE},
}


def check_event(message: dict[str, Any], received: list[int]) -> None:
    """Has an event all that is read of it? Raises WireError, and its descriptors are closed."""
    event = message.get("event")
    fields = _EVENTS.get(event, {}) if isinstance(event, str) else {}
    lacking = [name for name, types in fields.items() if not isinstance(message.get(name), types)]
    if event == "hello" and not lacking and not all(type(pid) is int for pid in message["children"]):
        lacking = ["children"]
    if lacking or (fields and len(received) != (event == "spawned")):
        for fd in received:
            os.close(fd)
        raise WireError(f"event {shown(repr(event), 40)}: with {len(received)} descriptors, malformed {lacking}")


class SpawnerLink:
    """`on_up(greeting)` at each new spawner, `on_event(event, fds)` for what it tells."""

    def __init__(
        self,
        loop: Loop,
        log: Log,
        runtime: Runtime,
        on_up: Callable[[dict[str, Any]], None],
        on_event: Callable[[dict[str, Any], list[int]], None],
    ) -> None:
        self._loop, self._log, self._runtime = loop, log, runtime
        self._on_up, self._on_event = on_up, on_event
        self._socket: socket.socket | None = None
        self._greeted = False
        self._lost_at = loop.now()
        self._unanswered = 0  # beats in a row
        self._fresh: subprocess.Popen[bytes] | None = None
        self.children: set[int] = set()
        self.twin: int | None = None
        loop.beat(limits.BEAT_S, self._beat)
        self._connect()

    @property
    def lost_at(self) -> float | None:
        """Since when there is no spawner (the loop's time); None: there is one."""
        return self._lost_at if self._socket is None else None

    def send(self, order: dict[str, Any]) -> bool:
        """False if it is not under way (no spawner has greeted us): its greeting is the moment to order again."""
        if self._socket is None or not self._greeted:
            return False
        try:
            fdsocket.send(self._socket, order)
        except BlockingIOError:
            return False
        except (Gone, OSError):
            self._lost()
            return False
        return True

    def _connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.setblocking(False)
        try:
            sock.connect(os.fspath(self._runtime.spawner_socket()))
            fdsocket.send(sock, {"do": "watch"})
        except (OSError, Gone):
            sock.close()
            self._think_of_fresh()
            self._loop.after(_RETRY_S, self._connect)
            return
        self._socket, self._unanswered = sock, 0
        self._loop.watch(sock.fileno(), self._readable)

    def _think_of_fresh(self) -> None:
        now = self._loop.now()
        if self._fresh is not None and self._fresh.poll() is None:
            return
        if now - self._lost_at > limits.SPAWNER_GONE_S and living(self._runtime, SPAWNER) is None:
            self._log.error("spawner and twin are dead: a fresh spawner is executed")
            self._fresh = launch(self._runtime)
            self._lost_at = now + _RELAUNCH_S

    def _readable(self) -> None:
        while self._socket is not None:
            try:
                message, received = fdsocket.receive(self._socket)
                check_event(message, received)
            except BlockingIOError:
                return
            except WireError as error:
                self._log.warning(f"spawner: {error}")
                continue
            except (Gone, OSError):
                self._lost()
                return
            self._take(message, received)

    def _take(self, message: dict[str, Any], received: list[int]) -> None:
        self._unanswered = 0
        match message.get("event"):
            case "hello":
                self.children, self.twin, self._greeted = set(message["children"]), message["twin"], True
                self._log.info(f"spawner is {message['pid']}, its twin {self.twin}")
                self._on_up(message)
            case "twin":
                self.twin = message["pid"]
            case "beat":
                pass
            case "spawned":
                self.children.add(message["pid"])
                self._on_event(message, received)
            case "exit":
                self.children.discard(message["pid"])
                self._on_event(message, received)
            case _:
                self._on_event(message, received)

    def _lost(self) -> None:
        if self._socket is not None:
            self._loop.unwatch(self._socket.fileno())
            self._socket.close()
            self._socket, self._greeted, self._lost_at = None, False, self._loop.now()
            self.children = set()
            self._log.warning("spawner is dead: waiting for its twin")
            self._connect()

    def _beat(self) -> None:
        if self._socket is None:
            return
        if self._unanswered * limits.BEAT_S >= limits.SILENT_WAITS * limits.SILENCE_S:
            record = living(self._runtime, SPAWNER)
            if record is not None:
                self._log.error(f"spawner {record.pid} is silent: killed with {signal.SIGKILL.name}")
                kill([record])
            self._unanswered = 0
        self.send({"do": "beat"})
        self._unanswered += 1
