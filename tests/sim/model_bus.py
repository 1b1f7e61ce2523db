"""ZeroMQ over ipc://, as bus.lane uses it: ROUTER and DEALER, one pipe for each connection. The lanes are real.

Copies, with tests/unit/test_bus_lane.py as witness: PROBE_ROUTER announces each connection; IMMEDIATE drops what was
queued for a dead server; within a pipe nothing is reordered; a reader's death loses what it has not read, a writer's
death loses a tail of what had not left its process; sending to an identity that is gone says EHOSTUNREACH.
"""

from collections import deque
from dataclasses import dataclass, field
from errno import EHOSTUNREACH
from typing import TYPE_CHECKING

import zmq

from common import limits
from tests.sim.world import Waitable

if TYPE_CHECKING:
    from tests.sim.processes import Process

Frames = list[bytes]


class Hub:
    """All endpoints of both sides: who has bound what, and who wants to be connected."""

    def __init__(self) -> None:
        self.routers: dict[str, SimSocket] = {}
        self.dealers: list[SimSocket] = []

    def join(self, dealer: "SimSocket") -> None:
        """Try again every now and then, as ZeroMQ does (RECONNECT_IVL)."""
        world = dealer.process.world
        if not dealer.process.alive or dealer.pipe is not None:
            return
        router = self.routers.get(dealer.endpoint)
        if router is None or not router.process.alive:
            world.after(limits.RECONNECT_MS / 1000 * world.random.uniform(0.5, 1.5), lambda: self.join(dealer))
            return
        Pipe(self, dealer, router)


@dataclass
class _Way:
    """One direction of a pipe: on the way (delivered in order), and there to be read."""

    transit: deque[Frames] = field(default_factory=deque)
    inbox: deque[Frames] = field(default_factory=deque)


class Pipe:
    def __init__(self, hub: Hub, dealer: "SimSocket", router: "SimSocket") -> None:
        self.hub, self.dealer, self.router = hub, dealer, router
        self.open = True
        self.to_router, self.to_dealer = _Way(), _Way()
        dealer.pipe = self
        dealer.pipes.append(self)
        router.pipes.append(self)
        self.send(self.to_router, [dealer.identity, b""])

    def send(self, way: _Way, frames: Frames) -> None:
        way.transit.append(frames)
        self.router.process.world.soon(lambda: self._deliver(way), 20e-6, 500e-6)

    def _deliver(self, way: _Way) -> None:
        reader = self.router if way is self.to_router else self.dealer
        if way.transit and reader.process.alive:
            way.inbox.append(way.transit.popleft())
            reader.waitable.poke()

    def end(self, dead: "SimSocket") -> None:
        """One end has died. What had left it still arrives; the other end notices a little later."""
        world = dead.process.world
        theirs = self.to_dealer if dead is self.router else self.to_router
        for _ in range(world.up_to(len(theirs.transit))):
            theirs.transit.pop()
        mine = self.to_router if dead is self.router else self.to_dealer
        mine.transit.clear()
        mine.inbox.clear()
        world.soon(self._noticed)

    def _noticed(self) -> None:
        self.open = False
        if self.dealer.pipe is self:
            self.dealer.pipe = None
            self.hub.join(self.dealer)


class SimSocket:
    """zmq.Socket with what bus.lane calls."""

    def __init__(self, hub: Hub, process: "Process", kind: int) -> None:
        self.hub, self.process, self.kind = hub, process, kind
        self.identity, self.endpoint = b"", ""
        self.pipes: list[Pipe] = []
        self.pipe: Pipe | None = None
        self._rest: Frames = []  # of a message that is read frame by frame
        self._first: bytes | None = None  # of one that is sent so
        self.waitable = Waitable(process.world, lambda: any(self._way(p).inbox for p in self.pipes))
        process.on_death.append(self._died)

    def _way(self, pipe: Pipe) -> _Way:
        return pipe.to_router if self.kind == zmq.ROUTER else pipe.to_dealer

    def set(self, option: int, value: int | bytes) -> None:
        if option == zmq.IDENTITY:
            assert isinstance(value, bytes)
            self.identity = value

    def bind(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.hub.routers[endpoint] = self

    def connect(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.hub.dealers.append(self)
        self.process.world.soon(lambda: self.hub.join(self))

    def getsockopt(self, option: int) -> int:
        if option == zmq.EVENTS:
            return int(zmq.POLLIN) if self.waitable.ready() else 0
        return int(bool(self._rest))  # RCVMORE

    def recv(self, flags: int) -> bytes:
        """Frame by frame."""
        if not self._rest:
            self._rest = self.recv_multipart(flags)
        return self._rest.pop(0)

    def recv_multipart(self, flags: int) -> Frames:
        full = [p for p in self.pipes if self._way(p).inbox]
        if not full:
            raise zmq.Again
        pipe = self.process.world.random.choice(full)  # fair queueing: between pipes there is no order
        frames = self._way(pipe).inbox.popleft()
        self.pipes = [p for p in self.pipes if p.open or self._way(p).inbox or self._way(p).transit]
        return frames

    def send(self, data: bytes, flags: int) -> None:
        if self.kind == zmq.ROUTER:
            return self._send_frame(data, flags)
        self.process.effect("bus send")
        if self.pipe is None:
            raise zmq.Again
        self.pipe.send(self.pipe.to_router, [self.pipe.dealer.identity, data])

    def _send_frame(self, data: bytes, flags: int) -> None:
        if flags & zmq.SNDMORE:
            if not any(pipe.open and pipe.dealer.identity == data for pipe in self.pipes):
                raise zmq.ZMQError(EHOSTUNREACH)
            self._first = data
        else:
            first, self._first = self._first, None
            assert first is not None
            self.send_multipart([first, data], flags)

    def send_multipart(self, frames: Frames, flags: int) -> None:
        self.process.effect("bus send")
        for pipe in self.pipes:
            if pipe.open and pipe.dealer.identity == frames[0]:
                pipe.send(pipe.to_dealer, frames[1:])
                return
        raise zmq.ZMQError(EHOSTUNREACH)

    def _died(self) -> None:
        if self.hub.routers.get(self.endpoint) is self:
            del self.hub.routers[self.endpoint]
        for pipe in self.pipes:
            pipe.end(self)


class SimContext:
    """zmq.Context of one process."""

    def __init__(self, hub: Hub, process: "Process") -> None:
        self._hub, self._process = hub, process

    def socket(self, kind: int) -> SimSocket:
        return SimSocket(self._hub, self._process, kind)
