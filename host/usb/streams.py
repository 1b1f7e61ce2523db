"""URBs in order: one stream for each endpoint, and the control requests of ep0. Driven by `Streams.reap` in the loop.

A stream hands a few URBs to the kernel and keeps the rest; each one's end is told to whoever queued it. What fails ends
the attachment, or, with EPIPE, begins a new v1 epoch: that is the attachment's to decide.
"""

import errno
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from bus.loop import Loop, Timer
from common import limits
from host.usb.device import Buffer, Device, Pipe
from host.usb.usbfs import SETUP_BYTES, Reaped, UrbKind

Ended = Callable[[int], None]  # bytes that moved
_LATER_S = 0.1  # to take back a control request that is late, while another thread is in a call


@dataclass(frozen=True, slots=True)
class ControlRequest:
    """An ep0 request. IN if the top bit of `request_type` is set: `length` then counts, else `data`."""

    serial: int
    request_type: int
    request: int
    data: bytes
    length: int


class Stream:
    """The transfers of one endpoint, in order; at most `deep` of them are with the kernel."""

    def __init__(self, streams: "Streams", pipe: Pipe, deep: int) -> None:
        self.pipe, self._streams, self._deep = pipe, streams, deep
        self._endpoint, self._kind = streams.device.endpoints[pipe], pipe.urb_kind
        self.waiting: deque[tuple[int, int, Ended]] = deque()
        self.in_flight = 0

    def __len__(self) -> int:
        """Transfers queued that have not ended."""
        return len(self.waiting) + self.in_flight

    def queue(self, address: int, size_bytes: int, ended: Ended) -> None:
        """Behind what is there. The memory is of whom `ended` belongs to, who stays until the transfer is reaped."""
        if self.waiting or self.in_flight >= self._deep:
            self.waiting.append((address, size_bytes, ended))
            return self.pump()
        self._streams.submit(self, self._kind, self._endpoint, address, size_bytes, ended)
        self.in_flight += 1

    def pump(self) -> None:
        while self.waiting and self.in_flight < self._deep:
            address, size_bytes, ended = self.waiting.popleft()
            self._streams.submit(self, self._kind, self._endpoint, address, size_bytes, ended)
            self.in_flight += 1

    def forget(self) -> None:
        """What waits is not sent, and nobody is told of what is with the kernel."""
        self.waiting.clear()
        self.in_flight = 0


class Streams:
    """All URBs of one open device. `failed(where, errno)` is told of one that did not end well."""

    def __init__(self, loop: Loop, device: Device, failed: Callable[[Pipe, int], None]) -> None:
        self._loop, self.device, self._failed = loop, device, failed
        self._owners: dict[int, tuple[Stream, Ended]] = {}
        # Of epochs that are over, until they are reaped: usbfs copies what came then, also of one that a controller
        # gives back behind the boundary. Whom `ended` belongs to has the memory.
        self._disowned: dict[int, Ended] = {}
        self._controls: deque[tuple[ControlRequest, Callable[[int, bytes], None]]] = deque()
        self._control: tuple[int, Buffer, ControlRequest, Callable[[int, bytes], None]] | None = None
        self._timer: Timer | None = None
        self._late = False
        self._paused = False

    def pause(self) -> None:
        """Make no call on the device: another thread is in one, and usbfs lets only one in at a time.

        Control requests that wait for their turn were meant for the epoch that is over: ESTALE.
        """
        self._paused = True
        self.forget()
        waiting, self._controls = self._controls, deque()
        for _, answered in waiting:
            answered(errno.ESTALE, b"")

    def resume(self) -> None:
        self._paused = False
        self.next_control()

    def end(self) -> None:
        """The device is being closed: no call on it any more, and no timer of ours is left."""
        self.pause()
        if self._timer is not None:
            self._timer.cancel()

    def submit(self, stream: Stream, kind: UrbKind, endpoint: int, address: int, size: int, ended: Ended) -> None:
        number = self.device.usbfs.submit(kind, endpoint, address, size)
        self._owners[number] = (stream, ended)

    def reap(self) -> None:
        """Everything that has ended; raises OSError(ENODEV) when the device is gone."""
        while not self._paused and (reaped := self.device.usbfs.reap()) is not None:
            if self._control is not None and reaped.number == self._control[0]:
                self._controlled(reaped)
                continue
            owner = self._owners.pop(reaped.number, None)
            if owner is None:
                self._disowned.pop(reaped.number, None)
                continue
            stream, ended = owner
            stream.in_flight -= 1
            if reaped.error:
                self._failed(stream.pipe, reaped.error)
                continue
            ended(reaped.size_bytes)
            if stream.waiting:
                stream.pump()

    def forget(self) -> None:
        """No data transfer that is with the kernel counts any more; ep0 goes on."""
        for number, (stream, ended) in self._owners.items():
            stream.forget()
            self._disowned[number] = ended
        self._owners.clear()

    # -- ep0 -----------------------------------------------------------------------------------------------------
    def control(self, request: ControlRequest, answered: Callable[[int, bytes], None]) -> None:
        """One after the other, each at most CONTROL_TIMEOUT_MS; `answered(errno or 0, data)`."""
        self._controls.append((request, answered))
        self.next_control()

    def next_control(self) -> None:
        if self._paused or self._control is not None or not self._controls:
            return
        request, answered = self._controls.popleft()
        incoming = bool(request.request_type & 0x80)
        size = request.length if incoming else len(request.data)
        buffer = Buffer(SETUP_BYTES + size)
        head = (request.request_type, request.request, 0, 0, self.device.interface, 0, size & 0xFF, size >> 8)
        buffer.view[:SETUP_BYTES] = bytes(head)
        if not incoming:
            buffer.view[SETUP_BYTES:] = request.data
        number = self.device.usbfs.submit(UrbKind.CONTROL, 0, buffer.address, buffer.size_bytes)
        self._control = (number, buffer, request, answered)
        self._late = False
        self._timer = self._loop.after(limits.CONTROL_TIMEOUT_MS / 1000, self._too_late)

    def _too_late(self) -> None:
        if self._paused:
            self._timer = self._loop.after(_LATER_S, self._too_late)
        elif self._control is not None:
            self._late = True
            self.device.usbfs.discard(self._control[0])

    def _controlled(self, reaped: Reaped) -> None:
        assert self._control is not None and self._timer is not None
        _, buffer, request, answered = self._control
        self._control = None
        self._timer.cancel()
        error, data = reaped.error, b""
        if error and self._late:
            error = errno.ETIMEDOUT
        if not error and request.request_type & 0x80:
            data = bytes(buffer.view[SETUP_BYTES : SETUP_BYTES + reaped.size_bytes])
        elif not error and reaped.size_bytes != len(request.data):
            error = errno.EIO
        answered(error, data)
        self.next_control()


def describe(pipe: Pipe, error: int) -> str:
    """One line for what happened at an endpoint."""
    return f"{pipe.name.lower().replace('_', ' ')}: {os.strerror(error)}"
