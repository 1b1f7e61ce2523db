"""What the two usb roles call of their kernels, with the same names as the wrappers they stand for, upon model_link.

Gadget: AioContext, Ep0, GadgetTree, PeerNote, the fd store. Host: UsbFs, the finder. Each class has the methods that
the product's wrapper has, and raises what that one's docstring says.
"""

import ctypes
import errno
from typing import Any

from common.wire import Identity
from gadget.usb.aio import Command
from gadget.usb.functionfs import EventType, FfsEvent
from gadget.usb.kept import ENDPOINT_NAMES, Peer
from host.session.finder import Gadget
from host.usb.device import Pipe, _Place
from host.usb.usbfs import Reaped, UrbKind
from tests.sim import processes
from tests.sim.model_link import Aio, Function, HostHandle, Setup, Urb
from tests.sim.world import Waitable

_OUT_ENDPOINTS = {0x02: "ep2", 0x04: "ep4"}
_IN_ENDPOINTS = {0x81: "ep1", 0x83: "ep3"}
_PLACE = _Place(
    1, True, 0, {Pipe.REQUESTS: 0x81, Pipe.RESPONSES: 0x02, Pipe.PAYLOADS_IN: 0x83, Pipe.PAYLOADS_OUT: 0x04}
)


def _here() -> Any:
    from tests.sim.run import here

    return here()


# -- the gadget ------------------------------------------------------------------------------------------------------
class AioContext:
    """gadget.usb.aio.AioContext."""

    def __init__(self, depth: int) -> None:
        run = _here()
        self._process, self._link, self._depth = run.current, run.link, depth
        self.writes = 0
        self._next = 0
        self._outstanding: dict[int, Aio] = {}
        self._done: list[tuple[int, int]] = []
        self._untold: set[int] = set()
        self._told = False  # is there anything in `eventfd`
        self._waitable = Waitable(run.world, lambda: self._told)
        self.eventfd = self._waitable.number
        self._process.on_death.append(self._died)

    def submit(self, command: Command, fd: int, address: int, length: int, told: bool = True) -> int:
        self._process.effect(f"aio {command.name}")
        if len(self._outstanding) >= self._depth:
            raise BlockingIOError(errno.EAGAIN, "all transfers are outstanding")
        data, size = b"", length
        if command is Command.PWRITE:
            data = ctypes.string_at(address, length)
        elif command is Command.PWRITEV:
            vectors = (ctypes.c_uint64 * (2 * length)).from_address(address)
            data = b"".join(ctypes.string_at(vectors[2 * i], vectors[2 * i + 1]) for i in range(length))
            size = len(data)
        self._next += 1
        aio = Aio(self, self._next, address, size, data)
        self._outstanding[aio.number] = aio
        if not told:
            self._untold.add(aio.number)
        _, name = self._link.functions[fd]
        self._link.gadget_submit(name, aio)
        return aio.number

    def land(self, aio: Aio) -> None:
        if self._process.alive:
            ctypes.memmove(aio.address, aio.data, len(aio.data))

    def ended(self, aio: Aio, result: int) -> None:
        if self._outstanding.pop(aio.number, None) is not None and self._process.alive:
            self._done.append((aio.number, result))
            if aio.number in self._untold:
                return self._untold.discard(aio.number)
            self._told = True
            self._waitable.poke()

    def completions(self, reset: bool = True) -> list[tuple[int, int]]:
        done, self._done, self._told = self._done, [], False
        return done

    def _died(self) -> None:
        for pipe in self._link.pipes.values():
            pipe.gadget = type(pipe.gadget)(aio for aio in pipe.gadget if aio.context is not self)
        self._outstanding.clear()


class Ep0:
    """gadget.usb.functionfs.Ep0."""

    def __init__(self, fd: int) -> None:
        run = _here()
        self._run, self._process, self.fd = run, run.current, fd
        self._function: Function = run.link.functions[fd][0]
        self._function.holders.add(self._process)
        self._process.on_death.append(lambda: self._function.release(self._process))

    @staticmethod
    def open(mount_point: object, identity: Identity) -> "Ep0":
        function = Function(_here().link)
        _here().mounted = function
        return Ep0(function.fds["ep0"])

    def events(self) -> list[FfsEvent]:
        self._process.effect("ep0 read")
        found: list[FfsEvent] = []
        while self._function.events and len(found) < 4:
            kind, setup = self._function.events.pop(0)
            if setup is None:
                found.append(FfsEvent(EventType(kind), 0, 0, 0, 0, 0))
            else:
                self._function.pending = setup
                found.append(FfsEvent(EventType.SETUP, setup.request_type, setup.request, 0, 0, setup.length))
                break
        return found

    def _take(self) -> Setup | None:
        pending, self._function.pending = self._function.pending, None
        return pending

    def abandon(self) -> None:
        self._process.effect("ep0 abandon")
        setup = self._take()
        if setup is not None:
            error = 0 if setup.request_type & 0x80 else errno.EPIPE
            self._run.link.answer(setup, error, b"")

    def reply(self, event: FfsEvent, data: bytes) -> None:
        self._process.effect("ep0 reply")
        setup = self._take()
        if setup is not None:
            self._run.link.answer(setup, 0, data[: event.length])

    def read(self, event: FfsEvent) -> bytes:
        self._process.effect("ep0 read data")
        setup = self._take()
        if setup is None:
            return b""
        self._run.link.answer(setup, 0, b"")
        return setup.data

    def stall(self, event: FfsEvent) -> None:
        self._process.effect("ep0 stall")
        setup = self._take()
        if setup is not None:
            self._run.link.answer(setup, errno.EPIPE, b"")


class GadgetTree:
    """gadget.usb.configfs.GadgetTree."""

    udc, identity = "sim", Identity.SMOO

    def __init__(self) -> None:
        self._run = _here()
        self.mount_point = _Mount()

    def create(self) -> None:
        self._run.current.effect("configfs create")

    def bind(self) -> None:
        if self._run.mounted is not None:
            self._run.current.effect("configfs bind")
            self._run.link.bind(self._run.mounted)

    def unbind(self) -> None:
        self._run.current.effect("configfs unbind")
        if self._run.mounted is not None:
            self._run.link.unbind(self._run.mounted)

    def bound_udc(self) -> str:
        bound = self._run.link.bound
        return "sim" if bound is not None and bound is self._run.mounted else ""

    def remove(self) -> None:
        self._run.current.effect("configfs remove")
        if self._run.mounted is not None:
            self._run.link.unbind(self._run.mounted)
            self._run.mounted = None


class _Mount:
    def __truediv__(self, name: str) -> str:
        return name


def open_file(name: Any) -> int:
    function: Function = _here().mounted
    return function.fds[str(name)]


class PeerNote:
    """gadget.usb.kept.PeerNote: a memfd; its bytes are in the run."""

    def __init__(self, fd: int) -> None:
        self.fd, self._notes = fd, _here().notes

    @staticmethod
    def fresh() -> "PeerNote":
        note = PeerNote(_here().world.new_number())
        note.write(Peer.NONE)
        return note

    def write(self, peer: Peer) -> None:
        self._notes[self.fd] = peer

    def read(self) -> Peer:
        peer: Peer = self._notes[self.fd]
        return peer


class Keeping:
    """bus.keeping.Keeping: the store has the copies a moment later."""

    def __init__(self, role: Any, names: list[str], fds: tuple[int, ...]) -> None:
        run, process = _here(), _here().current
        wanted = dict(zip(names, fds, strict=True))

        def keep() -> None:
            if process.alive:
                function: Function = run.link.functions[wanted[ENDPOINT_NAMES[0]]][0]
                old = run.store.get(role.name)
                run.store[role.name] = wanted
                function.holders.add("store")
                if old is not None and old["ep0"] != wanted["ep0"]:
                    run.link.functions[old["ep0"]][0].release("store")

        run.world.soon(keep)


class Poll:
    """select.poll() of one fd."""

    def register(self, fd: int, events: int) -> None:
        self._waitable: Waitable = _here().world.waitables[fd]

    def poll(self, timeout: float) -> list[int]:
        return [1] if self._waitable.ready() else []


def halting_read(fd: int, size: int) -> bytes:
    """os.read on an IN endpoint file: FunctionFS's way of saying halt."""
    run = _here()
    run.current.effect("halt")
    _, name = run.link.functions[fd]
    run.link.halt(name)
    raise OSError(errno.EBADMSG, "halted")


# -- the host --------------------------------------------------------------------------------------------------------
class UsbFs:
    """host.usb.usbfs.UsbFs. `control`, `set_interface` and `reset` block: they are called in a thread only."""

    def __init__(self, bus: int, address: int) -> None:
        run = _here()
        self._link, self._process = run.link, run.current
        if self._link.address != address:
            raise OSError(errno.ENOENT, "no such device")
        self._handle = HostHandle(self._link, self._process)
        self.fd = self._handle.ready.number
        self._next = 1

    def submit(self, kind: UrbKind, endpoint: int, address: int, size_bytes: int) -> int:
        self._process.effect(f"urb {kind.name}")
        number, self._next = self._next, self._next + 1
        handle = self._handle
        if not handle.here:
            raise OSError(errno.ENODEV, "No such device")
        if kind is UrbKind.CONTROL:
            head = ctypes.string_at(address, size_bytes)
            incoming = bool(head[0] & 0x80)
            length = size_bytes - 8
            data = b"" if incoming else head[8:]
            setup = Setup(handle, number, address, head[0], head[1], length, data)
            handle.urbs[number] = setup
            self._link.control(setup)
            return number
        inbound = bool(endpoint & 0x80)
        name = _IN_ENDPOINTS[endpoint] if inbound else _OUT_ENDPOINTS[endpoint]
        data = b"" if inbound else ctypes.string_at(address, size_bytes)
        urb = Urb(handle, number, address, size_bytes, inbound, data)
        handle.urbs[number] = urb
        self._link.host_submit(name, urb)
        return number

    def reap(self) -> Reaped | None:
        self._process.effect("reap")
        reaped = self._handle.reap()
        return None if reaped is None else Reaped(*reaped)

    def discard(self, number: int) -> None:
        self._handle.take_back(number, errno.ENOENT)

    def control(self, request_type: int, request: int, index: int, data: Any, timeout_ms: int) -> bytes:
        self._process.effect("control")
        number, self._next = self._next, self._next + 1
        answer: list[tuple[int, bytes]] = []

        class Answer:
            def controlled(self, setup: Setup, error: int, got: bytes) -> None:
                answer.append((error, got))

        if not self._handle.here:
            raise OSError(errno.ENODEV, "No such device")
        setup = Setup(Answer(), number, 0, request_type, request, data, b"")
        self._link.control(setup)
        world, limit = self._process.world, self._process.world.now + timeout_ms / 1000
        processes.block(lambda: bool(answer) or world.now >= limit)
        if not answer:
            if setup in self._link.setups:
                self._link.setups.remove(setup)
            raise OSError(errno.ETIMEDOUT, "timed out")
        if answer[0][0]:
            raise OSError(answer[0][0], "control failed")
        return answer[0][1]

    def claim(self, interface: int) -> None:
        if any(h is not self._handle and h.process.alive and h.here for h in self._link.handles):
            raise OSError(errno.EBUSY, "claimed by another")

    def release(self, interface: int) -> None:
        return None

    def set_configuration(self, value: int) -> None:
        return None

    def set_interface(self, interface: int, alternate: int) -> None:
        self._process.effect("SET_INTERFACE")
        self._blocked_for(1e-4, 3e-3)
        self._link.set_interface()

    def reset(self) -> None:
        self._process.effect("RESET")
        self._blocked_for(1e-3, 5e-3)
        self._link.reset()
        self._blocked_for(20e-3, 40e-3)

    def _blocked_for(self, least_s: float, most_s: float) -> None:
        world = self._process.world
        due = world.now + world.random.uniform(least_s, most_s)
        processes.block(lambda: world.now >= due)
        if not self._handle.here:
            raise OSError(errno.ENODEV, "No such device")

    def close(self) -> None:
        self._handle.close()


def describe(bus: int, address: int) -> _Place:
    if _here().link.address != address:
        raise OSError(errno.ENODEV, "no USB device: it has gone")
    return _PLACE


def find(serial: str | None) -> list[Gadget]:
    address = _here().link.address
    return [Gadget(1, address, "sim", "high-speed")] if address else []


class Hold:
    """host.session.hold.Hold: there is one host."""

    def take(self, gadget: Gadget) -> bool:
        return True


class Uevents:
    """host.session.finder.Uevents."""

    def __init__(self) -> None:
        run = _here()
        self._came = False
        self._waitable = Waitable(run.world, lambda: self._came)
        self._waitable.wakers.append(self._note)
        self.fd = self._waitable.number
        run.link.uevent_wakers.append(self._waitable)

    def _note(self) -> None:
        self._came = True

    def usb_device_came(self) -> bool:
        came, self._came = self._came, False
        return came
