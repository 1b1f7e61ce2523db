"""The ends of a lane over ZeroMQ: what bus.lane needs of a ROUTER and a DEALER, and nothing of generations.

A dealer's socket probes the router at every new connection (ZMQ_PROBE_ROUTER): that arrives as an empty message.
ZMQ_IMMEDIATE gives each connection a pipe of its own, so nothing queued for a dead router reaches its successor.
"""

from collections.abc import Callable, Iterator

import zmq

from bus.loop import Loop, has_message
from common import limits

_BURST = 64  # messages read for each wake-up
_NOW, _MORE = int(zmq.DONTWAIT), int(zmq.SNDMORE)  # flags of an Enum cost more than the call they are for


class _End:
    def __init__(self, loop: Loop, socket: "zmq.Socket[bytes]") -> None:
        self._loop, self.socket = loop, socket
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.SNDHWM, limits.LANE_HWM)
        socket.set(zmq.RCVHWM, limits.LANE_HWM)
        socket.set(zmq.MAXMSGSIZE, limits.MAX_ENVELOPE)

    def _messages(self) -> Iterator[list[bytes]]:
        """The messages that are there, at most _BURST of them: a flood on one lane must not starve the others."""
        for _ in range(_BURST):
            if not has_message(self.socket):
                return
            frames = [self.socket.recv(_NOW)]
            while self.socket.getsockopt(zmq.RCVMORE):
                frames.append(self.socket.recv(_NOW))
            yield frames
        self._loop.stir(self.socket)


class ZmqRouter(_End):
    """Binds. `heard(identity, data)` for each message, `strange(why)` for what is none."""

    def __init__(
        self,
        loop: Loop,
        context: "zmq.Context[zmq.Socket[bytes]]",
        endpoint: str,
        heard: Callable[[bytes, bytes], None],
        strange: Callable[[str], None],
    ) -> None:
        super().__init__(loop, context.socket(zmq.ROUTER))
        self._heard, self._strange = heard, strange
        self.socket.set(zmq.ROUTER_MANDATORY, 1)
        self.socket.bind(endpoint)
        loop.watch(self.socket, self._readable)

    def _readable(self) -> None:
        for frames in self._messages():
            if len(frames) == 2:
                self._heard(frames[0], frames[1])
            else:
                self._strange(f"{len(frames)} frames, not 2")

    def send(self, identity: bytes, data: bytes) -> bool:
        """False: its pipe is gone (EHOSTUNREACH), or it does not read (EAGAIN: above the high-water mark)."""
        self._loop.stir(self.socket)
        try:
            self.socket.send(identity, _NOW | _MORE)
            self.socket.send(data, _NOW)
        except zmq.ZMQError:
            return False
        return True


class ZmqDealer(_End):
    """Connects, again and again. `heard(data)` for each message."""

    def __init__(
        self,
        loop: Loop,
        context: "zmq.Context[zmq.Socket[bytes]]",
        endpoint: str,
        identity: bytes,
        heard: Callable[[bytes], None],
    ) -> None:
        super().__init__(loop, context.socket(zmq.DEALER))
        self._heard = heard
        self.socket.set(zmq.IDENTITY, identity)
        self.socket.set(zmq.PROBE_ROUTER, 1)
        self.socket.set(zmq.IMMEDIATE, 1)
        self.socket.set(zmq.RECONNECT_IVL, limits.RECONNECT_MS)
        self.socket.set(zmq.RECONNECT_IVL_MAX, 0)
        self.socket.connect(endpoint)
        loop.watch(self.socket, self._readable)

    def _readable(self) -> None:
        for frames in self._messages():
            self._heard(frames[-1])

    def send(self, data: bytes) -> bool:
        """False: no connection, or a full one."""
        self._loop.stir(self.socket)
        try:
            self.socket.send(data, _NOW)
        except zmq.Again:
            return False
        return True
