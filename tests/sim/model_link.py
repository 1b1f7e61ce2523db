"""One USB cable: FunctionFS and its controller on one end, usbfs on the other, packets in between.

Copies drivers/usb/gadget/function/f_fs.c, drivers/usb/core/devio.c and dummy_hcd of 6.12. Witnesses:
- events: a newer BIND, UNBIND, ENABLE or DISABLE drops what was not read; a newer event cancels a pending SETUP
  (tests/e2e/test_functionfs_binding.py::test_a_request_the_host_gave_up_is_cancelled_...)
- IN: bytes are copied at submission; a death takes back what was not delivered, and leaves a prefix with the host
- OUT: a death loses what its reads had taken already; the host's transfer ends well all the same (DESIGN section 7)
- a transfer ends with a short packet or when it is full; no ZLP is sent for a multiple of the packet size
- link loss ends everything with ESHUTDOWN, later submissions with EAGAIN
  (test_link_loss_fails_everything_outstanding_once_and_the_same_fds_work_again)
- SET_INTERFACE ends the interface's URBs and the gadget's transfers, clears halts and raises ENABLE
  (test_set_interface_is_a_clean_boundary_that_raises_enable)
- a read on an IN endpoint halts it (test_a_halted_in_endpoint_gives_the_host_epipe_...), unless transfers are queued
- the gadget is bound for as long as one copy of its fds is open (test_kill_9_of_the_only_owner_unbinds_...)
"""

import ctypes
import errno
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.sim.world import Waitable, World

if TYPE_CHECKING:
    from tests.sim.processes import Process

PACKET = 512
ENABLE, DISABLE, SETUP, BIND, UNBIND = 2, 3, 4, 0, 1


@dataclass(eq=False)
class Aio:
    """A transfer of the gadget's. IN: `data` is what is to go; OUT: `data` is what has come."""

    context: "object"
    number: int
    address: int
    length: int
    data: bytes = b""
    moved: int = 0


@dataclass(eq=False)
class Urb:
    """A transfer of the host's. OUT: `data` is to go; IN: `data` has come."""

    handle: "object"
    number: int
    address: int
    length: int
    inbound: bool
    data: bytes = b""
    moved: int = 0


@dataclass(eq=False)
class Pipe:
    """One endpoint: what both ends have queued. `inbound`: from the gadget to the host."""

    inbound: bool
    gadget: deque[Aio] = field(default_factory=deque)
    host: deque[Urb] = field(default_factory=deque)
    halted: bool = False
    pumping: bool = False


@dataclass(eq=False)
class Setup:
    """A control request of the host's, until it is answered."""

    handle: "object"
    number: int
    address: int
    request_type: int
    request: int
    length: int
    data: bytes


class Function:
    """A mounted FunctionFS: lives as long as one of its fds is open anywhere."""

    def __init__(self, link: "Link") -> None:
        self.link = link
        world = link.world
        self.holders: set[object] = set()
        self.events: list[tuple[int, Setup | None]] = []
        self.pending: Setup | None = None  # the SETUP that was read and is not answered
        self.cancelled = False
        self.ready = Waitable(world, lambda: bool(self.events))
        self.fds = {"ep0": self.ready.number, **{f"ep{n}": world.new_number() for n in (1, 2, 3, 4)}}
        for name, number in self.fds.items():
            link.functions[number] = (self, name)

    def event(self, kind: int, setup: Setup | None = None) -> None:
        if self.pending is not None:
            self.link.answer(self.pending, errno.EPIPE if kind == SETUP else errno.EPROTO, b"")
            self.pending = None
        if kind == SETUP:
            self.events = [e for e in self.events if e[0] != SETUP]
        else:
            for _, old in self.events:
                if old is not None:
                    self.link.answer(old, errno.EPROTO, b"")
            self.events = []
        self.events.append((kind, setup))
        self.ready.poke()

    def release(self, holder: object) -> None:
        self.holders.discard(holder)
        if not self.holders:
            self.link.unbind(self)


class Link:
    """The cable, the controller and the host's port."""

    def __init__(self, world: World, v0: bool) -> None:
        self.world, self.v0 = world, v0
        self.functions: dict[int, tuple[Function, str]] = {}
        self.bound: Function | None = None
        self.cable = True
        self.configured = False
        self.address = 0  # of the device, as the host sees it; 0: none
        self._next_address = 1
        self.pipes = {name: Pipe(name in ("ep1", "ep3")) for name in ("ep1", "ep2", "ep3", "ep4")}
        self.handles: list[HostHandle] = []
        self.uevent_wakers: list[Waitable] = []
        self.epoch = 0
        self.setups: list[Setup] = []

    # -- being there -------------------------------------------------------------------------------------------------
    def bind(self, function: Function) -> None:
        self.bound = function
        function.event(BIND)
        self._enumerate_later()

    def unbind(self, function: Function) -> None:
        if self.bound is function:
            self.world.say("link: unbound")
            self.bound = None
            self._gone()

    def plug(self, there: bool) -> None:
        self.world.say(f"link: cable {'in' if there else 'out'}")
        self.cable = there
        if there:
            self._enumerate_later()
        else:
            self._gone()

    def _enumerate_later(self) -> None:
        self.epoch += 1
        epoch = self.epoch
        self.world.after(self.world.random.uniform(0.03, 0.3), lambda: self._enumerate(epoch))

    def _enumerate(self, epoch: int) -> None:
        if epoch != self.epoch or self.bound is None or not self.cable or self.address:
            return
        self.address, self._next_address = self._next_address, self._next_address + 1
        self.world.say(f"link: device {self.address}")
        self.world.counts["enumerations"] += 1
        self._enable()
        for waitable in self.uevent_wakers:
            waitable.poke()

    def _enable(self) -> None:
        self._end_transfers()
        self.configured = True
        for pipe in self.pipes.values():
            pipe.halted = False
        if self.bound is not None:
            self.bound.event(ENABLE)

    def _gone(self) -> None:
        self.epoch += 1
        was, self.address, self.configured = self.configured, 0, False
        self._end_transfers()
        for setup in list(self.setups):
            self.answer(setup, errno.ESHUTDOWN, b"")
        for handle in self.handles:
            handle.gone()
        if was and self.bound is not None:
            self.bound.event(DISABLE)

    def reset(self) -> None:
        """A port reset keeps the address; the interface is configured anew."""
        self.world.say("link: reset")
        if not self.address:
            return
        self.configured = False
        self._end_transfers()
        if self.bound is not None:
            self.bound.event(DISABLE)
        epoch = self.epoch
        self.world.soon(lambda: self._enable() if epoch == self.epoch and self.address else None, 1e-3, 20e-3)

    def set_interface(self) -> None:
        self.world.say("link: SET_INTERFACE")
        self.world.counts["set_interface"] += 1
        self._enable()

    def _end_transfers(self) -> None:
        for pipe in self.pipes.values():
            gadget, pipe.gadget = pipe.gadget, deque()
            host, pipe.host = pipe.host, deque()
            for aio in gadget:
                aio.context.ended(aio, -errno.ESHUTDOWN)  # type: ignore[attr-defined]
            for urb in host:
                urb.handle.ended(urb, errno.ESHUTDOWN)  # type: ignore[attr-defined]

    # -- data --------------------------------------------------------------------------------------------------------
    def gadget_submit(self, name: str, aio: Aio) -> None:
        if not self.configured:
            aio.context.ended(aio, -errno.EAGAIN)  # type: ignore[attr-defined]
            return
        self.pipes[name].gadget.append(aio)
        self._pump_later(self.pipes[name])

    def host_submit(self, name: str, urb: Urb) -> None:
        pipe = self.pipes[name]
        if pipe.halted:
            self.world.soon(lambda: urb.handle.ended(urb, errno.EPIPE))  # type: ignore[attr-defined]
            return
        pipe.host.append(urb)
        self._pump_later(pipe)

    def halt(self, name: str) -> None:
        pipe = self.pipes[name]
        if not self.configured or pipe.gadget:
            raise BlockingIOError(errno.EAGAIN, "link is down, or transfers are queued")
        self.world.say(f"link: {name} halted")
        self.world.counts["halts"] += 1
        pipe.halted = True
        host, pipe.host = pipe.host, deque()
        for urb in host:
            self.world.soon(lambda urb=urb: urb.handle.ended(urb, errno.EPIPE))  # type: ignore[misc]

    def _pump_later(self, pipe: Pipe) -> None:
        if not pipe.pumping and pipe.gadget and pipe.host:
            pipe.pumping = True
            self.world.soon(lambda: self._pump(pipe), 5e-6, 120e-6)

    def _pump(self, pipe: Pipe) -> None:
        """Some packets of the first transfers on both ends."""
        pipe.pumping = False
        for _ in range(self.world.random.choice((1, 2, 8, 200))):
            if not pipe.gadget or not pipe.host:
                break
            aio, urb = pipe.gadget[0], pipe.host[0]
            source: Aio | Urb = aio if pipe.inbound else urb
            sink: Aio | Urb = urb if pipe.inbound else aio
            packet = source.data[source.moved : source.moved + PACKET]
            room = sink.length - len(sink.data)
            source.moved += len(packet)
            sink.data += packet[:room]
            if source.moved >= len(source.data):
                self._ended(pipe, source)
            if len(packet) < PACKET or len(sink.data) >= sink.length:
                self._ended(pipe, sink, errno.EOVERFLOW if len(packet) > room else 0)
        self._pump_later(pipe)

    def _ended(self, pipe: Pipe, transfer: Aio | Urb, error: int = 0) -> None:
        if isinstance(transfer, Aio):
            pipe.gadget.popleft()
            moved = transfer.moved if pipe.inbound else len(transfer.data)
            if not pipe.inbound:
                transfer.context.land(transfer)  # type: ignore[attr-defined]
            transfer.context.ended(transfer, -error if error else moved)  # type: ignore[attr-defined]
        else:
            pipe.host.popleft()
            transfer.handle.ended(transfer, error)  # type: ignore[attr-defined]

    # -- ep0 ---------------------------------------------------------------------------------------------------------
    def control(self, setup: Setup) -> None:
        if not self.address or self.bound is None:
            return self.answer_later(setup, errno.ENODEV)
        if self.v0 and setup.request in (0x51, 0x52):
            return self.answer_later(setup, errno.EPIPE)  # a v0 gadget
        self.setups.append(setup)
        self.world.soon(lambda: self._deliver(setup))

    def answer_later(self, setup: Setup, error: int) -> None:
        self.world.soon(lambda: setup.handle.controlled(setup, error, b""))  # type: ignore[attr-defined]

    def _deliver(self, setup: Setup) -> None:
        if setup in self.setups:
            if self.bound is None or not self.address:
                return self.answer(setup, errno.ESHUTDOWN, b"")
            self.bound.event(SETUP, setup)

    def answer(self, setup: Setup, error: int, data: bytes) -> None:
        if setup in self.setups:
            self.setups.remove(setup)
            self.world.soon(lambda: setup.handle.controlled(setup, error, data))  # type: ignore[attr-defined]


class HostHandle:
    """An open usbfs descriptor: URBs that have ended wait here to be reaped."""

    def __init__(self, link: Link, process: "Process") -> None:
        self.link, self.process = link, process
        self.address = link.address
        self.here = True
        self.reapable: deque[tuple[int, int, int]] = deque()  # number, errno, size
        self.urbs: dict[int, Urb | Setup] = {}
        self.ready = Waitable(process.world, lambda: bool(self.reapable) or not self.here)
        self.landing: dict[int, tuple[int, bytes]] = {}
        link.handles.append(self)
        process.on_death.append(self.close)

    def ended(self, urb: Urb, error: int) -> None:
        if self.urbs.pop(urb.number, None) is None:
            return
        if urb.inbound:
            self.landing[urb.number] = (urb.address, urb.data)
        self.reapable.append((urb.number, error, len(urb.data) if urb.inbound else urb.moved))
        self.ready.poke()

    def controlled(self, setup: Setup, error: int, data: bytes) -> None:
        if self.urbs.pop(setup.number, None) is None:
            return
        if setup.request_type & 0x80 and not error:
            self.landing[setup.number] = (setup.address + 8, data)
            size = len(data)
        else:
            size = len(setup.data)
        self.reapable.append((setup.number, error, size))
        self.ready.poke()

    def reap(self) -> tuple[int, int, int] | None:
        if not self.reapable:
            if not self.here:
                raise OSError(errno.ENODEV, "No such device")
            return None
        number, error, size = self.reapable.popleft()
        address, data = self.landing.pop(number, (0, b""))
        if data:
            ctypes.memmove(address, data, len(data))
        return number, error, size

    def gone(self) -> None:
        self.here = False
        self.ready.poke()

    def take_back(self, number: int, error: int) -> None:
        urb = self.urbs.get(number)
        if isinstance(urb, Setup):
            if urb in self.link.setups:
                self.link.setups.remove(urb)
            bound = self.link.bound
            if bound is not None:
                bound.events = [e for e in bound.events if e[1] is not urb]
                if bound.pending is urb:
                    bound.pending, bound.cancelled = None, True
            self.controlled(urb, error, b"")

    def close(self) -> None:
        """All transfers are taken back: IN loses what had come, OUT leaves a prefix on the gadget."""
        for pipe in self.link.pipes.values():
            pipe.host = deque(urb for urb in pipe.host if urb.handle is not self)
        for number in list(self.urbs):
            self.take_back(number, errno.ENOENT)
        self.urbs.clear()
        self.here = False
        if self in self.link.handles:
            self.link.handles.remove(self)
