"""A hostile host against the gadget on the real kernel (issue 4, what it must show): ep0, frames, Responses, floods.

Seeded: REPLUG_SEED runs another one.
"""

import contextlib
import errno
import mmap
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.runtime import Runtime, Side
from common.errors import WireError
from common.wire import CONTROL_TYPE, ConfigExports, Control, ExportRecord, Op, Response
from common.wire_v1 import CONTROL_TYPE_V1, HEAD_BYTES, RECORD_BYTES, ConfigV1, ControlV1, ExportV1
from tests.e2e.hostile import Watch, dice, hurt
from tests.e2e.v0_host import V0Host, await_event, number
from tests.e2e.v1_host import V1Host
from tools.demo import inside

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]
RECORD = ExportRecord(0x5EED, 512, 4 << 20)
DEVICE = Path("/dev/ublkb0")
SETUPS = 400
KNOWN = {(int(CONTROL_TYPE[c]), int(c)) for c in Control} | {(int(CONTROL_TYPE_V1[c]), int(c)) for c in ControlV1}
VENDOR, CLASS, IN, INTERFACE = 0x40, 0x20, 0x80, 0x01  # parts of bmRequestType


@pytest.fixture(scope="module")
def gadget() -> Iterator[Runtime]:
    up = inside.replug("gadget", "up", "--serial", "test1")
    assert up.returncode == 0, up.stderr
    yield Runtime(Side.GADGET)
    print(Runtime(Side.GADGET).log_path("usb").read_text()[-9000:])  # pytest shows it with a failure
    inside.replug("gadget", "down", "--force")
    inside._see_nothing_left()


@pytest.fixture
def host(gadget: Runtime) -> Iterator[V1Host]:
    host = V1Host(RECORD)
    host.data[:] = os.urandom(RECORD.size_bytes)
    yield host
    host.leave()


class Honest:
    """Somebody who uses the disk all the while, and compares every byte with the host's."""

    def __init__(self, data: bytearray) -> None:
        self._data, self._over = data, threading.Event()
        self.done, self.fault = 0, ""
        fd = await_event(f"{DEVICE}", opened)
        assert fd is not None
        self._fd = fd
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Honest":
        self._thread.start()
        await_event("the first I/O", lambda: self.done or self.fault)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)
        os.close(self._fd)
        assert not self._thread.is_alive() and not self.fault, self.fault or "an I/O did not end"

    def _run(self) -> None:
        rng, buffer = random.Random(1), mmap.mmap(-1, 8192)
        try:
            while not self._over.is_set():
                at = rng.randrange(RECORD.size_bytes // 8192) * 8192
                if self.done % 2:
                    buffer[:] = bytes([self.done % 256]) * 8192
                    os.pwritev(self._fd, [buffer], at)
                else:
                    os.preadv(self._fd, [buffer], at)
                assert buffer[:] == self._data[at : at + 8192], f"other bytes at {at}"
                self.done += 1
        except (OSError, AssertionError) as error:
            self.fault = f"I/O {self.done}: {error}"


def opened() -> int | None:
    with contextlib.suppress(OSError):  # the node comes a moment before its disk
        return os.open(DEVICE, os.O_RDWR | os.O_DIRECT)
    return None


def sound(request: Control | ControlV1, data: bytes) -> bool:
    try:
        ConfigExports.decode(data) if request is Control.CONFIG_EXPORTS else ConfigV1.decode(data)
    except WireError:
        return False
    return True


def hostile_setup(rng: random.Random, host: V1Host) -> tuple[int, int, bytes | int]:
    """A request that must be refused: none of ours, or a set of exports that makes no sense."""
    good = {
        Control.CONFIG_EXPORTS: ConfigExports((RECORD,)).encode(),
        ControlV1.CONFIG: ConfigV1(host.epoch, host.boot_id, host.exports).encode(),
    }
    while True:
        if rng.random() < 0.5:
            request = rng.choice(list(good))
            kind = CONTROL_TYPE_V1[request] if isinstance(request, ControlV1) else CONTROL_TYPE[Control(request)]
            data = rng.choice([hurt(rng, good[request]), rng.randbytes(rng.randint(0, 4000))])
            if not sound(request, data):
                return kind, int(request), data
        else:
            kind = rng.choice([VENDOR, CLASS]) | rng.choice([0, IN]) | INTERFACE
            code = rng.choice([0, 1, 2, 3, 0x51, 0x52, 0xFF, rng.randrange(256)])
            if (kind, code) not in KNOWN:
                return kind, code, rng.randint(1, 600) if kind & IN else rng.randbytes(rng.randint(0, 600))


def test_fuzzed_ep0_requests_in_a_flood_are_each_refused_and_counted_and_disturb_no_io(
    gadget: Runtime, host: V1Host
) -> None:
    rng = dice("ep0")
    host.online()
    with Honest(host.data) as honest:
        watch, began, at = Watch(gadget, "usb"), time.monotonic(), honest.done
        for _ in range(SETUPS):
            kind, request, data = hostile_setup(rng, host)
            with contextlib.suppress(OSError):  # a stall; a set of a legal length is taken, and then refused
                host.device.control(kind, request, data)
            assert not honest.fault, honest.fault
        assert watch.refused() == {"usb control": SETUPS}
        lines = watch.newly_logged(time.monotonic() - began)
        assert any("is none of ours" in line for line in lines) and any("CONFIG" in line for line in lines)
        await_event("more I/O", lambda: honest.done > at + 4)
        watch.unharmed()
    assert host.resyncs == 0 and host.status().active


def test_a_flood_of_sets_whose_exports_cannot_be_makes_no_device_and_disturbs_no_io(
    gadget: Runtime, host: V1Host
) -> None:
    rng, sets = dice("sets"), 60
    host.online()
    with Honest(host.data) as honest:
        watch, began, at = Watch(gadget, "usb", "session"), time.monotonic(), honest.done
        for _ in range(sets):
            ids = rng.sample(range(1 << 20, 1 << 32), 31)
            large = [ExportV1(ExportRecord(number, 65536, 1 << 20), name="no page holds it") for number in ids]
            host.exports = (host.exports[0], *large)
            host.announce()
        await_event("the last set to be decided", lambda: watch.refused() == {"session export": 31 * sets})
        assert any("larger than a page" in line for line in watch.newly_logged(time.monotonic() - began))
        await_event("more I/O", lambda: honest.done > at + 4)
        watch.unharmed()
    assert host.resyncs == 0 and host.status().export_count == 1
    assert len(list(Path("/sys/class/ublk-char").iterdir())) == 1


@pytest.mark.parametrize("length", [0, 1, 7, 9, 600])
def test_answers_on_ep0_are_cut_to_what_was_asked_for_and_never_longer_than_they_are(host: V1Host, length: int) -> None:
    for kind, request, size in ((0xC1, 0x01, 8), (0xA1, 0x03, 16), (0xC1, 0x51, 16)):
        with contextlib.suppress(OSError):  # nothing asked for may be stalled
            assert len(host.device.control(kind, request, length)) == min(size, length)
    assert host.ident().major == 0


def test_fuzzed_frames_cost_a_resynchronisation_each_and_no_io_and_only_usb_is_replaced(
    gadget: Runtime, host: V1Host
) -> None:
    """Each costs usb its life (crash-only): what is counted is its restarts, and the log says why."""
    rng = dice("frames")
    host.online()
    rounds = 4
    fd = await_event(f"{DEVICE}", opened)
    assert fd is not None
    watch, before = Watch(gadget, "usb"), number()
    try:
        for turn in range(rounds):
            spoilt = threading.Event()

            def once(frame: bytes, spoilt: threading.Event = spoilt) -> bytes:
                if spoilt.is_set():
                    return frame
                spoilt.set()
                return hurt(rng, frame, HEAD_BYTES + RECORD_BYTES)

            host.spoil = once
            buffer, at = mmap.mmap(-1, 4096), turn * 8192
            assert os.preadv(fd, [buffer], at) == 4096
            assert buffer[:] == host.data[at : at + 4096]
            assert host.resyncs == turn + 1, "each is refused, once"
    finally:
        os.close(fd)
    watch.unharmed(replaced="usb")
    lines = watch.newly_logged(0)
    assert len(lines) == rounds and number() == before, lines
    [usb] = [p for p in inside.status(Side.GADGET)["processes"] if p["role"] == "usb"]
    assert usb["restarts"] >= rounds and "the host broke the protocol" in usb["last_exit"]


def test_data_before_the_hand_shake_are_not_taken(gadget: Runtime, host: V1Host) -> None:
    """Nothing is read before a host has said its exports: a flood stays in the host's kernel."""
    host.boundary()
    watch = Watch(gadget, "usb")
    for _ in range(3):
        with pytest.raises(OSError) as caught:
            host._payloads_out.write(bytes(65536), 200)
        assert caught.value.errno == errno.ETIMEDOUT
    watch.unharmed()
    host.online()
    with Honest(host.data) as honest:
        await_event("I/O", lambda: honest.done > 4)


def test_a_flood_of_responses_that_answer_nothing_is_one_re_enumeration_and_the_next_host_is_served(
    gadget: Runtime, host: V1Host
) -> None:
    host.leave()
    v0 = V0Host(RECORD)
    v0.device.reset()
    v0.configure()
    v0.serve()
    watch, before = Watch(gadget, "usb"), v0.number
    with contextlib.suppress(OSError):  # the device goes away in the middle of it
        for request_id in range(200):
            v0.respond(Response(Op.READ, 0, request_id, RECORD.export_id, 0, 1).encode())
    await_event("the link to end", lambda: v0.ended)
    await_event("a new enumeration", lambda: number() not in (None, before))
    again = V0Host(RECORD)
    again.configure()
    again.serve()
    try:
        with Honest(again.data) as honest:
            await_event("I/O", lambda: honest.done > 4)
        assert watch.refused() == {"usb message": 1}
        assert ["answers nothing" in line for line in watch.newly_logged(0)] == [True]
        watch.unharmed()
    finally:
        again.leave()


def test_a_read_payload_of_another_length_starts_the_link_over_and_the_read_is_done_again(
    gadget: Runtime, host: V1Host
) -> None:
    host.leave()
    v0 = V0Host(RECORD)
    v0.device.reset()
    v0.configure()
    reader = threading.Thread(target=lambda: read.append(block()))
    read: list[bytes] = []
    watch, before = Watch(gadget, "usb"), v0.number
    reader.start()
    request = v0.next_request()
    assert request.op is Op.READ
    v0.respond(Response.to(request, 0).encode())
    v0._payloads_out.write(bytes(100), 5000)
    await_event("a new enumeration", lambda: number() not in (None, before))
    v0.leave()
    again = V0Host(RECORD)
    again.data[:4096] = b"\x77" * 4096
    again.configure()
    again.serve()
    reader.join(30)
    try:
        assert read == [b"\x77" * 4096]
        assert watch.refused() == {"usb message": 1}
        watch.unharmed()
    finally:
        again.leave()


def block() -> bytes:
    fd = await_event(f"{DEVICE}", opened)
    assert fd is not None
    try:
        buffer = mmap.mmap(-1, 4096)
        os.preadv(fd, [buffer], 0)
        return buffer[:]
    finally:
        os.close(fd)
