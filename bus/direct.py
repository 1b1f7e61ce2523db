"""The ends of a data lane, which each I/O pays for: Unix SEQPACKET sockets in the place of ZeroMQ's, for bus.lane.

ZeroMQ moves each message through a thread of its own on either side: three wake-ups a hop where one will do, and four
hops for each I/O (docs/performance.md has the figures). Here a message is one send and one recv. What a lane relies on
is the same: a dealer names itself at each connection, and the router hears of that as of ZeroMQ's probe, an empty
message; what is sent while nobody is connected is refused at once; within a connection nothing is lost or reordered,
and nothing of a dead connection reaches the next one.
"""

import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

import zmq

from bus.loop import Handler, Loop
from common import limits

_NONBLOCK = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_SCHEME = "ipc://"
_NAME_BYTES = 255  # of a dealer's name; ZeroMQ's bound for the same
_NO_SIGNAL = int(socket.MSG_NOSIGNAL)


class _Connection:
    """One connected socket. Messages that it does not take at once wait here, in order."""

    def __init__(self, loop: Loop, sock: socket.socket, heard: Callable[[bytes], None], ended: Handler) -> None:
        self.heard, self._ended = heard, ended
        self._loop, self._socket = loop, sock
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
            self._socket.send(data, _NO_SIGNAL)
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
                    self._socket.send(self._waiting[0], _NO_SIGNAL)
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
        """One message: if there is another the loop comes back, after the others whose flood this must not starve.

        A batch is one message, so there seldom is; and to look for it would cost each lone I/O an exception.
        """
        try:
            data = self._socket.recv(limits.MAX_ENVELOPE + 1)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            return self.heard(data)
        self.close()
        self._ended()

    def close(self) -> None:
        if self.open:
            self.open = False
            self._stop_waiting()
            self._loop.unwatch(self._socket.fileno())
            self._socket.close()


class DirectRouter:
    """Binds. `heard(identity, data)` for each message."""

    def __init__(self, loop: Loop, endpoint: str, heard: Callable[[bytes, bytes], None]) -> None:
        """Whoever owns the role's name owns its sockets: a predecessor's is replaced, by one rename."""
        self._loop, self._heard = loop, heard
        self._peers: dict[bytes, _Connection] = {}
        self._connections: set[_Connection] = set()  # those that have not said their name yet, too
        path = Path(endpoint.removeprefix(_SCHEME))
        fresh = path.with_name(f".{os.getpid():x}")  # no longer than the name: a socket's path is short
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()
        self._listener = socket.socket(socket.AF_UNIX, _NONBLOCK)
        self._listener.bind(os.fspath(fresh))
        self._listener.listen(limits.MAX_EXPORTS * 2)
        fresh.rename(path)
        loop.watch(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return  # it has gone again
        if len(self._connections) >= limits.LANE_PEERS:
            sock.close()
            return
        sock.setblocking(False)

        def named(identity: bytes) -> None:
            if len(identity) > _NAME_BYTES:
                connection.close()
                return ended()
            self._peers[identity] = connection
            connection.heard = partial(self._heard, identity)
            self._heard(identity, b"")

        def ended() -> None:
            self._connections.discard(connection)
            for identity in [name for name, peer in self._peers.items() if peer is connection]:
                del self._peers[identity]

        connection = _Connection(self._loop, sock, named, ended)
        self._connections.add(connection)

    def send(self, identity: bytes, data: bytes) -> bool:
        """False: nobody of that name is connected, or it does not read."""
        connection = self._peers.get(identity)
        return connection is not None and connection.send(data)

    def close(self) -> None:
        """As the death of its process."""
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()
        for connection in self._connections:
            connection.close()


class DirectDealer:
    """Connects, again and again. `heard(data)` for each message."""

    def __init__(self, loop: Loop, endpoint: str, identity: bytes, heard: Callable[[bytes], None]) -> None:
        self._loop, self._identity, self._heard = loop, identity, heard
        self._path = endpoint.removeprefix(_SCHEME)
        self._connection: _Connection | None = None
        self._closed = False
        self._try()

    def _try(self) -> None:
        if self._closed:
            return
        sock = socket.socket(socket.AF_UNIX, _NONBLOCK)
        try:
            sock.connect(self._path)
            sock.send(self._identity, _NO_SIGNAL)
        except OSError:  # nobody is there, or its backlog is full
            sock.close()
            self._loop.after(limits.RECONNECT_MS / 1000, self._try)
            return
        self._connection = _Connection(self._loop, sock, self._heard, self._ended)

    def _ended(self) -> None:
        self._connection = None
        self._loop.after(0, self._try)

    def send(self, data: bytes) -> bool:
        """False: nobody is connected, or too much waits."""
        return self._connection is not None and self._connection.send(data)

    def close(self) -> None:
        """As the death of its process."""
        self._closed = True
        if self._connection is not None:
            self._connection.close()


class DirectContext:
    """In the place of a zmq.Context where a lane is made: that one is to have these ends."""
