"""`replug capture` without a bus: the file's bytes, its bound, and what is said where nothing can be captured."""

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from common import limits
from common.errors import Refused
from tools.capture import record as recording_module
from tools.capture import usbmon
from tools.capture.pcap import EVENT_BYTES, FILE_BYTES, RECORD_BYTES, Event, file_head, record
from tools.capture.record import Recording, Wish, capture

ROOT = Path(__file__).parents[2]
EVENT = Event(0xFFFF888012345678, b"S", 3, 0x02, 7, 1, 1700000000, 123456, -115, 4, 4, None)


def golden(event: Event) -> bytes:
    """usbmon's header of 64 bytes, field by field (struct usbmon_packet in Documentation/usb/usbmon.rst)."""
    return b"".join(
        (
            struct.pack("=QcBBBH", event.urb, event.kind, event.transfer, event.endpoint, event.device, event.bus),
            bytes([0 if event.setup else ord("-"), event.no_data]),
            struct.pack("=qiiII", event.seconds, event.microseconds, event.status, event.length, event.captured),
            event.setup or bytes(8),
            struct.pack("=iiII", event.interval, event.start_frame, event.flags, event.descriptors),
        )
    )


@pytest.mark.parametrize(
    "event", [EVENT, Event(1, b"C", 2, 0x80, 9, 2, 1, 2, 0, 8, 8, bytes(range(8)), 0, 1, 2, 0x200, 3)]
)
def test_an_event_is_the_kernels_header_and_comes_back(event: Event) -> None:
    assert event.encode() == golden(event) and len(golden(event)) == EVENT_BYTES == 64
    assert Event.decode(event.encode()) == event


def test_a_file_begins_as_pcap_with_usbmons_link_type() -> None:
    magic, major, minor, _, _, snaplen, link = struct.unpack("=IHHiIII", file_head())
    assert (magic, major, minor, link) == (0xA1B2C3D4, 2, 4, 220)
    assert snaplen >= EVENT_BYTES + limits.FRAME_BYTES


@pytest.mark.parametrize(
    ("length", "no_data", "data", "there"),
    [(4, 0, b"abcd", 4), (100, 0, b"abcd", 100), (65536, ord("<"), b"", 0)],
    ids=["whole", "cut by the kernel", "no data in this direction"],
)
def test_a_record_tells_how_much_is_there_and_how_much_there_was(
    length: int, no_data: int, data: bytes, there: int
) -> None:
    event = Event(1, b"S", 3, 2, 7, 1, 10, 20, 0, length, len(data), None, no_data)
    entry = record(event, data)
    assert struct.unpack_from("=IIII", entry) == (10, 20, 64 + len(data), 64 + there)
    assert entry[RECORD_BYTES:] == event.encode() + data


def test_a_whole_frame_fits_what_the_kernel_copies_of_a_transfer() -> None:
    assert limits.CAPTURE_RING_BYTES // 5 >= limits.FRAME_BYTES


def test_the_file_ends_with_a_whole_record_at_its_bound() -> None:
    entry = len(record(EVENT, b"abcd"))
    recording = Recording(FILE_BYTES, FILE_BYTES + 2 * entry, lambda event: True)
    assert [len(recording.entry(EVENT, b"abcd")) for _ in range(3)] == [entry, entry, 0]
    assert (recording.events, recording.full, recording.size_bytes) == (2, True, FILE_BYTES + 2 * entry)


@pytest.mark.parametrize(
    ("buses", "device", "taken"),
    [({1}, None, True), ({2}, None, False), ({0}, None, True), ({1}, 7, True), ({1}, 8, False)],
)
def test_only_the_bus_and_device_that_are_wished(buses: set[int], device: int | None, taken: bool) -> None:
    assert recording_module._wanted(buses, device)(EVENT) is taken


def replug(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tools.cli", "capture", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("words", "status", "begin"),
    [
        (["x", "--bus", "usb1"], 2, "replug: argument --bus: 'usb1' is not a number"),
        (["x", "--device", "3"], 2, "replug: capture: --device 3: on which bus: give --bus N"),
        (["x", "--bus", "0", "--max-size", "1048575"], 2, "replug: --max-size 1048575: below 1048576 bytes"),
        ([], 2, "replug: the following arguments are required: FILE"),
    ],
)
def test_wrong_use_is_told_in_one_line_and_writes_nothing(
    words: list[str], status: int, begin: str, tmp_path: Path
) -> None:
    done = replug(*words)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(begin) and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "begin", "cure", "status"),
    [
        ("ENOENT", "/dev/usbmon0: not there: the kernel's module usbmon is not loaded", "'modprobe usbmon'", 4),
        ("EACCES", "/dev/usbmon0: Permission denied", "run it as root", 4),
    ],
)
def test_a_machine_that_cannot_capture_is_told_the_cure_and_keeps_the_old_file(
    number: str, begin: str, cure: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    def fails(path: str, flags: int) -> int:
        assert path == "/dev/usbmon0"
        raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)), path)

    file = tmp_path / "old.pcap"
    file.write_bytes(b"precious")
    monkeypatch.setattr(usbmon.os, "open", fails)
    with pytest.raises(Refused) as caught:
        capture(Wish(str(file), 0, None, 1 << 20, None))
    assert str(caught.value).startswith(begin) and cure in str(caught.value) and caught.value.status == status
    assert file.read_bytes() == b"precious"


def test_no_gadget_on_any_bus_is_told_and_how_to_wait_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("host.session.finder.find", lambda wanted: [])
    with pytest.raises(Refused, match=r"capture: no gadget is on any bus: plug it in, .*--bus N"):
        capture(Wish("x", None, None, 1 << 20, None))
