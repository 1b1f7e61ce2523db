"""`replug capture` on a real bus: a disk is read and written meanwhile, and every frame of it is in the file.

Wants the kernel's usbmon, which the guest loads.
"""

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import limits
from common.wire import Control
from common.wire_v1 import CONTROL_TYPE_V1, ControlV1, Record, unpack_frame
from tools.capture.pcap import EVENT_BYTES, FILE_BYTES, RECORD_BYTES, Event
from tools.demo import faults, inside

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
ROOT = Path(__file__).parents[2]
DISK_BYTES = 4 << 20
BULK, CONTROL = 3, 2


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[inside.Bench]:
    work = tmp_path_factory.mktemp("capture")
    (work / "disk.img").write_bytes(os.urandom(DISK_BYTES))
    (work / "scratch.img").write_bytes(bytes(3 << 20))  # they are told apart by their sizes
    with inside.both_sides(work / "disk.img", work / "scratch.img") as both:
        yield both


class Capture:
    """A running `replug capture`: `begun` when it says so, `end` by Ctrl-C."""

    def __init__(self, file: Path, *words: str) -> None:
        command = [sys.executable, "-m", "tools.cli", "capture", str(file), *words]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.begun = self.process.stderr.readline()
        self.file = file

    def end(self, number: int = signal.SIGINT) -> str:
        self.process.send_signal(number)
        assert self.process.stderr is not None
        words = self.process.stderr.read()
        assert self.process.wait(60) == 0, self.begun + words
        return words


def events(file: Path) -> list[tuple[Event, bytes]]:
    data, at, found = file.read_bytes(), FILE_BYTES, []
    while at < len(data):
        _, _, here, _ = struct.unpack_from("=IIII", data, at)
        body = data[at + RECORD_BYTES : at + RECORD_BYTES + here]
        assert len(body) == here, "the file ends within a record"
        found.append((Event.decode(body[:EVENT_BYTES]), body[EVENT_BYTES:]))
        at += RECORD_BYTES + here
    return found


def frames(taken: list[tuple[Event, bytes]], endpoint_in: bool) -> list[bytes]:
    """Those of a direction: data leave with a submission, and come with a completion."""
    kind = b"C" if endpoint_in else b"S"
    return [
        data
        for event, data in taken
        if event.transfer == BULK and event.kind == kind and bool(event.endpoint & 0x80) is endpoint_in and data
    ]


def dissected(file: Path, wanted: str) -> list[str]:
    """The lines of Wireshark's packet list that a filter leaves."""
    script = ROOT / "packaging/wireshark/replug.lua"
    command = ["tshark", "-r", file, "-X", f"lua_script:{script}", "-2", "-Y", wanted]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "Lua" not in done.stderr, done.stderr
    return done.stdout.splitlines()


def records(frame: bytes) -> list[Record]:
    epoch, sequence = struct.unpack_from("<QI", frame, 8)
    return [record for record, _ in unpack_frame(frame, epoch, sequence)]


@pytest.fixture
def busy() -> Iterator[None]:
    """Two that want all of the processor, each three times as much as an ordinary process."""
    hog = [sys.executable, "-c", "import os; os.nice(-5); exec('while True: pass')"]
    hogs = [subprocess.Popen(hog) for _ in range(2)]
    yield
    for process in hogs:
        process.kill()
        process.wait()


@pytest.mark.usefixtures("busy")
def test_every_byte_of_a_dd_is_in_the_capture_however_busy_the_machine_is(bench: inside.Bench, tmp_path: Path) -> None:
    capture = Capture(tmp_path / "dd.pcap")
    assert capture.begun.startswith("replug: capture: ") and "Ctrl-C ends it" in capture.begun
    assert os.sched_getscheduler(capture.process.pid) == os.SCHED_RR, "its ring overflows while it waits for its turn"
    read = ["dd", f"if={bench.image_device}", "of=/dev/null", "bs=64K", "iflag=direct", "status=none"]
    subprocess.run(read, check=True, timeout=100)
    payload = os.urandom(1 << 20)
    write = ["dd", f"of={bench.scratch_device}", "bs=64K", "iflag=fullblock", "oflag=direct", "status=none"]
    subprocess.run(write, input=payload, check=True, timeout=100)
    words = capture.end()
    assert " 0 lost" not in words and "lost" not in words, words

    taken = events(capture.file)
    down, up = frames(taken, False), frames(taken, True)
    assert max(map(len, down)) > limits.FRAME_BYTES - 4096, "no full frame: they were cut"
    requests = [record for frame in up for record in records(frame)]
    answers = [record for frame in down for record in records(frame)]
    known = {(r.export_id, r.request_id) for r in requests}
    assert sum(r.data_bytes for r in answers) >= DISK_BYTES
    assert {(r.export_id, r.request_id) for r in answers} <= known
    assert all(r.mark == 0 for r in answers)
    assert bench.image.read_bytes()[:4096] in b"".join(down)
    assert payload[:4096] in b"".join(up)
    assert dissected(capture.file, "replug.malformed || replug.unexpected || replug.cut") == []
    reads = f"replug.status == 0 && replug.op == 0 && replug.export_id == {answers[0].export_id:#x}"
    assert len(dissected(capture.file, reads)) > 0


def test_the_heartbeat_is_there_and_its_setup_is_whole(bench: inside.Bench, tmp_path: Path) -> None:
    capture = Capture(tmp_path / "idle.pcap", "--for", "4s")
    assert capture.process.wait(60) == 0
    setups = [e.setup for e, _ in events(capture.file) if e.transfer == CONTROL and e.kind == b"S" and e.setup]
    assert bytes([0xA1, Control.STATUS]) in {setup[:2] for setup in setups}


def test_a_pulled_cable_is_in_the_capture_with_the_new_handshake(bench: inside.Bench, tmp_path: Path) -> None:
    capture = Capture(tmp_path / "cable.pcap")
    faults.deauthorize(inside._usb_device).strike()
    read = ["dd", f"if={bench.image_device}", "of=/dev/null", "bs=64K", "count=1", "iflag=direct", "status=none"]
    subprocess.run(read, check=True, timeout=60)  # it waits until all is as before
    capture.end(signal.SIGTERM)
    setups = {e.setup[:2] for e, _ in events(capture.file) if e.transfer == CONTROL and e.setup}
    hello, config = (bytes([CONTROL_TYPE_V1[request], request]) for request in (ControlV1.HELLO, ControlV1.CONFIG))
    assert {hello, config} <= setups


def test_the_bound_ends_it_with_a_whole_record(bench: inside.Bench, tmp_path: Path) -> None:
    capture = Capture(tmp_path / "small.pcap", "--max-size", "1M")
    read = ["dd", f"if={bench.image_device}", "of=/dev/null", "bs=64K", "iflag=direct", "status=none"]
    subprocess.run(read, check=True, timeout=60)
    assert capture.process.wait(60) == 0
    assert capture.process.stderr is not None and "full: more fits with --max-size" in capture.process.stderr.read()
    assert limits.CAPTURE_MIN_BYTES - 2 * limits.FRAME_BYTES < capture.file.stat().st_size <= limits.CAPTURE_MIN_BYTES
    assert events(capture.file)


def test_another_devices_traffic_is_left_out(bench: inside.Bench, tmp_path: Path) -> None:
    capture = Capture(tmp_path / "other.pcap", "--bus", "0", "--device", "126", "--for", "3s")
    assert capture.process.wait(60) == 0
    assert events(capture.file) == []


def test_a_bus_that_is_not_there_is_told(tmp_path: Path) -> None:
    done = inside.replug("capture", str(tmp_path / "x"), "--bus", "99")
    assert done.returncode == 2 and done.stderr.startswith("replug: /dev/usbmon99: there is no bus 99")
    assert not (tmp_path / "x").exists()
