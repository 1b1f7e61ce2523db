"""The threads of an attachment against a device whose endings are scripted: who is told what, and that all end."""

import errno
import threading
import time
from collections.abc import Callable

import pytest

from bus.loop import Loop
from common import limits
from common.errors import Gone
from common.wire import Control
from host.usb import attachment as module
from host.usb.attachment import Attachment, ControlRequest, Payload
from host.usb.device import Buffer, Pipe, Span


class ScriptedDevice:
    """Reads block until `gone` is set; a reset sets it unless the device is `stuck`."""

    stuck = False
    refuses: OSError | None = None
    opening = threading.Event()
    made: "list[ScriptedDevice]" = []

    def __init__(self, bus: int, address: int, reset: bool) -> None:
        self.opening.wait(5)
        if self.refuses is not None:
            raise self.refuses
        self.gone, self.resets, self.closed = threading.Event(), 0, False
        self.why = errno.ENODEV
        self.written: list[tuple[Pipe, int]] = []
        self.made.append(self)

    def read(self, pipe: Pipe, span: Span) -> int:
        if pipe is Pipe.PAYLOADS_IN:
            return span.size_bytes - 1
        self.gone.wait(30)
        raise OSError(self.why, "it has gone")

    def write(self, pipe: Pipe, span: Span) -> None:
        self.written.append((pipe, span.size_bytes))

    def control_in(self, request_type: int, request: int, length: int, timeout_ms: int) -> bytes:
        if request == Control.STATUS:
            raise OSError(errno.EPIPE, "stalled")
        return b"x" * length

    def reset(self) -> None:
        self.resets += 1
        if not self.stuck:
            self.gone.set()

    def close(self) -> None:
        self.closed = True


class Told:
    """What the handler hears."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.heard: list[tuple[object, ...]] = []
        self.loop = Loop()
        monkeypatch.setattr(module, "Device", ScriptedDevice)
        monkeypatch.setattr(ScriptedDevice, "made", [])
        monkeypatch.setattr(ScriptedDevice, "opening", threading.Event())
        ScriptedDevice.opening.set()

    def attached(self) -> None:
        self.heard.append(("attached",))

    def message(self, data: bytes) -> None:
        self.heard.append(("message", data))

    def taken(self, sequence: int) -> None:
        self.heard.append(("taken", sequence))

    def sent(self, sequence: int) -> None:
        self.heard.append(("sent", sequence))

    def controlled(self, serial: int, error: int, data: bytes) -> None:
        self.heard.append(("controlled", serial, error, data))

    def detached(self, reason: str) -> None:
        self.heard.append(("detached", reason))

    def attach(self) -> Attachment:
        attachment = Attachment(self.loop, 1, 2, True, self)
        self.until(lambda: ("attached",) in self.heard)
        return attachment

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 10

        def look() -> None:
            assert time.monotonic() < deadline, f"10 s passed; heard: {self.heard}"
            if condition():
                self.loop.stop()

        self.loop.before_wait(look)
        self.loop.every(0.02, lambda: None)
        self.loop._code = None
        try:
            self.loop.run()
        finally:
            self.loop._before_wait.remove(look)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    return Told(monkeypatch)


def ended(told: Told) -> bool:
    return told.heard[-1][0] == "detached"


def threads() -> list[str]:
    """Names of the attachment's threads that are still there. The one that told of the end gets time to end itself."""
    for thread in threading.enumerate():
        if thread.name == "usb close":
            thread.join(10)
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("usb ")]


def test_lost_device_ends_every_thread_and_is_told_once_with_its_reason(told: Told) -> None:
    told.attach()
    (device,) = ScriptedDevice.made
    device.gone.set()
    told.until(lambda: ended(told))
    assert told.heard == [("attached",), ("detached", "requests: [Errno 19] it has gone")]
    assert (device.closed, device.resets, threads()) == (True, 0, [])


def test_asked_to_let_go_of_a_living_device_it_resets_it_to_end_the_reads(told: Told) -> None:
    attachment = told.attach()
    attachment.close("the session wants it")
    told.until(lambda: ended(told))
    assert told.heard[-1] == ("detached", "the session wants it")
    assert (ScriptedDevice.made[0].resets, ScriptedDevice.made[0].closed, threads()) == (1, True, [])


def test_transfer_that_does_not_end_even_then_replaces_the_process(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CLOSE_S", 0.5)
    monkeypatch.setattr(ScriptedDevice, "stuck", True)
    attachment = told.attach()
    attachment.close("the session wants it")
    with pytest.raises(Gone, match="the session wants it: a USB transfer does not end"):
        told.until(lambda: ended(told))
    ScriptedDevice.made[0].gone.set()


def test_device_that_cannot_be_opened_is_told_as_detached(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedDevice, "refuses", OSError(errno.EACCES, "Access denied"))
    Attachment(told.loop, 1, 2, True, told)
    told.until(lambda: told.heard)
    assert told.heard == [("detached", "1-2 cannot be attached: [Errno 13] Access denied")]


def test_let_go_while_it_is_still_being_opened(told: Told) -> None:
    ScriptedDevice.opening.clear()
    attachment = Attachment(told.loop, 1, 2, True, told)
    attachment.close("changed our mind")
    ScriptedDevice.opening.set()
    told.until(lambda: told.heard)
    assert told.heard == [("detached", "changed our mind")]
    assert ScriptedDevice.made[0].closed


def test_short_write_payload_ends_the_attachment(told: Told) -> None:
    attachment = told.attach()
    buffer = Buffer(4096)
    attachment.take(Payload(7, buffer.span, 4096))
    told.until(lambda: ended(told))
    assert told.heard[-1] == (
        "detached",
        "payloads in: a write payload broke off: 4095 bytes where 4096 were to come",
    )


def test_read_payload_is_cut_into_transfers_and_told_when_all_are_sent(told: Told) -> None:
    attachment = told.attach()
    size = 2 * limits.TRANSFER_BYTES + 512
    attachment.put(Payload(7, Buffer(size).span, size))
    told.until(lambda: ("sent", 7) in told.heard)
    assert ScriptedDevice.made[0].written == [(Pipe.PAYLOADS_OUT, n) for n in (65536, 65536, 512)]
    attachment.close("end")
    told.until(lambda: ended(told))


def test_stalled_control_request_is_an_answer_and_ends_nothing(told: Told) -> None:
    attachment = told.attach()
    attachment.control(ControlRequest(1, 0xA1, Control.STATUS, b"", 16))
    attachment.control(ControlRequest(2, 0xC1, Control.IDENT, b"", 8))
    told.until(lambda: len(told.heard) == 3)
    assert told.heard[1:] == [("controlled", 1, errno.EPIPE, b""), ("controlled", 2, 0, b"x" * 8)]
    attachment.close("end")
    told.until(lambda: ended(told))
