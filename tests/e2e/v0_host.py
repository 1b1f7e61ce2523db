"""A smoo v0 host of a hundred lines for tests: serves one export from memory, and can misbehave on request.

Not the product's host: it knows nothing of replug's ways, so what works with it works with any v0 host.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from common.wire import CONTROL_TYPE, ConfigExports, Control, ExportRecord, Ident, Op, Request, Response, Status
from host.usb import library
from tests.e2e.raw_device import RawDevice

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


def number() -> int | None:
    """The address of the gadget's USB device on its bus, if it has one now."""
    with contextlib.suppress(OSError):  # it may go between the two looks
        place = enumerated()
        return int((place / "devnum").read_text()) if place else None
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
    _backends.append(library.fresh_backend())
    return _backends[-1]


class V0Host:
    """Claims the gadget that is enumerated now. `data` is the disk; `status_of` may fail requests."""

    def __init__(self, record: ExportRecord) -> None:
        self.record, self.data = record, bytearray(record.size_bytes)
        self.status_of: Callable[[Request], int] = lambda request: 0
        self.answers_early = False  # refuse a write before its payload was taken, as v0 allows
        self.requests: list[Request] = []
        self.ended, self._left = "", False
        place = await_event("the gadget to be enumerated", enumerated)
        self.number = int((place / "devnum").read_text())
        self.device = RawDevice(place)
        self._server: threading.Thread | None = None
        by = {(e.attributes & 3, bool(e.address & 0x80)): e for e in self.device.endpoints}
        self._requests, self._responses = by[INTERRUPT, True], by[INTERRUPT, False]
        self._payloads_in, self._payloads_out = by[BULK, True], by[BULK, False]

    def ident(self) -> Ident:
        return Ident.decode(self.device.control(CONTROL_TYPE[Control.IDENT], Control.IDENT, 8))

    def status(self) -> Status:
        return Status.decode(self.device.control(CONTROL_TYPE[Control.STATUS], Control.STATUS, 16))

    def send_config(self, data: bytes) -> None:
        self.device.control(CONTROL_TYPE[Control.CONFIG_EXPORTS], Control.CONFIG_EXPORTS, data)

    def configure(self) -> None:
        self.send_config(ConfigExports((self.record,)).encode())
        await_event("exports to be active", lambda: self.status().active)

    def serve(self) -> None:
        """Answer requests in a thread until the link ends."""
        self._server = threading.Thread(target=self._serve, daemon=True)
        self._server.start()

    def respond(self, data: bytes) -> None:
        self._responses.write(data, 5000)

    def next_request(self) -> Request:
        """For a test that answers by itself, instead of `serve`."""
        return Request.decode(self._requests.read(1024, 0))

    def _serve(self) -> None:
        try:
            while True:
                self._answer(self.next_request())
        except OSError as error:
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
                payload += self._payloads_in.read(min(65536, size - len(payload)), 0)
            if status == 0:
                self.data[start : start + size] = payload
        if not (status and self.answers_early):
            self._responses.write(Response.to(request, status).encode(), 0)
        if request.op is Op.READ and status == 0:
            for offset in range(start, start + size, 65536):
                self._payloads_out.write(bytes(self.data[offset : min(offset + 65536, start + size)]), 0)

    def _ended(self) -> bool:
        return self._server is None or not self._server.is_alive()

    def leave(self) -> None:
        """Let go of the device; reads and writes of other threads are ended first."""
        deadline = time.monotonic() + 20
        while not self._ended() and time.monotonic() < deadline:
            self.device.reset()
            assert self._server is not None
            self._server.join(1)  # a read that began only after the reset is ended by the next one
        assert self._ended(), "the host's transfers did not end after a reset"
        if not self._left:
            self._left = True
            self.device.close()
