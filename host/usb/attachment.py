"""One attachment: a claimed device from opening to loss, with a thread for each endpoint and one for ep0.

Threads only transfer; everything they learn goes to the loop by `post`. Reads and writes have no time limit, so an
attachment ends by the device's death or by a reset, after which every transfer has failed. A thread that does not end
even then holds buffers and toggles nobody can reason about: the process is replaced (Gone). Called by host.usb.role.
"""

import contextlib
import errno
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Protocol

from bus.loop import Loop
from common import limits
from common.errors import Gone, ReplugError, WireError
from host.usb.device import Buffer, Device, Pipe, Span

_MESSAGE_READ_BYTES = 1024  # a multiple of every packet size: one that asks for less could overflow
_LET_GO_S = 0.2  # transfers of a device that is gone end at once; a reset is tried if they have not
_FAILURES = (OSError, NotImplementedError, WireError)  # NotImplementedError: pyusb's LIBUSB_ERROR_NOT_SUPPORTED


class Handler(Protocol):
    """Who is told, in the loop. After `detached` nothing more comes, and no transfer touches an arena."""

    def attached(self) -> None: ...
    def message(self, data: bytes) -> None: ...
    def taken(self, sequence: int) -> None: ...
    def sent(self, sequence: int) -> None: ...
    def controlled(self, serial: int, error: int, data: bytes) -> None: ...
    def detached(self, reason: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Payload:
    """A payload to take from or put on a bulk endpoint. `span` None: take it and throw it away."""

    sequence: int
    span: Span | None
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ControlRequest:
    """An ep0 request. IN if the top bit of `request_type` is set: `length` then counts, else `data`."""

    serial: int
    request_type: int
    request: int
    data: bytes
    length: int


class Attachment:
    """Opens at once, in a thread; `handler.attached` or `handler.detached` tells how it went."""

    def __init__(self, loop: Loop, bus: int, address: int, reset: bool, handler: Handler) -> None:
        self.bus, self.address = bus, address
        self._loop, self._handler = loop, handler
        self._device: Device | None = None
        self._threads: list[Thread] = []
        self._closing: str | None = None
        self._responses: SimpleQueue[bytes | None] = SimpleQueue()
        self._incoming: SimpleQueue[Payload | None] = SimpleQueue()
        self._outgoing: SimpleQueue[Payload | None] = SimpleQueue()
        self._controls: SimpleQueue[ControlRequest | None] = SimpleQueue()
        self._sink = Buffer(limits.TRANSFER_BYTES)
        self._opener = self._thread("open", lambda: self._open(bus, address, reset))

    def _thread(self, name: str, body: Callable[[], None]) -> Thread:
        thread = Thread(target=body, name=f"usb {name}", daemon=True)
        thread.start()
        return thread

    # -- opening -------------------------------------------------------------------------------------------------
    def _open(self, bus: int, address: int, reset: bool) -> None:
        try:
            device = Device(bus, address, reset)
        except (*_FAILURES, ReplugError) as error:
            why = f"{bus}-{address} cannot be attached: {error}"
            self._loop.post(lambda: self._not_opened(why))
            return
        self._loop.post(lambda: self._opened(device))

    def _not_opened(self, why: str) -> None:
        if self._closing is None:
            self._closing = why
        self._handler.detached(self._closing)

    def _opened(self, device: Device) -> None:
        self._device = device
        if self._closing is not None:
            self._end_threads(device)
            return
        for name, body in (
            ("requests", self._read_requests),
            ("responses", self._write_responses),
            ("payloads in", self._take_payloads),
            ("payloads out", self._put_payloads),
            ("control", self._answer_controls),
        ):
            self._threads.append(self._thread(name, self._guarded(name, body, device)))
        self._handler.attached()

    # -- called from the loop ------------------------------------------------------------------------------------
    def respond(self, data: bytes) -> None:
        """Put a Response on interrupt OUT, behind the ones before."""
        self._responses.put(data)

    def take(self, payload: Payload) -> None:
        """Have a write payload read from bulk IN, behind the ones before; then `handler.taken`."""
        self._incoming.put(payload)

    def put(self, payload: Payload) -> None:
        """Put a read payload on bulk OUT, behind the ones before; then `handler.sent`."""
        self._outgoing.put(payload)

    def control(self, request: ControlRequest) -> None:
        """Make an ep0 request, at most CONTROL_TIMEOUT_MS; then `handler.controlled`."""
        self._controls.put(request)

    def close(self, reason: str) -> None:
        """End it: `handler.detached(reason)` follows when the last transfer has ended, or Gone leaves the loop."""
        if self._closing is not None:
            return
        self._closing = reason
        self._loop.after(limits.CLOSE_S, self._not_closed)
        if self._device is not None:
            self._end_threads(self._device)

    # -- the threads ---------------------------------------------------------------------------------------------
    def _guarded(self, name: str, body: Callable[[Device], None], device: Device) -> Callable[[], None]:
        def run() -> None:
            try:
                body(device)
            except _FAILURES as error:
                why = f"{name}: {error}"
                self._loop.post(lambda: self.close(why))

        return run

    def _tell(self, event: Callable[[], None]) -> None:
        def deliver() -> None:
            if self._closing is None:
                event()

        self._loop.post(deliver)

    def _read_requests(self, device: Device) -> None:
        buffer = Buffer(_MESSAGE_READ_BYTES)
        while self._closing is None:
            data = buffer.get(device.read(Pipe.REQUESTS, buffer.span))
            self._tell(lambda data=data: self._handler.message(data))  # type: ignore[misc]

    def _write_responses(self, device: Device) -> None:
        buffer = Buffer(_MESSAGE_READ_BYTES)
        while (data := self._responses.get()) is not None:
            device.write(Pipe.RESPONSES, buffer.fill(data))

    def _take_payloads(self, device: Device) -> None:
        while (payload := self._incoming.get()) is not None:
            for start in range(0, payload.size_bytes, limits.TRANSFER_BYTES):
                size = min(limits.TRANSFER_BYTES, payload.size_bytes - start)
                address = self._sink.span.address if payload.span is None else payload.span.address + start
                count = device.read(Pipe.PAYLOADS_IN, Span(address, size))
                if count != size:
                    raise WireError(f"a write payload broke off: {count} bytes where {size} were to come")
            self._tell(lambda sequence=payload.sequence: self._handler.taken(sequence))  # type: ignore[misc]

    def _put_payloads(self, device: Device) -> None:
        while (payload := self._outgoing.get()) is not None:
            if payload.span is None:
                raise WireError(f"a read payload without bytes: {payload}")
            for start in range(0, payload.size_bytes, limits.TRANSFER_BYTES):
                size = min(limits.TRANSFER_BYTES, payload.size_bytes - start)
                device.write(Pipe.PAYLOADS_OUT, Span(payload.span.address + start, size))
            self._tell(lambda sequence=payload.sequence: self._handler.sent(sequence))  # type: ignore[misc]

    def _answer_controls(self, device: Device) -> None:
        """A failure here does not end the attachment: a stall is an answer, and a lost device shows elsewhere."""
        while (request := self._controls.get()) is not None:
            error, data = 0, b""
            try:
                if request.request_type & 0x80:
                    data = device.control_in(
                        request.request_type, request.request, request.length, limits.CONTROL_TIMEOUT_MS
                    )
                else:
                    device.control_out(request.request_type, request.request, request.data, limits.CONTROL_TIMEOUT_MS)
            except OSError as failure:
                error = failure.errno or errno.EIO  # LIBUSB_ERROR_OTHER has none
            self._tell(
                lambda serial=request.serial, error=error, data=data: self._handler.controlled(  # type: ignore[misc]
                    serial, error, data
                )
            )

    # -- the end -------------------------------------------------------------------------------------------------
    def _end_threads(self, device: Device) -> None:
        for queue in (self._responses, self._incoming, self._outgoing, self._controls):
            queue.put(None)
        self._thread("close", lambda: self._close(device))

    def _close(self, device: Device) -> None:
        if not self._joined(_LET_GO_S):
            with contextlib.suppress(*_FAILURES):
                device.reset()
            if not self._joined(limits.CLOSE_S):
                return  # the loop's timer replaces the process
        device.close()
        self._loop.post(self._closed)

    def _joined(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _closed(self) -> None:
        self._device = None
        self._handler.detached(self._closing or "closed")

    def _not_closed(self) -> None:
        if self._device is not None or self._opener.is_alive():
            raise Gone(f"{self._closing}: a USB transfer does not end: its process must")
