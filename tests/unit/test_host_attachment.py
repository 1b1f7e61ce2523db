"""An attachment against a scripted device node: who is told what, new epochs, endings, and nothing left behind."""

import ctypes
import errno
import gc
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from bus.loop import Loop
from common import limits
from common.errors import Gone, WireError
from common.framing import Packer, Unpacker
from common.wire import Op, Request, Response
from common.wire_v1 import Record
from host.usb import attachment as module
from host.usb.attachment import Attachment
from host.usb.core import Answer
from host.usb.device import Pipe
from host.usb.streams import ControlRequest
from host.usb.usbfs import Reaped, UrbKind

IN, OUT = 0x83, 0x04
ENDPOINTS = {Pipe.REQUESTS: 0x81, Pipe.RESPONSES: 0x02, Pipe.PAYLOADS_IN: IN, Pipe.PAYLOADS_OUT: OUT}
_FULL = 0xFFFFFFFFFFFFFFFE  # of an eventfd: not writable


@dataclass
class Urb:
    number: int
    kind: UrbKind
    endpoint: int
    address: int
    size_bytes: int
    data: bytes  # as it was at submission


class ScriptedUsbFs:
    """Says POLLOUT while something has ended. OUT URBs end by themselves unless `takes` is false."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC)
        os.eventfd_write(self.fd, _FULL)
        self.pending: dict[int, Urb] = {}
        self.ended: deque[tuple[Urb, int, bytes | int]] = deque()
        self.written: list[Urb] = []
        self.boundaries, self.resets = 0, 0
        self.takes, self.gone, self.closed = True, False, threading.Event()
        self.late: set[int] = set()  # numbers of URBs that the controller gives back behind the boundary only
        self.boundary_error: OSError | None = None
        self.closes = threading.Event()
        self.closes.set()
        self._next = 1

    def submit(self, kind: UrbKind, endpoint: int, address: int, size_bytes: int) -> int:
        if self.gone:
            raise OSError(errno.ENODEV, "gone")
        urb = Urb(self._next, kind, endpoint, address, size_bytes, ctypes.string_at(address, size_bytes))
        self._next += 1
        self.pending[urb.number] = urb
        if kind is not UrbKind.CONTROL and not endpoint & 0x80 and self.takes:
            self.written.append(urb)
            self.end(urb, 0, size_bytes)
        return urb.number

    def end(self, urb: Urb, error: int, result: bytes | int) -> None:
        del self.pending[urb.number]
        self.ended.append((urb, error, result))
        if len(self.ended) == 1:
            os.eventfd_read(self.fd)

    def reap(self) -> Reaped | None:
        if not self.ended:
            if self.gone:
                raise OSError(errno.ENODEV, "gone")
            return None
        urb, error, result = self.ended.popleft()
        if not self.ended:
            os.eventfd_write(self.fd, _FULL)
        if isinstance(result, bytes):
            start = 8 if urb.kind is UrbKind.CONTROL else 0
            ctypes.memmove(urb.address + start, result, len(result))
            result = len(result)
        return Reaped(urb.number, error, result)

    def discard(self, number: int) -> None:
        self.end(self.pending[number], errno.ENOENT, 0)

    def set_interface(self, interface: int, alternate: int) -> None:
        if self.boundary_error is not None:
            raise self.boundary_error
        self.boundaries += 1
        for urb in [urb for urb in self.pending.values() if urb.kind is not UrbKind.CONTROL]:
            if urb.number not in self.late:
                self.end(urb, errno.ENOENT, 0)

    def close(self) -> None:
        self.closes.wait(10)
        self.closed.set()

    # -- the gadget's part ---------------------------------------------------------------------------------------
    def read_at(self, endpoint: int) -> Urb:
        return next(urb for urb in self.pending.values() if urb.endpoint == endpoint)

    def send(self, endpoint: int, data: bytes) -> None:
        self.end(self.read_at(endpoint), 0, data)

    def fail(self, endpoint: int, error: int) -> None:
        self.end(self.read_at(endpoint), error, 0)

    def control(self) -> Urb:
        return next(urb for urb in self.pending.values() if urb.kind is UrbKind.CONTROL)


class ScriptedDevice:
    """What host.usb.device.Device is to an attachment."""

    version = 1
    refuses: OSError | None = None
    opening = threading.Event()

    def __init__(self, bus: int, address: int, reset: bool) -> None:
        self.opening.wait(10)
        if self.refuses is not None:
            raise self.refuses
        self.usbfs, self.endpoints, self.interface = USBFS[-1], ENDPOINTS, 0

    def set_interface(self) -> None:
        self.usbfs.set_interface(0, 0)

    def close(self) -> None:
        self.usbfs.close()


USBFS: list[ScriptedUsbFs] = []


class Told:
    """What the handler hears, and an arena."""

    def __init__(self, loop: Loop) -> None:
        self.loop, self.heard = loop, list[tuple[object, ...]]()
        self.memory = (ctypes.c_char * (1 << 20))()
        self.base = ctypes.addressof(self.memory)
        self.place: int | None = self.base
        self.refuse = False
        self.here: Attachment

    def has(self, name: str) -> int:
        return sum(event[0] == name for event in self.heard)

    def attached(self) -> None:
        self.heard.append(("attached", self.here.version))

    def broken(self, why: str) -> None:
        self.heard.append(("broken", why))

    def restarting(self) -> None:
        self.heard.append(("restarting",))

    def restarted(self) -> None:
        self.heard.append(("restarted",))

    def detached(self, reason: str) -> None:
        self.heard.append(("detached", reason))

    def controlled(self, serial: int, error: int, data: bytes) -> None:
        self.heard.append(("controlled", serial, error, data))

    def message(self, data: bytes) -> None:
        self.heard.append(("message", data))

    def request(self, record: Record) -> int | None:
        if self.refuse:
            raise WireError("no such request")
        self.heard.append(("request", record))
        sequence = record.request_id + 100
        if record.op is not Op.WRITE:
            return None
        if self.place is not None:
            self.here.take(sequence, self.place, record.blocks * 512)
        return sequence

    def payload_of(self, sequence: int) -> int:
        return next(e[1].blocks * 512 for e in self.heard if e[0] == "request" and e[1].request_id + 100 == sequence)  # type: ignore[attr-defined]

    def taken(self, sequence: int) -> None:
        self.heard.append(("taken", sequence))

    def sent(self, sequence: int) -> None:
        self.heard.append(("sent", sequence))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    monkeypatch.setattr(module, "Device", ScriptedDevice)
    monkeypatch.setattr(ScriptedDevice, "version", 1)
    monkeypatch.setattr(ScriptedDevice, "refuses", None)
    ScriptedDevice.opening.set()
    USBFS.append(ScriptedUsbFs())
    told = Told(Loop())
    told.here = Attachment(told.loop, 1, 2, True, told)
    return told


def until(told: Told, what: Callable[[], object], deadline_s: float = 10) -> None:
    end = time.monotonic() + deadline_s

    def look() -> None:
        told.here.pump()
        if what():
            told.loop.stop()
        assert time.monotonic() < end, f"waited {deadline_s} s; heard {told.heard}"

    told.loop._code = None
    told.loop.before_wait(look)
    told.loop.every(0.02, lambda: None)
    told.loop.run()
    told.loop._before_wait.remove(look)


def attached(told: Told) -> ScriptedUsbFs:
    until(told, lambda: told.has("attached"))
    return USBFS[-1]


class Gadget:
    """Frames of the gadget in the attachment's present epoch."""

    def __init__(self, told: Told) -> None:
        self.packer: Packer[bytes] = Packer(told.here.epoch)

    def frames(self, *messages: tuple[Record, bytes]) -> list[bytes]:
        for record, data in messages:
            self.packer.add(record, len(data), data)
        frames = []
        while (frame := self.packer.take()) is not None:
            body = b"".join(part.token[part.offset : part.offset + part.size_bytes] for part in frame.parts)
            frames.append(frame.head + body + bytes(frame.pad))
        return frames


READ = Record(Op.READ, 0, 1, 0xA, 0, 8)


def write(request_id: int, blocks: int) -> Record:
    return Record(Op.WRITE, 0, request_id, 0xA, 0, blocks)


def answer(size_bytes: int, sequence: int = 7) -> Answer:
    return Answer(Response(Op.READ, 0, 1, 0xA, 0, size_bytes // 512), sequence, 0, size_bytes)


# -- v1 data -----------------------------------------------------------------------------------------------------
def test_the_fragments_of_a_write_come_together_in_their_place(told: Told) -> None:
    usbfs, data = attached(told), os.urandom(256 * 512)
    for frame in Gadget(told).frames((write(1, 256), data), (READ, b"")):
        usbfs.send(IN, frame)
    until(told, lambda: told.has("request") == 2)
    assert told.has("taken") == 1 and ctypes.string_at(told.base, len(data)) == data


def test_a_write_without_a_place_is_held_and_put_there_when_it_has_one(told: Told) -> None:
    usbfs, data = attached(told), os.urandom(256 * 512)
    told.place = None
    for frame in Gadget(told).frames((write(1, 256), data)):
        usbfs.send(IN, frame)
    until(told, lambda: not usbfs.ended)
    assert not told.has("taken")
    told.here.take(101, told.base, len(data))
    assert told.has("taken") == 1 and ctypes.string_at(told.base, len(data)) == data


def test_held_data_are_bounded_and_reading_goes_on_when_there_is_room(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HELD_BYTES", 1000)
    usbfs, gadget = attached(told), Gadget(told)
    told.place = None
    reads = limits.FRAME_READS
    for number in range(reads):
        for frame in gadget.frames((write(number, 4), bytes(2048))):
            usbfs.send(IN, frame)
            until(told, lambda: not usbfs.ended)
    assert sum(urb.endpoint == IN for urb in usbfs.pending.values()) == 0
    for number in range(reads):
        told.here.take(100 + number, None, 2048)
    assert sum(urb.endpoint == IN for urb in usbfs.pending.values()) == reads


def test_answers_travel_together_behind_a_lone_one_and_their_space_is_free_at_once(told: Told) -> None:
    usbfs = attached(told)
    told.memory[:4096] = data = os.urandom(4096)
    for sequence in range(3):
        told.here.answer(answer(4096, sequence), told.base)
    told.here.pump()
    until(told, lambda: not usbfs.ended)
    (frame,) = [urb for urb in usbfs.written if urb.endpoint == OUT]
    placed = Unpacker(told.here.epoch).take(frame.data)
    assert [frame.data[where : where + record.data_bytes] for record, where in placed] == [data] * 3
    assert told.has("sent") == 3


def test_no_more_frames_are_on_their_way_than_few(told: Told) -> None:
    usbfs = attached(told)
    usbfs.takes = False
    for sequence in range(8):
        told.here.answer(answer(64 << 10, sequence), told.base)
    told.here.pump()
    assert sum(urb.endpoint == OUT for urb in usbfs.pending.values()) == limits.FRAMES_IN_FLIGHT


# -- v1 epochs ---------------------------------------------------------------------------------------------------
def test_a_halted_endpoint_begins_a_new_epoch_and_nothing_of_the_old_one_is_heard(told: Told) -> None:
    usbfs = attached(told)
    old, gadget = told.here.epoch, Gadget(told)
    usbfs.fail(IN, errno.EPIPE)
    until(told, lambda: told.has("restarted"))
    assert usbfs.boundaries == 1 and told.here.epoch not in (0, old)
    assert [event[0] for event in told.heard] == ["attached", "restarting", "restarted"]
    usbfs.send(IN, gadget.frames((READ, b""))[0])  # of the old epoch: it costs another boundary
    until(told, lambda: told.has("restarted") == 2)
    usbfs.send(IN, Gadget(told).frames((READ, b""))[0])
    until(told, lambda: told.has("request"))


def test_the_memory_of_a_transfer_lives_until_it_is_reaped_also_when_its_epoch_is_over(told: Told) -> None:
    """usbfs copies what came when an URB is reaped, and a controller may give one back behind the boundary."""
    usbfs = attached(told)
    plane = weakref.ref(told.here._plane)
    *_, late = (urb for urb in usbfs.pending.values() if urb.endpoint == IN)
    usbfs.late = {late.number}
    usbfs.fail(IN, errno.EPIPE)
    until(told, lambda: told.has("restarted"))
    gc.collect()
    assert plane() is not None, "its buffer is where the bytes will land"
    usbfs.end(late, 0, bytes(limits.FRAME_BYTES))
    until(told, lambda: not usbfs.ended)
    gc.collect()
    assert plane() is None
    assert told.has("restarted") == 1 and not told.has("request"), "nothing of it is heard"


@pytest.mark.parametrize(
    "spoil",
    [lambda frame: frame[:-1], lambda frame: frame * 2, lambda frame: b"", lambda frame: b"\xff" * 100],
    ids=["short", "twice", "nothing", "noise"],
)
def test_a_frame_that_cannot_be_begins_a_new_epoch(told: Told, spoil: Callable[[bytes], bytes]) -> None:
    usbfs = attached(told)
    usbfs.send(IN, spoil(Gadget(told).frames((READ, b""))[0]))
    until(told, lambda: told.has("restarted"))
    assert not told.has("request") and not told.has("detached")


@pytest.mark.parametrize("offset", [512, 4096])
def test_a_fragment_out_of_its_place_begins_a_new_epoch(told: Told, offset: int) -> None:
    usbfs, gadget = attached(told), Gadget(told)
    frame = gadget.frames((write(1, 8), bytes(4096)))[0]
    usbfs.send(IN, frame[:24] + frame[24:48] + offset.to_bytes(4, "little") + frame[52:])
    until(told, lambda: told.has("restarted"))


def test_what_the_core_refuses_in_the_middle_of_a_frame_ends_the_frame(told: Told) -> None:
    usbfs = attached(told)
    told.refuse = True
    usbfs.send(IN, Gadget(told).frames((READ, b""), (replace(READ, request_id=2), b""))[0])
    until(told, lambda: told.has("restarted"))
    assert not told.has("request")


def test_too_many_new_epochs_give_the_device_up(told: Told) -> None:
    usbfs = attached(told)
    for count in range(limits.MAX_RESTARTS):
        usbfs.fail(IN, errno.EPIPE)
        until(told, lambda count=count: told.has("restarted") == count + 1)
    usbfs.fail(IN, errno.EPIPE)
    until(told, lambda: told.has("detached"))
    assert f"{limits.MAX_RESTARTS + 1} times" in str(told.heard[-1][1]) and usbfs.closed.is_set()


def test_a_boundary_that_the_device_refuses_ends_the_attachment(told: Told) -> None:
    usbfs = attached(told)
    usbfs.boundary_error = OSError(errno.EPROTO, "Protocol error")
    usbfs.fail(IN, errno.EPIPE)
    until(told, lambda: told.has("detached"))
    assert "SET_INTERFACE" in str(told.heard[-1][1])


# -- ep0 ---------------------------------------------------------------------------------------------------------
def test_control_requests_go_one_after_the_other_and_a_stall_is_an_answer(told: Told) -> None:
    usbfs = attached(told)
    told.here.control(ControlRequest(1, 0xA1, 3, b"", 16))
    told.here.control(ControlRequest(2, 0x41, 2, b"hello", 0))
    first = usbfs.control()
    assert first.data[:8] == bytes([0xA1, 3, 0, 0, 0, 0, 16, 0])
    usbfs.end(first, 0, b"x" * 16)
    until(told, lambda: told.has("controlled"))
    second = usbfs.control()
    assert second.data == bytes([0x41, 2, 0, 0, 0, 0, 5, 0]) + b"hello"
    usbfs.end(second, errno.EPIPE, 0)
    until(told, lambda: told.has("controlled") == 2)
    assert told.heard[1:] == [("controlled", 1, 0, b"x" * 16), ("controlled", 2, errno.EPIPE, b"")]


def test_a_control_request_that_waits_when_an_epoch_ends_is_never_made(told: Told) -> None:
    """Seen in the guest: a CONFIG of the epoch before went out in the next one, behind a STATUS that had been slow."""
    usbfs = attached(told)
    told.here.control(ControlRequest(1, 0xA1, 3, b"", 16))
    told.here.control(ControlRequest(2, 0x41, 0x52, b"of this epoch", 0))
    usbfs.fail(IN, errno.EPIPE)
    until(told, lambda: told.has("restarted"))
    usbfs.end(usbfs.control(), 0, b"x" * 16)
    until(told, lambda: told.has("controlled") == 2)
    assert [event for event in told.heard if event[0] == "controlled"] == [
        ("controlled", 2, errno.ESTALE, b""),
        ("controlled", 1, 0, b"x" * 16),
    ]
    assert not any(urb.kind is UrbKind.CONTROL for urb in usbfs.pending.values())


def test_a_control_request_between_two_epochs_is_never_made(told: Told) -> None:
    """It was meant for the epoch that is over: a CONFIG of it would be in force at the gadget behind the boundary."""
    usbfs = attached(told)
    usbfs.fail(IN, errno.EPIPE)
    until(told, lambda: told.has("restarting"))
    told.here.control(ControlRequest(1, 0x41, 0x52, b"of the epoch before", 0))
    until(told, lambda: told.has("restarted"))
    assert [event for event in told.heard if event[0] == "controlled"] == [("controlled", 1, errno.ESTALE, b"")]
    assert not any(urb.kind is UrbKind.CONTROL for urb in usbfs.pending.values())


def test_a_control_request_that_is_not_answered_times_out(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONTROL_TIMEOUT_MS", 50)
    attached(told)
    told.here.control(ControlRequest(1, 0xA1, 3, b"", 16))
    until(told, lambda: told.has("controlled"))
    assert told.heard[-1] == ("controlled", 1, errno.ETIMEDOUT, b"")


# -- v0 ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def v0(told: Told, monkeypatch: pytest.MonkeyPatch) -> Told:
    monkeypatch.setattr(ScriptedDevice, "version", 0)
    return told


def test_v0_requests_come_as_they_are(v0: Told) -> None:
    usbfs = attached(v0)
    for number in range(20):
        usbfs.send(0x81, Request(Op.READ, number, 0xA, 0, 1).encode())
        until(v0, lambda: not usbfs.ended)
    assert [event[1] for event in v0.heard[1:]] == [Request(Op.READ, n, 0xA, 0, 1).encode() for n in range(20)]


def test_a_v0_read_payload_is_cut_into_transfers_and_told_when_all_have_left(v0: Told) -> None:
    usbfs = attached(v0)
    v0.here.answer(answer(limits.TRANSFER_BYTES + 512), v0.base)
    until(v0, lambda: v0.has("sent"))
    assert [(urb.endpoint, urb.size_bytes) for urb in usbfs.written] == [(0x02, 28), (OUT, 65536), (OUT, 512)]


def test_a_v0_write_payload_that_breaks_off_ends_the_attachment(v0: Told) -> None:
    usbfs = attached(v0)
    v0.here.take(1, v0.base, 4096)
    usbfs.send(IN, bytes(4095))
    until(v0, lambda: v0.has("detached"))
    assert "broke off" in str(v0.heard[-1][1])
    assert v0.has("broken") == 1 and "broke off" in str(v0.heard[-2][1]), "told before the end, to be counted"


@pytest.mark.parametrize("version", [0, 1])
def test_a_gadget_that_never_reads_its_answers_is_given_up_before_they_are_many(
    told: Told, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    """Found by review: refused Requests were answered without bound."""
    monkeypatch.setattr(limits, "MAX_UNWRITTEN", 10)
    monkeypatch.setattr(ScriptedDevice, "version", version)
    usbfs = attached(told)
    usbfs.takes = False
    for sequence in range(10 + 1):
        told.here.answer(answer(0, sequence), 0)
    until(told, lambda: told.has("restarting") or told.has("detached"))


# -- endings -----------------------------------------------------------------------------------------------------
def test_a_device_that_is_gone_is_told_once_with_its_reason_and_closed(told: Told) -> None:
    usbfs = attached(told)
    usbfs.gone = True
    for _ in range(limits.FRAME_READS):
        usbfs.fail(IN, errno.ESHUTDOWN)
    until(told, lambda: told.has("detached"))
    assert told.heard[1:] == [("detached", "payloads in: No such device")] and usbfs.closed.is_set()


def test_an_attachment_that_ended_while_ep0_was_asked_leaves_no_timer_behind(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by review: each unplugging in the middle of a STATUS left a timer that went off ten times a second."""
    monkeypatch.setattr(limits, "CONTROL_TIMEOUT_MS", 50)
    attached(told)
    told.here.control(ControlRequest(1, 0xA1, 3, b"", 16))
    told.here.close("unplugged")
    until(told, lambda: told.has("detached"))
    late = [timer for timer in told.loop._timers if getattr(timer.handler, "__self__", None) is told.here._streams]
    assert late == [] and not told.has("controlled")


def test_asked_to_let_go_it_closes_the_device_and_tells_why(told: Told) -> None:
    usbfs = attached(told)
    told.here.close("another gadget is wanted")
    told.here.close("twice")
    until(told, lambda: told.has("detached"))
    assert told.heard[-1] == ("detached", "another gadget is wanted") and usbfs.closed.is_set()


def test_a_device_that_cannot_be_closed_replaces_the_process(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CLOSE_S", 0.1)
    usbfs = attached(told)
    usbfs.closes.clear()
    told.here.close("enough")
    with pytest.raises(Gone, match="cannot be closed"):
        until(told, lambda: told.has("detached"))
    usbfs.closes.set()


def test_a_device_that_cannot_be_opened_is_told_as_detached(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedDevice, "refuses", OSError(errno.EBUSY, "Device or resource busy"))
    told.here = Attachment(told.loop, 1, 2, True, told)
    until(told, lambda: told.has("detached"))
    assert "1-2 cannot be attached: [Errno 16]" in str(next(e for e in told.heard if e[0] == "detached")[1])


def test_a_device_that_answers_hello_with_nonsense_is_told_as_one_that_broke_the_protocol(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScriptedDevice, "refuses", WireError("HELLO: 3 bytes, not 16"))
    told.here = Attachment(told.loop, 1, 2, True, told)
    until(told, lambda: told.has("detached"))
    assert [event[0] for event in told.heard][-2:] == ["broken", "detached"]


def test_let_go_while_it_is_still_being_opened(told: Told) -> None:
    attached(told)
    ScriptedDevice.opening.clear()
    USBFS.append(ScriptedUsbFs())
    told.here = Attachment(told.loop, 1, 2, True, told)
    told.here.close("not wanted any more")
    ScriptedDevice.opening.set()
    until(told, lambda: told.has("detached"))
    assert told.heard[-1] == ("detached", "not wanted any more") and USBFS[-1].closed.is_set()
    assert told.has("attached") == 1
