"""Sockets for a data lane that a lone I/O pays for: Unix SEQPACKET sockets in ZeroMQ's clothes, for bus.lane.

ZeroMQ moves each message through a thread of its own on either side: three wake-ups a hop where one will do, and four
hops for each I/O (docs/performance.md has the figures). Here a message is one send and one recv. What a lane relies on
is the same: a dealer names itself at each connection and the router hears of that as of a probe; what is sent while
nobody is connected is refused at once; within a connection nothing is lost or reordered, and nothing of a dead
connection reaches the next one.
"""

import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable
from errno import EHOSTUNREACH
from pathlib import Path

import zmq

from bus.loop import Handler, Loop, OwnSocket
from common import limits

_NONBLOCK = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_SCHEME = "ipc://"
_BURST = 16  # messages read for each wake-up
_NAME_BYTES = 255  # of a dealer's name; ZeroMQ's bound for the same
Frames = list[bytes]


class _Connection:
    """One connected socket. Messages that it does not take at once wait here, in order."""

    def __init__(self, loop: Loop, sock: socket.socket, heard: Callable[[bytes], None], ended: Handler) -> None:
        self._loop, self._socket, self._heard, self._ended = loop, sock, heard, ended
        self._waiting: deque[bytes] = deque()
        self._writable = -1  # a second descriptor, watched for room while something waits
        self.open = True
        loop.watch(sock.fileno(), self._readable)

    def send(self, data: bytes) -> bool:
        """False: too much waits already; a peer that reads never lets it come to that."""
        if self._waiting:
            if len(self._waiting) >= limits.LANE_HWM:
                return False
            self._waiting.append(data)
            return True
        try:
            self._socket.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            self._waiting.append(data)
            self._writable = os.dup(self._socket.fileno())
            self._loop.watch(self._writable, self._drain, zmq.POLLOUT)
        except OSError:
            return False  # dead: its end is read next
        return True

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            try:
                while self._waiting:
                    self._socket.send(self._waiting[0], socket.MSG_NOSIGNAL)
                    self._waiting.popleft()
            except BlockingIOError:
                raise
            except OSError:
                self._waiting.clear()
            self._stop_waiting()

    def _stop_waiting(self) -> None:
        if self._writable >= 0:
            self._loop.unwatch(self._writable)
            os.close(self._writable)
            self._writable = -1

    def _readable(self) -> None:
        """All that is there, so that one flush answers it; but a flood must not starve the others."""
        for _ in range(_BURST):
            try:
                data = self._socket.recv(limits.MAX_ENVELOPE + 1)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.close()
                return self._ended()
            self._heard(data)
            if not self.open:
                return

    def close(self) -> None:
        if self.open:
            self.open = False
            self._stop_waiting()
            self._loop.unwatch(self._socket.fileno())
            self._socket.close()


class DirectSocket(OwnSocket):
    """What both kinds share of the calls that bus.lane makes on a zmq.Socket: it reads what `heard` has put here."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._inbox: deque[Frames] = deque()
        self._rest: Frames = []
        self._handler: Handler = lambda: None

    def watched(self, handler: Handler) -> None:
        self._handler = handler

    def set(self, option: int, value: int | bytes) -> None:
        """ZeroMQ's options say what is always so here; a dealer wants its name."""

    def getsockopt(self, option: int) -> int:
        if option == zmq.RCVMORE:
            return len(self._rest)
        return int(zmq.POLLIN) if self._inbox else 0

    def recv(self, flags: int) -> bytes:
        """Frame by frame, as has_message and RCVMORE tell."""
        if not self._rest:
            self._rest = self._inbox.popleft()
        return self._rest.pop(0)

    def _take(self, frames: Frames) -> None:
        self._inbox.append(frames)
        self._handler()


class DirectRouter(DirectSocket):
    """Binds. A message to or from a dealer has the dealer's name in front."""

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop)
        self._peers: dict[bytes, _Connection] = {}
        self._connections: set[_Connection] = set()  # those that have not said their name yet, too
        self._addressee: bytes | None = None

    def bind(self, endpoint: str) -> None:
        """Whoever owns the role's name owns its sockets: a predecessor's is replaced, by one rename."""
        path = Path(endpoint.removeprefix(_SCHEME))
        fresh = path.with_name(f".{os.getpid():x}")  # no longer than the name: a socket's path is short
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()
        self._listener = socket.socket(socket.AF_UNIX, _NONBLOCK)
        self._listener.bind(os.fspath(fresh))
        self._listener.listen(limits.MAX_EXPORTS * 2)
        fresh.rename(path)
        self._loop.watch(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return  # it has gone again
        if len(self._connections) >= limits.LANE_PEERS:
            sock.close()
            return
        sock.setblocking(False)
        name: list[bytes] = []

        def heard(data: bytes) -> None:
            if name:
                return self._take([name[0], data])
            if len(data) > _NAME_BYTES:
                connection.close()
                return ended()
            name.append(data)
            self._peers[data] = connection
            self._take([data, b""])

        def ended() -> None:
            self._connections.discard(connection)
            if name and self._peers.get(name[0]) is connection:
                del self._peers[name[0]]

        connection = _Connection(self._loop, sock, heard, ended)
        self._connections.add(connection)

    def send(self, data: bytes, flags: int) -> None:
        """First the addressee, with SNDMORE, then the message. EHOSTUNREACH if nobody of that name is connected."""
        if flags & zmq.SNDMORE:
            if data not in self._peers:
                raise zmq.ZMQError(EHOSTUNREACH)
            self._addressee = data
            return
        name, self._addressee = self._addressee, None
        connection = self._peers.get(name) if name is not None else None
        if connection is None or not connection.send(data):
            raise zmq.ZMQError(EHOSTUNREACH)

    def close(self) -> None:
        """As the death of its process."""
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()
        for connection in self._connections:
            connection.close()


class DirectDealer(DirectSocket):
    """Connects, again and again."""

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop)
        self._name, self._path = b"", ""
        self._connection: _Connection | None = None
        self._closed = False

    def set(self, option: int, value: int | bytes) -> None:
        if option == zmq.IDENTITY and isinstance(value, bytes):
            self._name = value

    def connect(self, endpoint: str) -> None:
        self._path = endpoint.removeprefix(_SCHEME)
        self._try()

    def _try(self) -> None:
        if self._closed:
            return
        sock = socket.socket(socket.AF_UNIX, _NONBLOCK)
        try:
            sock.connect(self._path)
            sock.send(self._name, socket.MSG_NOSIGNAL)
        except OSError:  # nobody is there, or its backlog is full
            sock.close()
            self._loop.after(limits.RECONNECT_MS / 1000, self._try)
            return
        self._connection = _Connection(self._loop, sock, lambda data: self._take([data]), self._ended)

    def _ended(self) -> None:
        self._connection = None
        self._loop.after(0, self._try)

    def send(self, data: bytes, flags: int) -> None:
        """Again if nobody is connected, or too much waits."""
        if self._connection is None or not self._connection.send(data):
            raise zmq.Again

    def close(self) -> None:
        """As the death of its process."""
        self._closed = True
        if self._connection is not None:
            self._connection.close()


class DirectContext:
    """In the place of a zmq.Context where a lane is made."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def router(self) -> DirectRouter:
        return DirectRouter(self._loop)

    def dealer(self) -> DirectDealer:
        return DirectDealer(self._loop)
