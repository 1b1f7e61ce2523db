"""The model process: the cable, FunctionFS, usbfs, the ublk driver and the block layer behind one listening socket.

Executed by tests.native.model. One thread, one loop. A connection is something that a process has open
(usb_ends, ublk_ends); its end is that process's death or its close. Deaths are looked at before what others say: a
successor exists only after its predecessor is dead, and a kernel cleans up before it says so.
"""

import os
import select
import socket
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, cast

import msgpack

from tests.native.clock import RealWorld
from tests.native.wire import MESSAGE_BYTES
from tests.sim.model_link import Link
from tests.sim.model_ublk import Driver
from tests.sim.world import World

_BATCH_BYTES = 96 << 10  # of one pushed message: a socket's buffer takes twice that


class End(Protocol):
    """What a connection stands for."""

    def heard(self, message: list[Any]) -> None: ...
    def closed(self) -> None: ...


class Connection:
    """A process's end of something. `answer` for its calls, `push` for what happens by itself."""

    def __init__(self, machine: "Machine", sock: socket.socket) -> None:
        self.machine, self.socket = machine, sock
        self.end: End | None = None
        self.alive = True
        self._pushed: list[Any] = []
        self._pushed_bytes = 0
        self._outbox: deque[bytes] = deque()

    def answer(self, value: Any = None, fds: tuple[int, ...] = ()) -> None:
        if not self.alive:
            return
        if fds:
            socket.send_fds(self.socket, [msgpack.packb(["ok", value])], list(fds))
        else:
            self._send(msgpack.packb(["ok", value]))

    def fail(self, number: int, text: str = "") -> None:
        self._send(msgpack.packb(["error", number, text or os.strerror(number)]))

    def push(self, item: Any, size_bytes: int = 0) -> None:
        if self._pushed and self._pushed_bytes + size_bytes > _BATCH_BYTES:
            self.flush()
        self._pushed.append(item)
        self._pushed_bytes += size_bytes
        self.machine.pushing.add(self)

    def flush(self) -> None:
        if self._pushed:
            data, self._pushed, self._pushed_bytes = msgpack.packb(self._pushed), [], 0
            self._send(data)

    def _send(self, data: bytes) -> None:
        if self.alive:
            self._outbox.append(data)
            self.drain()

    def drain(self) -> None:
        """To a process that is stopped nothing goes; it does not hold us up."""
        try:
            while self._outbox:
                self.socket.send(self._outbox[0], socket.MSG_DONTWAIT)
                self._outbox.popleft()
        except BlockingIOError:
            self.machine.poll.modify(self.socket, select.EPOLLIN | select.EPOLLOUT)
            return
        except OSError:
            return  # dead: its end is on the way
        self.machine.poll.modify(self.socket, select.EPOLLIN)

    def read(self) -> None:
        while self.alive:
            try:
                data = self.socket.recv(MESSAGE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                return self.close()
            self._heard(msgpack.unpackb(data))

    def _heard(self, message: list[Any]) -> None:
        try:
            if self.end is None:
                self.end = self.machine.open(self, message)
            else:
                self.end.heard(message)
        except OSError as error:
            self.fail(error.errno or 0, error.strerror or "")

    def close(self) -> None:
        self.alive = False
        self.machine.forget(self)
        if self.end is not None:
            self.end.closed()


class Machine:
    """Both machines' kernels, and the cable between them."""

    def __init__(self, path: str, seed: int, v0: bool) -> None:
        self.world = RealWorld(seed)
        world = cast(World, self.world)
        self.link, self.driver = Link(world, v0), Driver(world)
        self.openers: dict[str, Callable[[Connection, list[Any]], End]] = {}
        self.calls: dict[str, Callable[..., Any]] = {}
        self.pushing: set[Connection] = set()
        self.blocked: list[tuple[Connection, Callable[[], bool], Callable[[], None]]] = []
        self.poll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._listener.bind(path)
        self._listener.listen(64)
        self._listener.setblocking(False)
        self.watch(self._listener, lambda events: self._accept())
        self.openers["call"] = Calls

    def watch(self, sock: socket.socket, handler: Callable[[int], None]) -> None:
        self._handlers[sock.fileno()] = handler
        self.poll.register(sock, select.EPOLLIN)

    def unwatch(self, sock: socket.socket) -> None:
        if self._handlers.pop(sock.fileno(), None) is not None:
            self.poll.unregister(sock)
            sock.close()

    def forget(self, connection: Connection) -> None:
        self.blocked = [item for item in self.blocked if item[0] is not connection]
        self.pushing.discard(connection)
        self.unwatch(connection.socket)

    def block(self, connection: Connection, until: Callable[[], bool], then: Callable[[], None]) -> None:
        """A call that waits in the kernel. `then` answers; it is never called if the caller dies."""
        self.blocked.append((connection, until, then))

    def open(self, connection: Connection, message: list[Any]) -> End:
        return self.openers[message[0]](connection, message[1:])

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            connection = Connection(self, sock)

            def ready(events: int, connection: Connection = connection) -> None:
                if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                    connection.read()
                if events & select.EPOLLOUT and connection.alive:
                    connection.drain()

            self.watch(sock, ready)

    def run(self) -> None:
        while True:
            ready = self.poll.poll(self.world.wait_s())
            ready.sort(key=lambda item: not item[1] & select.EPOLLHUP)  # deaths first
            for fd, events in ready:
                handler = self._handlers.get(fd)
                if handler is not None:
                    self._guarded(lambda handler=handler, events=events: handler(events))  # type: ignore[misc]
            self._guarded(self.world.run_due)
            self._guarded(self._unblock)
            while self.pushing:
                self.pushing.pop().flush()

    def _unblock(self) -> None:
        for item in list(self.blocked):
            connection, until, then = item
            if until():
                self.blocked.remove(item)
                try:
                    then()
                except OSError as error:
                    connection.fail(error.errno or 0, error.strerror or "")

    def _guarded(self, call: Callable[[], None]) -> None:
        """A fault of the model's is told as such, and never mistaken for one of the product's."""
        try:
            call()
        except Exception:
            self.world.violate(f"the model itself: {traceback.format_exc()}")


class Calls:
    """A connection for calls: `[name, ...]`, answered at once with what the call returns, or, LATER, by itself."""

    LATER = object()

    def __init__(self, connection: Connection, opening: list[Any]) -> None:
        self._connection = connection
        connection.answer()

    def heard(self, message: list[Any]) -> None:
        value = self._connection.machine.calls[message[0]](self._connection, *message[1:])
        if value is not Calls.LATER:
            self._connection.answer(value)

    def closed(self) -> None:
        return None
