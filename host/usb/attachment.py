"""One attachment: a claimed device from opening to loss, its data plane, and v1's resynchronisation within it.

Transfers are URBs driven by the loop; only what may block for seconds (opening, SET_INTERFACE, closing) is done by a
thread, one at a time, which posts its result. A thread that does not come back holds the device: the process is
replaced (Gone). Called by host.usb.role.
"""

import errno
import secrets
from collections.abc import Callable
from enum import Enum, auto
from threading import Thread
from typing import Protocol

import zmq

from bus.loop import Loop
from common import limits, trace
from common.errors import Gone, ReplugError, WireError
from host.usb.core import Answer
from host.usb.device import Device, Pipe
from host.usb.plane import Plane, Receiver
from host.usb.plane_v0 import PlaneV0
from host.usb.plane_v1 import PlaneV1
from host.usb.streams import ControlRequest, Streams, describe

_FAILURES = (OSError, NotImplementedError, ReplugError)  # NotImplementedError: pyusb's LIBUSB_ERROR_NOT_SUPPORTED
_GONE = (errno.ENODEV, errno.ESHUTDOWN, errno.ENOENT)


class Handler(Receiver, Protocol):
    """Who is told, in the loop. After `detached` nothing more comes."""

    def attached(self) -> None: ...
    def broken(self, why: str) -> None: ...
    def restarting(self) -> None: ...
    def restarted(self) -> None: ...
    def controlled(self, serial: int, error: int, data: bytes) -> None: ...
    def detached(self, reason: str) -> None: ...


class State(Enum):
    OPENING = auto()
    OPEN = auto()
    RESTARTING = auto()  # v1: SET_INTERFACE is under way
    CLOSING = auto()


class Attachment:
    """Opens at once; `handler.attached` or `handler.detached` tells how it went. `version` and `epoch`: of its wire."""

    def __init__(self, loop: Loop, bus: int, address: int, reset: bool, handler: Handler) -> None:
        self.bus, self.address = bus, address
        self.version, self.epoch = 0, 0
        self._loop, self._handler = loop, handler
        self._state = State.OPENING
        self._device: Device | None = None
        self._why = ""
        self._restarts: list[float] = []
        self._opening = True  # the opener is not back
        self._in_call = False
        self._work(lambda: self._opened(Device(bus, address, reset)), self._not_opened)

    def _work(self, work: Callable[[], Callable[[], None]], failed: Callable[[str], None]) -> None:
        """Run `work` in a thread; what it returns, or `failed(why)`, then runs in the loop."""

        def run() -> None:
            try:
                result = work()
            except _FAILURES as error:
                why = str(error)
                if isinstance(error, WireError):
                    self._loop.post(lambda: self._handler.broken(why))
                self._loop.post(lambda: failed(why))
            else:
                self._loop.post(result)

        Thread(target=run, name="usb", daemon=True).start()

    # -- opening -------------------------------------------------------------------------------------------------
    def _opened(self, device: Device) -> Callable[[], None]:
        def go_on() -> None:
            self._device, self._opening = device, False
            if self._state is State.CLOSING:
                return self._close(device)
            self._streams = Streams(self._loop, device, self._failed)
            self._loop.watch(device.usbfs.fd, self._ready, zmq.POLLOUT)
            self.version = device.version
            self._begin(device)
            self._handler.attached()

        return go_on

    def _not_opened(self, why: str) -> None:
        self._opening = False
        reason = self._why or f"{self.bus}-{self.address} cannot be attached: {why}"
        self._state = State.CLOSING
        self._handler.detached(reason)

    def _begin(self, device: Device) -> None:
        self._state = State.OPEN
        if self.version == 1:
            self.epoch = secrets.randbits(63) + 1
            self._plane: Plane = PlaneV1(self._streams, self._handler, self.epoch)
        else:
            self._plane = PlaneV0(self._streams, self._handler)
        self._guarded(self._plane.begin)

    # -- called from the loop ------------------------------------------------------------------------------------
    def answer(self, answer: Answer, address: int) -> None:
        """Send a Response and its payload."""
        if self._state is State.OPEN:
            self._guarded(self._plane.answer, answer, address)

    def take(self, sequence: int, address: int | None, size_bytes: int) -> None:
        """Take a write's payload; then `handler.taken`."""
        if self._state is State.OPEN:
            self._guarded(self._plane.take, sequence, address, size_bytes)

    def pump(self) -> None:
        """Before the loop waits: send what was answered."""
        if self._state is State.OPEN:
            self._guarded(self._plane.pump)

    def control(self, request: ControlRequest) -> None:
        """Make an ep0 request, at most CONTROL_TIMEOUT_MS; then `handler.controlled`. ESTALE between two epochs."""

        def answered(error: int, data: bytes) -> None:
            if self._state is not State.CLOSING:
                self._handler.controlled(request.serial, error, data)

        if self._state is State.RESTARTING:
            # Behind the boundary it would be of the epoch before: a CONFIG then puts that one in force at the gadget.
            answered(errno.ESTALE, b"")
        elif self._state is State.OPEN:
            self._guarded(self._streams.control, request, answered)

    # -- transfers -----------------------------------------------------------------------------------------------
    def _ready(self) -> None:
        trace.point("usb.urbs.ended")
        self._guarded(self._streams.reap)

    def _failed(self, pipe: Pipe, error: int) -> None:
        if error == errno.EPIPE and self.version == 1:
            self.restart("the gadget's usb was replaced")
        else:
            self.close(describe(pipe, errno.ENODEV if error in _GONE else error))

    def _guarded(self, call: Callable[..., None], *arguments: object) -> None:
        """A gadget that breaks the protocol costs v1 an epoch, and v0 the attachment; a dead one ends it.

        A call within a call only raises: what it was part of must not go on in an epoch that is over.
        """
        if self._in_call:
            return call(*arguments)
        self._in_call = True
        try:
            call(*arguments)
        except WireError as error:
            why = f"the gadget broke the protocol: {error}"
            self._handler.broken(str(error))
            if self.version == 1:
                self.restart(why)
            else:
                self.close(why)
        except OSError as error:
            if error.errno == errno.EPIPE and self.version == 1:
                self.restart("an endpoint is halted")
            else:
                self.close(f"usbfs: {error.strerror}")
        finally:
            self._in_call = False

    # -- v1: a new epoch -----------------------------------------------------------------------------------------
    def restart(self, why: str) -> None:
        """End this epoch's data at the clean boundary; `handler.restarting` now and `handler.restarted` after it."""
        device = self._device
        if self._state is not State.OPEN or device is None:
            return
        now = self._loop.now()
        self._restarts = [at for at in self._restarts if now - at < limits.RESTARTS_WITHIN_S] + [now]
        if len(self._restarts) > limits.MAX_RESTARTS:
            return self.close(f"{why}; and that {len(self._restarts)} times within {limits.RESTARTS_WITHIN_S:g} s")
        self._state, self._why = State.RESTARTING, why
        self._loop.unwatch(device.usbfs.fd)
        self._streams.pause()
        self._handler.restarting()

        def boundary() -> Callable[[], None]:
            device.set_interface()
            return lambda: self._restarted(device)

        self._work(boundary, lambda failure: self.close(f"{why}; SET_INTERFACE: {failure}"))

    def _restarted(self, device: Device) -> None:
        if self._state is not State.RESTARTING:
            return
        self._why = ""
        self._loop.watch(device.usbfs.fd, self._ready, zmq.POLLOUT)
        self._streams.resume()
        self._guarded(self._streams.reap)  # what the boundary has ended
        if self._is(State.RESTARTING):
            self._begin(device)
        if self._is(State.OPEN):
            self._handler.restarted()

    def _is(self, state: State) -> bool:
        """Now, that is: a call in between may have changed it."""
        return self._state is state

    # -- the end -------------------------------------------------------------------------------------------------
    def close(self, reason: str) -> None:
        """End it: `handler.detached(reason)` follows when the device is closed, or Gone leaves the loop."""
        if self._state is State.CLOSING:
            return
        opening, self._state, self._why = self._state is State.OPENING, State.CLOSING, reason
        self._loop.after(limits.CLOSE_S, self._not_closed)
        if not opening and self._device is not None:
            self._loop.unwatch(self._device.usbfs.fd)
            self._streams.end()
            self._close(self._device)

    def _close(self, device: Device) -> None:
        def closed() -> Callable[[], None]:
            device.close()
            return self._closed

        self._work(closed, lambda why: self._closed())

    def _closed(self) -> None:
        self._device = None
        self._handler.detached(self._why)

    def _not_closed(self) -> None:
        if self._opening or self._device is not None:
            raise Gone(f"{self._why}: the device cannot be closed: its process must end")
