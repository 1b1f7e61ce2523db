"""A lane between a server role (binds) and its client roles (connect), aware of generations.

The hand-shake is what makes any start order and any death work: at every new connection a client's end tells its name,
the server answers WELCOME with its generation, the client answers HELLO with its own. Each side learns of every new
incarnation of the other exactly once (`on_peer`) and then replays what it has outstanding; until then `send` drops,
because the replay will carry it. Messages for or from another generation are dropped. What moves the bytes is
bus.zeromq, or bus.direct for data lanes.

Of many messages between the same two incarnations all but the body is the same bytes: these are made and understood
once. A message that begins with them needs no second look at who says it to whom.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import msgpack
import zmq

from bus.direct import DirectContext, DirectDealer, DirectRouter
from bus.envelope import ANY_GENERATION, Body, Envelope, Kind, body_of, head
from bus.loop import Loop
from bus.zeromq import ZmqDealer, ZmqRouter
from common import limits
from common.errors import WireError

_PACK_BYTES = 4096  # a Packer's first buffer: its default of 256 KiB would be most of a role's own memory
_head = lru_cache(maxsize=4 * limits.MAX_EXPORTS)(head)

Context = zmq.Context["zmq.Socket[bytes]"] | DirectContext


class _Warn(Protocol):
    def warning(self, text: str) -> None: ...


def _packer() -> msgpack.Packer:
    """Before msgpack 1.1 (Debian 12 has 1.0.3) the first buffer is of one size; what of it is not used is no memory."""
    try:
        return msgpack.Packer(buf_size=_PACK_BYTES)
    except TypeError:
        return msgpack.Packer()


class _Lane:
    """What both ends share: identity, counters, encoding and decoding."""

    def __init__(self, log: _Warn, role: str, generation: int) -> None:
        self._log, self._role, self._generation = log, role, generation
        self._packer = _packer()
        self.malformed = 0
        self.stale = 0

    def _encode(self, kind: Kind, addressee: int, body: Body) -> bytes:
        data: bytes = _head(kind, self._role, self._generation, addressee) + self._packer.pack(body)
        if len(data) > limits.MAX_ENVELOPE:
            raise WireError(f"{kind} of {len(data)} bytes is more than {limits.MAX_ENVELOPE}")
        return data

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
        super().__init__(log, role, generation)
        self._on_peer, self._on_message = on_peer, on_message
        self._peers: dict[str, tuple[int, bytes]] = {}  # generation and identity, by role
        self._heads: dict[bytes, tuple[bytes, str, Kind]] = {}  # of the last message of each identity in `_peers`
        self.end: ZmqRouter | DirectRouter = (
            DirectRouter(loop, endpoint, self._heard)
            if isinstance(context, DirectContext)
            else ZmqRouter(loop, context, endpoint, self._heard, self._refuse)
        )

    def send(self, role: str, kind: Kind, body: Body) -> bool:
        """To the present incarnation of `role`. False if there is none (its successor will be told by replay)."""
        peer = self._peers.get(role)
        if peer is None:
            return False
        return self.end.send(peer[1], self._encode(kind, peer[0], body))

    def generation_of(self, role: str) -> int | None:
        peer = self._peers.get(role)
        return peer[0] if peer else None

    def _heard(self, identity: bytes, data: bytes) -> None:
        known = self._heads.get(identity)
        if known is not None and data.startswith(known[0]):
            start, role, kind = known
            try:
                self._on_message(role, kind, body_of(data, len(start)))
            except WireError as error:
                self._refuse(f"{role}: {error}")
        elif not data:
            # Somebody new. A stranger that has gone again will come again when it is back.
            self.end.send(identity, self._encode(Kind.WELCOME, ANY_GENERATION, None))
        else:
            envelope = self._decode(data)
            if envelope is not None:
                self._take(identity, envelope)

    def _take(self, identity: bytes, envelope: Envelope) -> None:
        role, generation = envelope.sender, envelope.sender_generation
        known = self._peers.get(role)
        try:
            if envelope.kind is Kind.HELLO:
                if known is None or generation >= known[0]:
                    self._peers[role] = (generation, identity)
                    self._heads.clear()
                if known is None or generation > known[0]:
                    self._on_peer(role, generation, envelope.body)
            elif known is not None and known[0] == generation:
                start = _head(envelope.kind, role, generation, envelope.addressee_generation)
                self._heads[identity] = (start, role, envelope.kind)
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
        super().__init__(log, role, generation)
        self._hello, self._on_peer, self._on_message = hello, on_peer, on_message
        self.peer_generation: int | None = None
        self._last: tuple[bytes, Kind] | None = None  # head and kind of the last message of this generation
        identity = f"{role}@{generation}".encode()
        self.end: ZmqDealer | DirectDealer = (
            DirectDealer(loop, endpoint, identity, self._heard)
            if isinstance(context, DirectContext)
            else ZmqDealer(loop, context, endpoint, identity, self._heard)
        )

    def send(self, kind: Kind, body: Body) -> bool:
        """To the present incarnation of the server. False if none is known or its pipe is gone."""
        if self.peer_generation is None:
            return False
        return self.end.send(self._encode(kind, self.peer_generation, body))

    def _heard(self, data: bytes) -> None:
        last = self._last
        if last is not None and data.startswith(last[0]):
            try:
                self._on_message(last[1], body_of(data, len(last[0])))
            except WireError as error:
                self._refuse(str(error))
            return
        envelope = self._decode(data)
        if envelope is not None:
            self._take(envelope)

    def _take(self, envelope: Envelope) -> None:
        if envelope.kind is Kind.WELCOME:
            generation = envelope.sender_generation
            if self.peer_generation is None or generation >= self.peer_generation:
                fresh = generation != self.peer_generation
                self.peer_generation, self._last = generation, None
                self.end.send(self._encode(Kind.HELLO, generation, self._hello()))
                if fresh:
                    self._on_peer(generation)
            return
        if envelope.sender_generation != self.peer_generation:
            self.stale += 1
            return
        start = _head(envelope.kind, envelope.sender, envelope.sender_generation, envelope.addressee_generation)
        self._last = (start, envelope.kind)
        try:
            self._on_message(envelope.kind, envelope.body)
        except WireError as error:
            self._refuse(str(error))
