"""Metrics of a side, on request: HTTP on a Unix socket in the runtime directory, and on a loopback port if wished.

Only the session does this (`with_metrics`, by tools.supervise.birth): it asks the others by their control lanes
without waiting for them, and answers with what has come after GATHER_S. Whoever scrapes can neither hold a role up nor
make work pile up: few connections at a time, each with a deadline, and one gathering for all.
"""

import os
import socket
from collections.abc import Callable
from typing import Any

import zmq

from bus.envelope import ANY_GENERATION, Envelope, Kind
from bus.role import Role
from bus.runtime import living, recorded_roles
from common import limits
from common.errors import Refused, WireError
from common.exposition import CONTENT_TYPE, families, text

_DEAF = ("spawner", "twin")  # they fork, and must not have ZeroMQ
Answers = dict[str, Any]


def with_metrics(start: Callable[[Role], None]) -> Callable[[Role], None]:
    """A role's `start` that has it answer for the metrics of its side as well."""

    def begin(role: Role) -> None:
        start(role)
        Metrics(role)

    return begin


class Metrics:
    """`args["metrics"]` of the session's plan may name HOST:PORT, which must be a loopback address."""

    def __init__(self, role: Role) -> None:
        self._role = role
        self._open = 0
        self._gathering: Gathering | None = None
        path = role.runtime.metrics_socket()
        path.unlink(missing_ok=True)  # a dead predecessor's: the name is ours (bus.runtime.take_name)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        listener.bind(os.fspath(path))
        self._listen(listener)
        if where := role.args.get("metrics"):
            try:
                self._listen(_loopback(str(where)))
            except (Refused, OSError) as error:  # metrics never cost a disk its session
                role.log.error(f"no metrics on {where}: {error}; the socket {path.name} has them")

    def _listen(self, listener: socket.socket) -> None:
        listener.listen(limits.SCRAPES)
        self._role.loop.watch(listener.fileno(), lambda: self._accept(listener))

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return  # it has left again
        if self._open >= limits.SCRAPES:
            connection.close()
            return
        self._open += 1
        _Scrape(self._role, connection, self._gather, self._left)

    def _left(self) -> None:
        self._open -= 1

    def _gather(self, then: Callable[[str], None]) -> None:
        """Those who come while one gathering goes on are answered by it."""
        if self._gathering is None:
            self._gathering = Gathering(self._role, self._gathered)
        self._gathering.waiting.append(then)

    def _gathered(self, gathering: "Gathering") -> None:
        self._gathering = None
        runtime = self._role.runtime
        body = text(families(runtime.side.value, runtime.instance, self._role.status(), gathering.answers))
        for then in gathering.waiting:
            then(body)


class Gathering:
    """The status of every other living role, as far as it comes in time."""

    def __init__(self, role: Role, done: Callable[["Gathering"], None]) -> None:
        self._role, self._done = role, done
        self.answers: Answers = {}
        self.waiting: list[Callable[[str], None]] = []
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        call = Envelope(Kind.CALL, role.name, role.generation, ANY_GENERATION, [1, "status", {}]).encode()
        runtime = role.runtime
        for name in recorded_roles(runtime):
            if name not in (*_DEAF, role.name) and living(runtime, name) is not None:
                end = role.context.socket(zmq.DEALER)
                end.set(zmq.LINGER, 0)
                end.set(zmq.RECONNECT_IVL, limits.RECONNECT_MS)
                end.connect(runtime.endpoint(name, "control"))
                end.send(call, zmq.DONTWAIT)
                self._sockets[name] = end
                role.loop.watch(end, lambda name=name: self._answered(name))  # type: ignore[misc]
        self._timer = role.loop.after(limits.GATHER_S if self._sockets else 0.0, self._finish)

    def _answered(self, name: str) -> None:
        end = self._sockets.get(name)
        if end is None:
            return
        try:
            body = Envelope.decode(end.recv(zmq.DONTWAIT)).body
        except zmq.Again:
            return
        except WireError:
            body = None
        if isinstance(body, list) and len(body) == 4 and body[1] and isinstance(body[2], dict):
            self.answers[name] = body[2]
        self._leave(name)
        if not self._sockets:
            self._timer.cancel()
            self._role.loop.after(0.0, self._finish)  # not from within the socket's own handler

    def _leave(self, name: str) -> None:
        end = self._sockets.pop(name)
        self._role.loop.unwatch(end)
        end.close()

    def _finish(self) -> None:
        for name in list(self._sockets):
            self._leave(name)
        self._done(self)


class _Scrape:
    """One connection: a request's head in, one answer out, closed."""

    def __init__(
        self,
        role: Role,
        connection: socket.socket,
        gather: Callable[[Callable[[str], None]], None],
        left: Callable[[], None],
    ) -> None:
        self._loop, self._connection, self._gather, self._left = role.loop, connection, gather, left
        connection.setblocking(False)
        self._head, self._answer = b"", b""
        self._closed = False
        self._loop.watch(connection.fileno(), self._readable)
        self._timer = self._loop.after(limits.SCRAPE_S, self._close)

    def _readable(self) -> None:
        try:
            data = self._connection.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            return self._close()
        self._head += data
        if not data or len(self._head) > 8192:
            return self._close()
        if b"\r\n\r\n" in self._head or b"\n\n" in self._head:
            self._loop.unwatch(self._connection.fileno())
            self._obey(self._head.split(b"\n", 1)[0].split())

    def _obey(self, request: list[bytes]) -> None:
        if len(request) == 3 and request[0] == b"GET" and request[1].split(b"?")[0] == b"/metrics":
            self._gather(lambda body: self._send("200 OK", CONTENT_TYPE, body))
        elif len(request) == 3 and request[0] == b"GET":
            self._send("404 Not Found", "text/plain", "replug: only /metrics is here\n")
        else:
            self._send("405 Method Not Allowed", "text/plain", "replug: GET /metrics\n")

    def _send(self, status: str, content_type: str, body: str) -> None:
        if self._closed:
            return  # it was too slow
        data = body.encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(data)}\r\nConnection: close"
        self._answer = head.encode() + b"\r\n\r\n" + data
        self._loop.watch(self._connection.fileno(), self._writable, zmq.POLLOUT)

    def _writable(self) -> None:
        try:
            self._answer = self._answer[self._connection.send(self._answer) :]
        except BlockingIOError:
            return
        except OSError:
            return self._close()
        if not self._answer:
            self._close()

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            self._timer.cancel()
            self._loop.unwatch(self._connection.fileno())
            self._connection.close()
            self._left()


def _loopback(where: str) -> socket.socket:
    """Listening on HOST:PORT. Refused for anything that other machines reach: there is no password."""
    try:
        host, port = checked_address(where)
    except Refused as error:
        raise Refused(f"metrics: {error}") from None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a successor binds what its predecessor had
    listener.bind((host, port))
    return listener


def checked_address(where: str) -> tuple[str, int]:
    """HOST:PORT of this machine alone: 127.x.x.x or [::1]."""
    host, _, port = where.rpartition(":")
    host = {"localhost": "127.0.0.1", "[::1]": "::1"}.get(host, host)
    if not (host == "::1" or host.startswith("127.")) or not port.isascii() or not port.isdigit():
        raise Refused(f"{where!r} is not a loopback HOST:PORT: use 127.0.0.1:PORT or [::1]:PORT")
    if not 0 < int(port) < 65536:
        raise Refused(f"{where!r}: its port is not in 1..65535")
    return host, int(port)
