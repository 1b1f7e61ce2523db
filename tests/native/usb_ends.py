"""The two ends of the cable in the model process: what both usb roles have open, upon tests.sim.model_link.

A FunctionFS is five sockets (ep0..ep4) whose other copies may lie with roles and fd stores; it is let go of when all
copies are closed. An AIO context and a usbfs descriptor are connections, and end with their process.
"""

import errno
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from tests.native.machine import Calls, Connection, Machine
from tests.sim import processes
from tests.sim.ends import _IN_ENDPOINTS, _OUT_ENDPOINTS
from tests.sim.model_link import SETUP, Aio, Function, HostHandle, Setup, Urb

_CONTROL = 2  # UrbKind.CONTROL
_RESET_S = 0.03  # a port reset with its recovery


class Owner:
    """tests.sim.processes.Process, as far as a handle asks for it."""

    def __init__(self, world: Any) -> None:
        self.world, self.alive = world, True
        self.on_death: list[Callable[[], None]] = []


class MountedFunction(Function):
    """A Function whose files are sockets. `doorbell`: ep0 has something to read for as long as there are events."""

    def __init__(self, ends: "UsbEnds") -> None:
        super().__init__(ends.link)
        self._ends, self._rung = ends, False
        self.holders.add("descriptors")
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in self.fds]
        self._open = {ours: name for (ours, _), name in zip(pairs, self.fds, strict=True)}
        self._ep0 = pairs[0][0]
        self.theirs = [theirs for _, theirs in pairs]
        for theirs, name in zip(self.theirs, self.fds, strict=True):
            ends.files[os.fstat(theirs.fileno()).st_ino] = (self, name)
        for ours in self._open:
            ends.machine.watch(ours, partial(self._closed, ours))
        self.ready.wakers.append(self.ring)

    def ring(self, anew: bool = False) -> None:
        self._rung = self._rung and not anew
        if self.events and not self._rung:
            self._rung = True
            self._ep0.send(b"!", socket.MSG_DONTWAIT)

    def _closed(self, ours: socket.socket, events: int) -> None:
        del self._open[ours]
        self._ends.machine.unwatch(ours)
        if not self._open:
            for inode in [inode for inode, (function, _) in self._ends.files.items() if function is self]:
                del self._ends.files[inode]
            self.release("descriptors")


class AioEnd:
    """An AIO context: its transfers end with its process."""

    def __init__(self, ends: "UsbEnds", connection: Connection) -> None:
        self._ends, self._connection = ends, connection
        self._outstanding: dict[int, bool] = {}  # by number: is it a read
        self._untold: dict[int, list[Any] | None] = {}  # by number: how it ended, if it has
        connection.answer()

    def heard(self, message: list[Any]) -> None:
        if not message:
            return self._push_untold()
        number, inode, length, data, told = message
        if not told:
            self._untold[number] = None
        function, name = self._ends.files[inode]
        aio = Aio(self, number, 0, length, data)
        self._outstanding[number] = not self._ends.link.pipes[name].inbound
        if function is self._ends.link.bound:
            self._ends.link.gadget_submit(name, aio)
        else:
            self.ended(aio, -errno.EAGAIN)

    def land(self, aio: Aio) -> None:
        """Its bytes go with its end."""

    def ended(self, aio: Aio, result: int) -> None:
        reads = self._outstanding.pop(aio.number, None)
        if reads is not None:
            data = aio.data if reads and result > 0 else b""
            if aio.number in self._untold:
                self._untold[aio.number] = [aio.number, result, data]
                return
            self._push_untold()
            self._connection.push([aio.number, result, data], len(data))

    def _push_untold(self) -> None:
        """The context's ring has them in order; its owner sees them when it looks."""
        for number, end in list(self._untold.items()):
            if end is not None:
                del self._untold[number]
                self._connection.push(end)

    def closed(self) -> None:
        self._outstanding.clear()
        for pipe in self._ends.link.pipes.values():
            pipe.gadget = type(pipe.gadget)(aio for aio in pipe.gadget if aio.context is not self)


class UsbFsEnd:
    """A usbfs descriptor. Control requests that wait (numbers below 0) are answered on their caller's connection."""

    def __init__(self, ends: "UsbEnds", connection: Connection, address: int) -> None:
        if not address or ends.link.address != address:
            raise OSError(errno.ENOENT, "no such device")
        self._ends, self._connection = ends, connection
        self.owner = Owner(ends.machine.world)
        self.handle = HostHandle(ends.link, cast(processes.Process, self.owner))
        self.handle.ready.wakers.append(self._push)
        self._told_gone = False
        self._waiting: dict[int, Connection] = {}
        self._number = ends.add(self)
        connection.answer(self._number)

    def heard(self, message: list[Any]) -> None:
        if message[0] == "discard":
            return self.handle.take_back(message[1], errno.ENOENT)
        number, kind, endpoint, length, data = message
        if not self.handle.here:
            return  # it will be told that the device is gone
        if kind == _CONTROL:
            self._setup(number, data[0], data[1], length - 8, b"" if data[0] & 0x80 else data[8:])
            return
        inbound = bool(endpoint & 0x80)
        urb = Urb(self.handle, number, 0, length, inbound, b"" if inbound else data)
        self.handle.urbs[number] = urb
        self._ends.link.host_submit(_IN_ENDPOINTS[endpoint] if inbound else _OUT_ENDPOINTS[endpoint], urb)

    def _setup(self, number: int, kind: int, request: int, length: int, data: bytes) -> None:
        setup = Setup(self.handle, number, 0, kind, request, length, data)
        self.handle.urbs[number] = setup
        self._ends.link.control(setup)

    def control(self, caller: Connection, kind: int, request: int, length: int, timeout_s: float) -> object:
        self.must_be_here()
        number = -self._ends.link.world.new_number()
        self._waiting[number] = caller
        self._setup(number, kind, request, length, b"")
        self._ends.link.world.after(timeout_s, lambda: self.handle.take_back(number, errno.ETIMEDOUT))
        return Calls.LATER

    def must_be_here(self) -> None:
        if not self.handle.here:
            raise OSError(errno.ENODEV, "No such device")

    def _push(self) -> None:
        handle = self.handle
        while handle.reapable:
            number, error, size = handle.reapable.popleft()
            _, data = handle.landing.pop(number, (0, b""))
            caller = self._waiting.pop(number, None)
            if caller is not None:
                caller.fail(error) if error else caller.answer(data)
            else:
                self._connection.push([number, error, size, data], len(data))
        if not handle.here and not self._told_gone:
            self._told_gone = True
            for caller in self._waiting.values():
                caller.fail(errno.ENODEV)
            self._waiting.clear()
            self._connection.push([])

    def closed(self) -> None:
        self.owner.alive = False
        self._ends.remove(self._number)
        self.handle.close()


class UeventEnd:
    """A netlink socket."""

    def __init__(self, ends: "UsbEnds", connection: Connection) -> None:
        self._ends, self._connection = ends, connection
        ends.link.uevent_wakers.append(cast(Any, self))
        connection.answer()

    def poke(self) -> None:
        self._connection.push(["add"])

    def heard(self, message: list[Any]) -> None:
        return None

    def closed(self) -> None:
        self._ends.link.uevent_wakers.remove(cast(Any, self))


class UsbEnds:
    """Files and calls of both ends."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.link = machine, machine.link
        self.files: dict[int, tuple[MountedFunction, str]] = {}  # by inode
        self.mounted: MountedFunction | None = None
        self._handles: dict[int, UsbFsEnd] = {}

    def add(self, end: UsbFsEnd) -> int:
        number = self.link.world.new_number()
        self._handles[number] = end
        return number

    def remove(self, number: int) -> None:
        del self._handles[number]

    # -- the gadget's calls ------------------------------------------------------------------------------------------
    def mount(self, connection: Connection) -> object:
        self.mounted = MountedFunction(self)
        connection.answer(None, tuple(theirs.fileno() for theirs in self.mounted.theirs))
        for theirs in self.mounted.theirs:
            theirs.close()
        return Calls.LATER

    def bind(self, connection: Connection) -> None:
        if self.mounted is not None and self.link.bound is None and self.mounted.holders:
            self.link.bind(self.mounted)

    def unbind(self, connection: Connection) -> None:
        if self.mounted is not None:
            self.link.unbind(self.mounted)

    def unmount(self, connection: Connection) -> None:
        self.unbind(connection)
        self.mounted = None

    def udc(self, connection: Connection) -> list[Any]:
        """Is our gadget bound; what the controller's state is."""
        bound = self.mounted is not None and self.link.bound is self.mounted
        return [bound, "configured" if self.link.configured else "not attached"]

    def halt(self, connection: Connection, inode: int) -> None:
        function, name = self.files[inode]
        if function is not self.link.bound:
            raise BlockingIOError(errno.EAGAIN, "link is down")
        self.link.halt(name)

    def ep0_read(self, connection: Connection, inode: int) -> list[Any]:
        function, _ = self.files[inode]
        found: list[Any] = []
        while function.events and len(found) < 4:
            kind, setup = function.events.pop(0)
            if setup is None:
                found.append([kind, 0, 0, 0])
                continue
            function.pending = setup
            found.append([SETUP, setup.request_type, setup.request, setup.length])
            break
        function.ring(anew=True)
        return found

    def ep0_abandon(self, connection: Connection, inode: int) -> None:
        function, _ = self.files[inode]
        setup = self._take(function)
        if setup is not None:
            self.link.answer(setup, 0 if setup.request_type & 0x80 else errno.EPIPE, b"")
        function.ring(anew=True)

    def ep0_reply(self, connection: Connection, inode: int, data: bytes) -> None:
        setup = self._take(self.files[inode][0])
        if setup is not None:
            self.link.answer(setup, 0, data)

    def ep0_data(self, connection: Connection, inode: int) -> bytes:
        setup = self._take(self.files[inode][0])
        if setup is None:
            return b""
        self.link.answer(setup, 0, b"")
        return setup.data

    def ep0_stall(self, connection: Connection, inode: int) -> None:
        setup = self._take(self.files[inode][0])
        if setup is not None:
            self.link.answer(setup, errno.EPIPE, b"")

    def _take(self, function: Function) -> Setup | None:
        pending, function.pending = function.pending, None
        return pending

    # -- the host's calls --------------------------------------------------------------------------------------------
    def claim(self, connection: Connection, number: int) -> None:
        mine = self._handles[number].handle
        if any(h is not mine and h.process.alive and h.here for h in self.link.handles):
            raise OSError(errno.EBUSY, "claimed by another")

    def set_interface(self, connection: Connection, number: int) -> None:
        self._handles[number].must_be_here()
        self.link.set_interface()

    def reset_by_host(self, connection: Connection, number: int) -> object:
        end = self._handles[number]
        end.must_be_here()
        self.link.reset()
        due = self.link.world.now + _RESET_S

        def over() -> None:
            end.must_be_here()
            connection.answer()

        self.machine.block(connection, lambda: self.link.world.now >= due, over)
        self.link.world.after(_RESET_S, lambda: None)
        return Calls.LATER

    def control(self, connection: Connection, number: int, kind: int, request: int, length: int, ms: int) -> object:
        return self._handles[number].control(connection, kind, request, length, ms / 1000)


def install(machine: Machine) -> None:
    ends, link = UsbEnds(machine), machine.link
    machine.openers |= {
        "aio": lambda connection, opening: AioEnd(ends, connection),
        "usbfs": lambda connection, opening: UsbFsEnd(ends, connection, opening[0]),
        "uevents": lambda connection, opening: UeventEnd(ends, connection),
    }
    for name in (
        *("mount", "bind", "unbind", "unmount", "udc", "halt"),
        *("ep0_read", "ep0_abandon", "ep0_reply", "ep0_data", "ep0_stall"),
        *("claim", "set_interface", "reset_by_host", "control"),
    ):
        machine.calls[name] = getattr(ends, name)
    machine.calls["address"] = lambda connection: link.address
    machine.calls["plug"] = lambda connection, there: link.plug(there)
    machine.calls["reset"] = lambda connection: link.reset()
