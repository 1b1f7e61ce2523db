"""A smoo v0 host of a hundred lines for tests: serves one export from memory, and can misbehave on request.

Not the product's host: it knows nothing of replug's ways, so what works with it works with any v0 host.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import usb.backend.libusb1
import usb.core
import usb.util

from common.wire import CONTROL_TYPE, ConfigExports, Control, ExportRecord, Ident, Op, Request, Response, Status

T = TypeVar("T")
INTERRUPT, BULK = 3, 2


def enumerated() -> Path | None:
    """The sysfs directory of the gadget's USB device, if the host's kernel has it now."""
    for interface in Path("/sys/bus/usb/devices").glob("*:*"):
        try:
            if (interface / "bInterfaceSubClass").read_text().strip() == "53":
                return interface.parent / interface.name.partition(":")[0]
        except OSError:
            continue
    return None


def await_event(what: str, look: Callable[[], T], deadline_s: float = 30) -> T:
    """Poll sysfs or the device until `look` is true; AssertionError names what did not come."""
    end = time.monotonic() + deadline_s
    while not (value := look()):
        assert time.monotonic() < end, f"waited {deadline_s} s for {what}"
        time.sleep(0.02)
    return value


_backends: list[object] = []


def fresh_backend() -> object:
    """A libusb context of its own: without udevd an old one never learns of new devices.

    It is kept for good: libusb_exit while something of it is still referred to crashes the whole process.
    """
    usb.backend.libusb1._lib_object = None
    _backends.append(usb.backend.libusb1.get_backend())
    return _backends[-1]


class V0Host:
    """Claims the gadget that is enumerated now. `data` is the disk; `status_of` may fail requests."""

    def __init__(self, record: ExportRecord) -> None:
        self.record, self.data = record, bytearray(record.size_bytes)
        self.status_of: Callable[[Request], int] = lambda request: 0
        self.answers_early = False  # refuse a write before its payload was taken, as v0 allows
        self.requests: list[Request] = []
        self.ended = ""
        place = await_event("the gadget to be enumerated", enumerated)
        self.number = int((place / "devnum").read_text())
        self.device = usb.core.find(idVendor=0x1D6B, idProduct=0x0104, backend=fresh_backend())
        self._server: threading.Thread | None = None
        interface = self.device.get_active_configuration()[(0, 0)]
        by = {(e.bmAttributes & 3, bool(e.bEndpointAddress & 0x80)): e for e in interface}
        self.endpoints = [(e.bEndpointAddress, e.bmAttributes & 3, e.wMaxPacketSize) for e in interface]
        self.triple = (interface.bInterfaceClass, interface.bInterfaceSubClass, interface.bInterfaceProtocol)
        self._requests, self._responses = by[INTERRUPT, True], by[INTERRUPT, False]
        self._payloads_in, self._payloads_out = by[BULK, True], by[BULK, False]
        usb.util.claim_interface(self.device, 0)

    def ident(self) -> Ident:
        return Ident.decode(bytes(self.device.ctrl_transfer(CONTROL_TYPE[Control.IDENT], Control.IDENT, 0, 0, 8)))

    def status(self) -> Status:
        return Status.decode(bytes(self.device.ctrl_transfer(CONTROL_TYPE[Control.STATUS], Control.STATUS, 0, 0, 16)))

    def send_config(self, data: bytes) -> None:
        self.device.ctrl_transfer(CONTROL_TYPE[Control.CONFIG_EXPORTS], Control.CONFIG_EXPORTS, 0, 0, data)

    def configure(self) -> None:
        self.send_config(ConfigExports((self.record,)).encode())
        await_event("exports to be active", lambda: self.status().active)

    def serve(self) -> None:
        """Answer requests in a thread until the link ends."""
        self._server = threading.Thread(target=self._serve, daemon=True)
        self._server.start()

    def respond(self, data: bytes) -> None:
        self._responses.write(data, 5000)

    def _serve(self) -> None:
        try:
            while True:
                self._answer(Request.decode(bytes(self._requests.read(1024, 0))))
        except usb.core.USBError as error:
            self.ended = str(error)

    def _answer(self, request: Request) -> None:
        self.requests.append(request)
        start, size = request.lba * self.record.block_size, request.blocks * self.record.block_size
        status = self.status_of(request)
        if status and self.answers_early:
            self._responses.write(Response.to(request, status).encode(), 0)
        if request.op is Op.WRITE:
            payload = b""
            while len(payload) < size:
                payload += bytes(self._payloads_in.read(min(65536, size - len(payload)), 0))
            if status == 0:
                self.data[start : start + size] = payload
        if not (status and self.answers_early):
            self._responses.write(Response.to(request, status).encode(), 0)
        if request.op is Op.READ and status == 0:
            for offset in range(start, start + size, 65536):
                self._payloads_out.write(bytes(self.data[offset : min(offset + 65536, start + size)]), 0)

    def leave(self) -> None:
        """Let go of the interface. A read in another thread is ended first: to close under it crashes libusb."""
        if self._server is not None:
            deadline = time.monotonic() + 20
            while self._server.is_alive() and time.monotonic() < deadline:
                with contextlib.suppress(usb.core.USBError):
                    self.device.reset()
                self._server.join(1)  # a read that began only after the reset is ended by the next one
            assert not self._server.is_alive(), "the host's read did not end after a reset"
        usb.util.dispose_resources(self.device)
