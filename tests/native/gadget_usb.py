"""Entry of the gadget's usb with FunctionFS, libaio and configfs by the model process, under their own names.

A read's bytes are copied to their place when its end is taken, not before: here, and in host_usb, nothing can land in a
dead epoch's slot behind a role's back. That stays for the real kernel to show.
"""

import contextlib
import ctypes
import errno
import os
from types import SimpleNamespace
from typing import Any

from bus.role import Role
from bus.runtime import Runtime
from common.wire import Identity
from gadget.usb import connection, endpoint, role, transport
from gadget.usb.aio import Command
from gadget.usb.functionfs import EventType, FfsEvent
from tests.native import wire
from tests.native.wire import Line, call, identity

UDC = "model"


class AioContext:
    """gadget.usb.aio.AioContext. `eventfd` is the connection."""

    def __init__(self, depth: int) -> None:
        self._line, self._depth = Line("aio"), depth
        self.eventfd, self.writes, self._next = self._line.fd, 0, 0
        self._addresses: dict[int, int] = {}
        self._untold: set[int] = set()

    def submit(self, command: Command, fd: int, address: int, length: int, told: bool = True) -> int:
        if len(self._addresses) >= self._depth:
            raise BlockingIOError(errno.EAGAIN, "all transfers are outstanding")
        data, size = b"", length
        if command is Command.PWRITE:
            data = ctypes.string_at(address, length)
        elif command is Command.PWRITEV:
            vectors = (ctypes.c_uint64 * (2 * length)).from_address(address)
            data = b"".join(ctypes.string_at(vectors[2 * i], vectors[2 * i + 1]) for i in range(length))
            size = len(data)
        self._next += 1
        self._addresses[self._next] = address
        if not told:
            self._untold.add(self._next)
        self._line.send(self._next, identity(fd), size, data, told)
        return self._next

    def completions(self, reset: bool = True) -> list[tuple[int, int]]:
        done = []
        pushed = self._line.pushed()
        if self._untold and not pushed:
            self._line.send()  # whoever looks without having been told: what has ended comes at once
        for number, result, data in pushed:
            address = self._addresses.pop(number)
            if data:
                ctypes.memmove(address, data, len(data))
            self._untold.discard(number)
            done.append((number, result))
        return done


class Ep0:
    """gadget.usb.functionfs.Ep0. A datagram in `fd` says that there are events; they are asked for by a call."""

    def __init__(self, fd: int) -> None:
        self.fd, self._inode = fd, identity(fd)

    @staticmethod
    def open(mount_point: object, identity: Identity) -> "Ep0":
        line = Line("call")
        line.call("mount")
        names = ("ep0", "ep1", "ep2", "ep3", "ep4")
        _files.update(zip(names, line.fds, strict=True))
        line.close()
        return Ep0(_files["ep0"])

    def events(self) -> list[FfsEvent]:
        self._hush()
        return [
            FfsEvent(EventType(kind), request_type, request, 0, 0, length)
            for kind, request_type, request, length in call("ep0_read", self._inode)
        ]

    def _hush(self) -> None:
        os.set_blocking(self.fd, False)
        with contextlib.suppress(BlockingIOError):
            while os.read(self.fd, 8):
                pass

    def abandon(self) -> None:
        self._hush()
        call("ep0_abandon", self._inode)

    def reply(self, event: FfsEvent, data: bytes) -> None:
        call("ep0_reply", self._inode, data[: event.length])

    def read(self, event: FfsEvent) -> bytes:
        data: bytes = call("ep0_data", self._inode)
        return data

    def stall(self, event: FfsEvent) -> None:
        call("ep0_stall", self._inode)


class _Mount:
    def __truediv__(self, name: str) -> str:
        return name


class GadgetTree:
    """gadget.usb.configfs.GadgetTree."""

    udc, mount_point, identity = UDC, _Mount(), Identity.SMOO

    def create(self) -> None:
        return None

    def bind(self) -> None:
        call("bind")

    def unbind(self) -> None:
        call("unbind")

    def bound_udc(self) -> str:
        return UDC if call("udc")[0] else ""

    def remove(self) -> None:
        call("unmount")


_files: dict[str, int] = {}


def halting_read(fd: int, size: int) -> bytes:
    """os.read on an IN endpoint file: FunctionFS's way of saying halt."""
    call("halt", identity(fd))
    raise OSError(errno.EBADMSG, "halted")


def _tree_of(runtime: Runtime, args: dict[str, Any], controller: str = "") -> GadgetTree:
    return GadgetTree()


_udc = SimpleNamespace(choose=lambda wanted: UDC, state=lambda name: call("udc")[1], speed=lambda name: "high-speed")
for module, name, value in (
    (role, "tree_of", _tree_of),
    (role, "mm_hold", SimpleNamespace(left=lambda *_: [], found=lambda *_: [])),  # transfers end with their process
    (role, "udc", _udc),
    (connection, "udc", _udc),
    (transport, "AioContext", AioContext),
    (transport, "Ep0", Ep0),
    (transport, "open_file", lambda path: _files[path]),
    (endpoint, "os", SimpleNamespace(read=halting_read)),
):
    setattr(module, name, value)


def start(living: Role) -> None:
    wire.at(living.runtime)
    role.start(living)


def retire(runtime: Runtime, name: str, args: dict[str, Any]) -> None:
    wire.at(runtime)
    role.retire(runtime, name, args)
