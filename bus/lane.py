"""A lane between a server role (ROUTER, binds) and its client roles (DEALER, connect), aware of generations.

The hand-shake is what makes any start order and any death work: the client's socket probes the server at every new
connection (ZMQ_PROBE_ROUTER), the server answers WELCOME with its generation, the client answers HELLO with its own.
ZMQ_IMMEDIATE gives each connection a pipe of its own, so nothing queued for a dead server reaches its successor. Each
side learns of every new incarnation of the other exactly once (`on_peer`) and then replays what it has outstanding;
until then `send` drops, because the replay will carry it. Messages for or from another generation are dropped.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import zmq

from bus.direct import DirectContext, DirectDealer, DirectRouter, DirectSocket
from bus.envelope import ANY_GENERATION, Body, Envelope, Kind
from bus.loop import Loop, has_message
from common import limits
from common.errors import WireError

_BURST = 64  # messages read for each wake-up

Context = zmq.Context["zmq.Socket[bytes]"] | DirectContext


class _Warn(Protocol):
    def warning(self, text: str) -> None: ...


class _Lane:
    """What both ends share: identity, counters, decoding."""

    def __init__(self, loop: Loop, log: _Warn, role: str, generation: int) -> None:
        self._loop, self._log, self._role, self._generation = loop, log, role, generation
        self.malformed = 0
        self.stale = 0

    def _encode(self, kind: Kind, addressee: int, body: Body) -> bytes:
        return Envelope(kind, self._role, self._generation, addressee, body).encode()

    def _decode(self, data: bytes) -> Envelope | None:
        try:
            envelope = Envelope.decode(data)
        except WireError as error:
            self._refuse(str(error))
            return None
        if envelope.addressee_generation not in (self._generation, ANY_GENERATION):
            self.stale += 1
            return None
        return envelope

    def _receive(self, socket: "zmq.Socket[bytes] | DirectSocket") -> Iterator[list[bytes]]:
        """The messages that are there, at most _BURST of them: a flood on one lane must not starve the others."""
        for _ in range(_BURST):
            if not has_message(socket):
                return
            frames = [socket.recv(zmq.DONTWAIT)]
            while socket.getsockopt(zmq.RCVMORE):
                frames.append(socket.recv(zmq.DONTWAIT))
            yield frames
        self._loop.stir(socket)

    def _refuse(self, why: str) -> None:
        self.malformed += 1
        if self.malformed <= 10 or self.malformed % 1000 == 0:
            self._log.warning(f"bus: dropped a message ({self.malformed} so far): {why}")


class LaneServer(_Lane):
    """Serves one lane. `on_peer(role, generation, hello)`, `on_message(role, kind, body)`.

    A handler that cannot make sense of a body raises WireError: the message is counted and dropped.
    """

    def __init__(
        self,
        loop: Loop,
        context: Context,
        log: _Warn,
        role: str,
        generation: int,
        endpoint: str,
        on_peer: Callable[[str, int, Body], None],
        on_message: Callable[[str, Kind, Body], None],
    ) -> None:
        super().__init__(loop, log, role, generation)
        self._on_peer, self._on_message = on_peer, on_message
        self._peers: dict[str, tuple[int, bytes]] = {}
        self._socket: zmq.Socket[bytes] | DirectRouter = (
            context.router() if isinstance(context, DirectContext) else context.socket(zmq.ROUTER)
        )
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.ROUTER_MANDATORY, 1)
        self._socket.set(zmq.SNDHWM, limits.LANE_HWM)
        self._socket.set(zmq.RCVHWM, limits.LANE_HWM)
        self._socket.set(zmq.MAXMSGSIZE, limits.MAX_ENVELOPE)
        self._socket.bind(endpoint)
        loop.watch(self._socket, self._readable)

    def send(self, role: str, kind: Kind, body: Body) -> bool:
        """To the present incarnation of `role`. False if there is none (its successor will be told by replay)."""
        peer = self._peers.get(role)
        if peer is None:
            return False
        return self._send_to(peer[1], self._encode(kind, peer[0], body))

    def _send_to(self, identity: bytes, data: bytes) -> bool:
        self._loop.stir(self._socket)
        try:
            self._socket.send(identity, zmq.DONTWAIT | zmq.SNDMORE)
            self._socket.send(data, zmq.DONTWAIT)
        except zmq.ZMQError:  # EHOSTUNREACH: its pipe is gone; EAGAIN: above the high-water mark, so it does not read
            return False
        return True

    def broadcast(self, kind: Kind, body: Body) -> None:
        for role in list(self._peers):
            self.send(role, kind, body)

    def generation_of(self, role: str) -> int | None:
        peer = self._peers.get(role)
        return peer[0] if peer else None

    def forget(self, role: str) -> None:
        self._peers.pop(role, None)

    def _readable(self) -> None:
        for frames in self._receive(self._socket):
            if len(frames) != 2:
                self._refuse(f"{len(frames)} frames, not 2")
            elif frames[1] == b"":
                self._welcome(frames[0])
            else:
                envelope = self._decode(frames[1])
                if envelope is not None:
                    self._take(frames[0], envelope)

    def _welcome(self, identity: bytes) -> None:
        # A stranger that has gone again will probe again when it is back.
        self._send_to(identity, self._encode(Kind.WELCOME, ANY_GENERATION, None))

    def _take(self, identity: bytes, envelope: Envelope) -> None:
        role, generation = envelope.sender, envelope.sender_generation
        known = self._peers.get(role)
        try:
            if envelope.kind is Kind.HELLO:
                if known is None or generation > known[0]:
                    self._peers[role] = (generation, identity)
                    self._on_peer(role, generation, envelope.body)
                elif generation == known[0]:
                    self._peers[role] = (generation, identity)
            elif known is not None and known[0] == generation:
                self._on_message(role, envelope.kind, envelope.body)
            else:
                self.stale += 1
        except WireError as error:
            self._refuse(f"{role}: {error}")


class LaneClient(_Lane):
    """One role's end of a lane. `on_peer(generation)` at every new incarnation of the server, after our HELLO."""

    def __init__(
        self,
        loop: Loop,
        context: Context,
        log: _Warn,
        role: str,
        generation: int,
        endpoint: str,
        hello: Callable[[], Body],
        on_peer: Callable[[int], None],
        on_message: Callable[[Kind, Body], None],
    ) -> None:
        super().__init__(loop, log, role, generation)
        self._hello, self._on_peer, self._on_message = hello, on_peer, on_message
        self.peer_generation: int | None = None
        self._socket: zmq.Socket[bytes] | DirectDealer = (
            context.dealer() if isinstance(context, DirectContext) else context.socket(zmq.DEALER)
        )
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.IDENTITY, f"{role}@{generation}".encode())
        self._socket.set(zmq.PROBE_ROUTER, 1)
        self._socket.set(zmq.IMMEDIATE, 1)
        self._socket.set(zmq.RECONNECT_IVL, limits.RECONNECT_MS)
        self._socket.set(zmq.RECONNECT_IVL_MAX, 0)
        self._socket.set(zmq.SNDHWM, limits.LANE_HWM)
        self._socket.set(zmq.RCVHWM, limits.LANE_HWM)
        self._socket.set(zmq.MAXMSGSIZE, limits.MAX_ENVELOPE)
        self._socket.connect(endpoint)
        loop.watch(self._socket, self._readable)

    def send(self, kind: Kind, body: Body) -> bool:
        """To the present incarnation of the server. False if none is known or its pipe is gone."""
        if self.peer_generation is None:
            return False
        return self._send(kind, body, self.peer_generation)

    def _send(self, kind: Kind, body: Body, addressee: int) -> bool:
        self._loop.stir(self._socket)
        try:
            self._socket.send(self._encode(kind, addressee, body), zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def _readable(self) -> None:
        for frames in self._receive(self._socket):
            envelope = self._decode(frames[-1])
            if envelope is not None:
                self._take(envelope)

    def _take(self, envelope: Envelope) -> None:
        if envelope.kind is Kind.WELCOME:
            generation = envelope.sender_generation
            if self.peer_generation is None or generation >= self.peer_generation:
                fresh = generation != self.peer_generation
                self.peer_generation = generation
                self._send(Kind.HELLO, self._hello(), generation)
                if fresh:
                    self._on_peer(generation)
            return
        if envelope.sender_generation != self.peer_generation:
            self.stale += 1
            return
        try:
            self._on_message(envelope.kind, envelope.body)
        except WireError as error:
            self._refuse(str(error))
