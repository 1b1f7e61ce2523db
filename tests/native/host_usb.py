"""Entry of the host's usb with usbfs and libusb by the model process, under their own names."""

import ctypes
import errno
from collections import deque
from types import SimpleNamespace
from typing import Any

import zmq

from bus.role import Role
from host.usb import attachment, device, role
from host.usb.device import Pipe, _Place
from host.usb.usbfs import SETUP_BYTES, Reaped, UrbKind
from tests.native import wire
from tests.native.wire import Line, call

_ENDPOINTS = {Pipe.REQUESTS: 0x81, Pipe.RESPONSES: 0x02, Pipe.PAYLOADS_IN: 0x83, Pipe.PAYLOADS_OUT: 0x04}


class UsbFs:
    """host.usb.usbfs.UsbFs. What has ended waits in the connection `fd`."""

    def __init__(self, bus: int, address: int) -> None:
        self._line = Line("usbfs", address)
        self.fd, self._handle = self._line.fd, self._line.opened
        self._next, self._here = 1, True
        self._urbs: dict[int, tuple[int, int]] = {}  # where IN data go, by number; and the kind
        self._ended: deque[list[Any]] = deque()

    def submit(self, kind: UrbKind, endpoint: int, address: int, size_bytes: int) -> int:
        if not self._here:
            raise OSError(errno.ENODEV, "No such device")
        number, self._next = self._next, self._next + 1
        inbound = bool(endpoint & 0x80) and kind is not UrbKind.CONTROL
        data = b"" if inbound else ctypes.string_at(address, size_bytes)
        self._urbs[number] = (address + SETUP_BYTES if kind is UrbKind.CONTROL else address, int(kind))
        self._line.send(number, int(kind), endpoint, size_bytes, data)
        return number

    def reap(self) -> Reaped | None:
        if not self._ended:
            for item in self._line.pushed():
                if item:
                    self._ended.append(item)
                else:
                    self._here = False
        if not self._ended:
            if not self._here:
                raise OSError(errno.ENODEV, "No such device")
            return None
        number, error, size, data = self._ended.popleft()
        address, _ = self._urbs.pop(number)
        if data:
            ctypes.memmove(address, data, len(data))
        return Reaped(number, error, size)

    def discard(self, number: int) -> None:
        self._line.send("discard", number)

    def control(self, request_type: int, request: int, index: int, data: int, timeout_ms: int) -> bytes:
        answer: bytes = call("control", self._handle, request_type, request, data, timeout_ms)
        return answer

    def claim(self, interface: int) -> None:
        call("claim", self._handle)

    def release(self, interface: int) -> None:
        return None

    def set_configuration(self, value: int) -> None:
        return None

    def set_interface(self, interface: int, alternate: int) -> None:
        call("set_interface", self._handle)

    def reset(self) -> None:
        call("reset_by_host", self._handle)

    def close(self) -> None:
        self._line.close()


def describe(bus: int, address: int) -> _Place:
    if call("address") != address:
        raise OSError(errno.ENODEV, "no USB device: it has gone")
    return _Place(1, True, 0, _ENDPOINTS)


for module, name, value in (
    (device, "UsbFs", UsbFs),
    (device, "_describe", describe),
    (attachment, "zmq", SimpleNamespace(POLLOUT=zmq.POLLIN)),  # usbfs says POLLOUT when an URB is to be reaped
    (role, "library", SimpleNamespace(require=lambda: None)),
):
    setattr(module, name, value)


def start(living: Role) -> None:
    wire.at(living.runtime)
    role.start(living)
