"""The Wireshark dissector, asked by tshark about captures that the product's own encoders and `replug capture` make."""

import errno
import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from common import limits
from common.framing import Packer
from common.wire import CONTROL_TYPE, ConfigExports, Control, ExportRecord, Ident, Op, Request, Response, Status
from common.wire_v1 import (
    CONTROL_TYPE_V1,
    ConfigV1,
    ControlV1,
    ExportFlag,
    ExportV1,
    Hello,
    Record,
    RequestFlag,
    pack_head,
    pack_record,
)
from tools.capture.pcap import Event, file_head, record

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "packaging/wireshark/replug.lua"
INTERRUPT, CONTROL, BULK = 1, 2, 3
EXPORT, EPOCH, EPIPE = 0x4FEB21C0, 0xDEADBEEF12345678, -32
DISK = ExportRecord(EXPORT, 4096, 64 << 20)
Packet = dict[str, list[str]]


@dataclass
class Bus:
    """What usbmon would tell of one device, written as the product writes it."""

    device: int = 7
    entries: list[bytes] = field(default_factory=list)
    urb: int = 0x1000

    def event(
        self, kind: bytes, transfer: int, endpoint: int, data: bytes = b"", setup: bytes | None = None,
        status: int = 0, cut: int | None = None,
    ) -> None:  # fmt: skip
        here = data if cut is None else data[:cut]
        time_us = 1000 * (len(self.entries) + 1)
        no_data = 0 if data else ord("<")
        event = Event(
            self.urb, kind, transfer, endpoint, self.device, 1, 1700000000, time_us, status, len(data), len(here),
            setup, no_data,
        )  # fmt: skip
        self.entries.append(record(event, here))

    def moved(self, transfer: int, endpoint: int, data: bytes, cut: int | None = None) -> None:
        """A transfer: its submission and its completion, the data with the one that has them."""
        self.urb += 0x40
        incoming = endpoint >= 0x80
        self.event(b"S", transfer, endpoint, b"" if incoming else data, cut=None if incoming else cut)
        self.event(b"C", transfer, endpoint, data if incoming else b"", cut=cut if incoming else None)

    def control(self, kind: int, request: int, data: bytes, status: int = 0) -> None:
        self.urb += 0x40
        incoming = kind >= 0x80
        setup = bytes([kind, request, 0, 0, 0, 0]) + len(data).to_bytes(2, "little")
        self.event(b"S", CONTROL, kind & 0x80, b"" if incoming else data, setup)
        self.event(b"C", CONTROL, kind & 0x80, data if incoming and not status else b"", None, status)

    def v1(self, *exports: ExportV1) -> None:
        self.control(0x01, 0x0B, b"")
        self.control(CONTROL_TYPE_V1[ControlV1.HELLO], ControlV1.HELLO, Hello().encode())
        config = ConfigV1(EPOCH, bytes(range(16)), exports or (ExportV1(DISK, name="rootfs"),))
        self.control(CONTROL_TYPE_V1[ControlV1.CONFIG], ControlV1.CONFIG, config.encode())

    def v0(self) -> None:
        self.control(CONTROL_TYPE[Control.IDENT], Control.IDENT, Ident().encode())
        self.control(CONTROL_TYPE[Control.CONFIG_EXPORTS], Control.CONFIG_EXPORTS, ConfigExports((DISK,)).encode())


def framed(records: Sequence[tuple[Record, bytes]], epoch: int = EPOCH, skip: int = 0) -> list[bytes]:
    """Frames as `usb` makes them."""
    packer: Packer[bytes] = Packer(epoch)
    for each, payload in records:
        packer.add(each, len(payload), payload)
    frames = []
    while (frame := packer.take()) is not None:
        data = b"".join(part.token[part.offset : part.offset + part.size_bytes] for part in frame.parts)
        frames.append(frame.head + data + bytes(frame.pad))
    return frames[skip:]


@pytest.fixture(scope="session")
def tshark() -> str:
    found = shutil.which("tshark")
    assert found, "tshark is not there: `make setup` installs it"
    return found


@dataclass
class Reader:
    tshark: str
    file: Path

    def packets(self, *buses: Bus, infos: bool = False) -> list[Packet]:
        """Those that the dissector says something about: each field's values, by name; `info` is the column."""
        self.file.write_bytes(file_head() + b"".join(entry for bus in buses for entry in bus.entries))
        command = [self.tshark, "-r", self.file, "-X", f"lua_script:{SCRIPT}", "-2", "-Y", "replug", "-T", "ek"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert "Lua" not in done.stderr, done.stderr
        layers = [json.loads(line)["layers"] for line in done.stdout.splitlines() if line.startswith('{"timestamp"')]
        found = [flat(layer) for layer in layers]
        for packet, info in zip(found, self._infos(), strict=True) if infos else ():
            packet["info"] = [info]
        return found

    def _infos(self) -> list[str]:
        columns = ["-o", 'gui.column.format:"i","%i"']
        command = [self.tshark, "-r", self.file, "-X", f"lua_script:{SCRIPT}", "-2", "-Y", "replug", *columns]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()


def flat(layers: dict[str, Any]) -> Packet:
    """The fields of ours by their short names, records after each other; what experts say as `expert`."""
    found: Packet = {"number": [layers["frame"]["frame_frame_number"]]}

    def collect(value: Any) -> None:
        for each in value if isinstance(value, list) else [value]:
            for name, inner in each.items() if isinstance(each, dict) else ():
                if isinstance(inner, dict) or (isinstance(inner, list) and isinstance(inner[0], dict)):
                    collect(inner)
                elif name == "_ws_expert__ws_expert_message":
                    found.setdefault("expert", []).append(inner)
                elif name.startswith("replug_replug_"):
                    found.setdefault(name.removeprefix("replug_replug_"), []).extend(
                        map(str, inner if isinstance(inner, list) else [inner])
                    )

    collect(layers["replug"])
    return found


@pytest.fixture
def reader(tshark: str, tmp_path: Path) -> Reader:
    return Reader(tshark, tmp_path / "bus.pcap")


def answer(request: Record, status: int = 0) -> Record:
    return Record(request.op, status, request.request_id, request.export_id, request.lba, request.blocks)


WRITE = Record(Op.WRITE, RequestFlag.FUA, 0x11, EXPORT, 5, 1)
READ = Record(Op.READ, 0, 0x12, EXPORT, 9, 2)
IN, OUT = 0x81, 0x02


def test_v1_requests_and_responses_travel_in_batches_and_find_each_other(reader: Reader) -> None:
    bus = Bus()
    bus.v1()
    for frame in framed([(WRITE, b"w" * 4096), (READ, b"")]):
        bus.moved(BULK, IN, frame)
    for frame in framed([(answer(READ), b"r" * 8192), (answer(WRITE, errno.ENOSPC), b"")]):
        bus.moved(BULK, OUT, frame)
    asked, answered = reader.packets(bus, infos=True)[-2:]
    assert asked["message"] == ["Request", "Request"] and answered["message"] == ["Response", "Response"]
    assert asked["version_of_wire"] == ["1"] and asked["count"] == ["2"] and asked["epoch"] == [hex(EPOCH)]
    assert asked["op"] == ["1", "0"] and asked["request_id"] == ["0x00000011", "0x00000012"]
    assert asked["export_id"] == [hex(EXPORT)] * 2 and asked["lba"] == ["5", "9"] and asked["blocks"] == ["1", "2"]
    assert asked["fua"] == ["True", "False"] and asked["data_bytes"] == ["4096", "0"]
    assert asked["data"] == [":".join(["77"] * 4096)]
    assert answered["status"] == ["0", str(errno.ENOSPC)] and answered["expert"] == ["ended with ENOSPC"]
    assert asked["response_in"] == answered["number"] * 2 and answered["request_in"] == asked["number"] * 2
    assert asked["info"] == [
        "v1 frame 0 of the gadget, 2 records, WRITE export 0x4feb21c0 lba 5+1, READ export 0x4feb21c0 lba 9+2"
    ]
    assert "answer READ export 0x4feb21c0 lba 9+2 OK" in answered["info"][0]
    assert "answer WRITE export 0x4feb21c0 lba 5+1 ENOSPC" in answered["info"][0]


def test_a_payload_over_several_frames_is_told_fragment_by_fragment(reader: Reader) -> None:
    bus = Bus()
    bus.v1()
    frames = framed([(Record(Op.WRITE, 0, 1, EXPORT, 0, 32), bytes(131072))])
    for frame in frames:
        bus.moved(BULK, IN, frame)
    packets = reader.packets(bus)[-len(frames) :]
    assert len(frames) == 3 and [packet["sequence"] for packet in packets] == [["0"], ["1"], ["2"]]
    sizes = [int(packet["data_bytes"][0]) for packet in packets]
    assert [int(packet["data_offset"][0]) for packet in packets] == [0, sizes[0], sizes[0] + sizes[1]]
    assert sum(sizes) == 131072 and not any("expert" in packet for packet in packets)


def test_a_frame_of_a_multiple_of_64_bytes_shows_its_padding(reader: Reader) -> None:
    bus = Bus()
    bus.v1()
    bus.moved(BULK, IN, framed([(WRITE, bytes(64 - (24 + 32) % 64 + 64 * 3))])[0])
    packet = reader.packets(bus)[-1]
    assert packet["padding"] == ["00:00:00:00"] and "expert" not in packet


def test_the_whole_handshake_of_v1_is_told(reader: Reader) -> None:
    bus, flags = Bus(), ExportFlag.READ_ONLY | ExportFlag.EJECTED
    bus.v1(ExportV1(DISK, flags, 512, 65536, bytes(range(16, 32)), "rootfs"), ExportV1(ExportRecord(9, 512, 1024)))
    bus.control(CONTROL_TYPE[Control.STATUS], Control.STATUS, Status(True, 2, 0x5F3A).encode())
    hello, config, done, asked, status = reader.packets(bus, infos=True)
    assert (hello["control"], hello["magic"], hello["frame_bytes"]) == (["HELLO"], ["RPL1"], [str(limits.FRAME_BYTES)])
    assert (config["control"], config["count"], config["epoch"]) == (["CONFIG"], ["2"], [hex(EPOCH)])
    assert config["export_id"] == [hex(EXPORT), "0x00000009"] and config["size_bytes"] == [str(64 << 20), "1024"]
    assert config["read_only"] == ["True", "False"] and config["ejected"] == ["True", "False"]
    assert config["physical_block"] == ["512", "0"] and config["optimal_io"] == ["65536", "0"]
    assert config["name"][0] == "rootfs" and config["boot_id"] == [":".join(f"{n:02x}" for n in range(16))]
    assert done["info"] == ["CONFIG done"] and asked["info"] == ["STATUS?"]
    assert (status["active"], status["export_count"]) == (["True"], ["2"])
    assert int(status["session_id"][0], 16) == 0x5F3A


def test_the_whole_of_v0_is_told(reader: Reader) -> None:
    bus = Bus()
    bus.v0()
    request = Request(Op.WRITE, 0x10003, EXPORT, 7, 2)
    bus.moved(INTERRUPT, 0x81, request.encode())
    bus.moved(BULK, 0x83, b"p" * 8192)
    bus.moved(INTERRUPT, 0x02, Response.to(request, errno.EIO).encode())
    ident, config, _, asked, payload, answered = reader.packets(bus, infos=True)
    assert (ident["control"], ident["magic"], ident["minor"]) == (["IDENT"], ["SMOO"], ["1"])
    assert (config["control"], config["export_id"]) == (["CONFIG_EXPORTS"], [hex(EXPORT)])
    assert config["block_size"] == ["4096"]
    assert asked["version_of_wire"] == ["0"] and asked["message"] == ["Request"] and asked["op"] == ["1"]
    assert (asked["request_id"], asked["export_id"]) == (["0x00010003"], [hex(EXPORT)])
    assert (asked["lba"], asked["blocks"]) == (["7"], ["2"])
    assert payload["info"] == ["v0 payload of a write, 8192 bytes"]
    assert answered["status"] == [str(errno.EIO)] and answered["expert"] == ["ended with EIO"]
    assert asked["response_in"] == answered["number"] and answered["request_in"] == asked["number"]


def hurt(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + bytes([value]) + data[at + 1 :]


FRAME = framed([(READ, b"")])[0]


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (FRAME[:10], "10 bytes, shorter than a frame's head of 24"),
        (hurt(FRAME, 0, ord("X")), "magic is not RPLF"),
        (hurt(FRAME, 4, 2), "version 2, only 1 is known"),
        (hurt(FRAME, 6, 0), "0 records do not fit 56 bytes"),
        (hurt(FRAME, 6, 9), "9 records do not fit 56 bytes"),
        (FRAME + b"x", "57 bytes where 56 and their padding were to come"),
        (hurt(FRAME, 24, 5), "unknown operation 5"),
        (hurt(FRAME, 26, 1), "reserved field is not 0"),
        (hurt(FRAME, 24 + 28, 1), "its records and data are 57 bytes, its head says 56"),
    ],
)
def test_a_frame_that_cannot_be_is_malformed_and_why(reader: Reader, frame: bytes, said: str) -> None:
    bus = Bus()
    bus.v1()
    bus.moved(BULK, IN, frame)
    packet = reader.packets(bus, infos=True)[-1]
    assert said in packet["expert"] and "malformed: " in packet["info"][0]


@pytest.mark.parametrize(
    ("name", "message", "said"),
    [
        ("Request", Request(Op.READ, 1, EXPORT, 0, 1).encode()[:-1], "27 bytes, not 28"),
        ("Request", hurt(Request(Op.READ, 1, EXPORT, 0, 1).encode(), 0, 4), "unknown operation 4"),
    ],
)
def test_a_v0_message_that_cannot_be_is_malformed(reader: Reader, name: str, message: bytes, said: str) -> None:
    bus = Bus()
    bus.v0()
    bus.moved(INTERRUPT, 0x81, message)
    assert reader.packets(bus)[-1]["expert"] == [said]


CONFIG = ConfigExports((DISK,)).encode()


@pytest.mark.parametrize(
    ("kind", "request_", "data", "said"),
    [
        (0xC1, 0x01, hurt(Ident().encode(), 0, 0), "magic is not SMOO"),
        (0xC1, 0x51, hurt(Hello().encode(), 4, 2), "not RPL1 in version 1"),
        (0xA1, 0x03, Status(True, 33, 1).encode(), "more exports than 32"),
        (0x41, 0x02, CONFIG[:-1], "31 bytes for 1 exports"),
        (0x41, 0x02, hurt(CONFIG, 13, 0x11), "block size 4352 is not a power of two in 512..65536"),
        (0x41, 0x02, hurt(CONFIG, 16, 1), "its bytes are not a multiple of its block size"),
        (0x41, 0x02, hurt(CONFIG, 24, 1), "reserved field is not 0"),
        (0x41, 0x52, ConfigV1(EPOCH, bytes(16), ()).encode()[:-1], "31 bytes, not 32"),
    ],
)
def test_a_control_message_that_cannot_be_is_malformed(
    reader: Reader, kind: int, request_: int, data: bytes, said: str
) -> None:
    bus = Bus()
    bus.v0()
    bus.control(kind, request_, data)
    assert said in [text for packet in reader.packets(bus) for text in packet.get("expert", [])]


def test_frames_that_are_lost_or_of_another_epoch_are_out_of_order(reader: Reader) -> None:
    bus = Bus()
    bus.v1()
    first, _, third = framed([(Record(Op.WRITE, 0, 1, EXPORT, 0, 32), bytes(131072))])
    for frame in (first, third, pack_head(5, 0, 1, 56) + pack_record(READ, 0, 0)):
        bus.moved(BULK, IN, frame)
    experts = [packet.get("expert", []) for packet in reader.packets(bus)[-3:]]
    assert experts == [
        [],
        ["frame 2 where 1 was to come"],
        [f"epoch 0x{5:016x}, but the last CONFIG began {EPOCH:#018x}"],
    ]


def test_the_same_request_in_a_new_epoch_is_another_one(reader: Reader) -> None:
    bus = Bus()
    bus.v1()
    bus.moved(BULK, IN, framed([(READ, b"")])[0])
    bus.event(b"C", BULK, IN, b"", None, EPIPE)
    bus.control(0x01, 0x0B, b"")
    config = ConfigV1(EPOCH + 1, bytes(16), (ExportV1(DISK),))
    bus.control(CONTROL_TYPE_V1[ControlV1.CONFIG], ControlV1.CONFIG, config.encode())
    bus.moved(BULK, IN, framed([(READ, b"")], EPOCH + 1)[0])
    bus.moved(BULK, OUT, framed([(answer(READ), bytes(8192))], EPOCH + 1)[0])
    old, halted, restart, _, _, again, answered = reader.packets(bus)[-7:]
    assert "response_in" not in old and again["response_in"] == answered["number"]
    assert halted["expert"] == ["EPIPE: the gadget's usb was replaced and halted this endpoint"]
    assert restart["expert"] == ["SET_INTERFACE ends all transfers: a new epoch begins"]
    assert "expert" not in again and "expert" not in answered


def test_an_answer_to_nothing_is_told_unless_the_capture_began_in_the_midst(reader: Reader) -> None:
    whole, midst = Bus(7), Bus(8)
    whole.v1()
    for bus in (whole, midst):
        bus.moved(BULK, OUT, framed([(answer(READ), bytes(8192))])[0])
    told, untold = reader.packets(whole, midst)[-2:]
    assert told["expert"] == ["answers no request of this capture"] and "expert" not in untold
    assert untold["op"] == ["0"]


def test_a_capture_that_begins_in_the_midst_of_v0_is_read_too(reader: Reader) -> None:
    bus = Bus()
    bus.moved(INTERRUPT, 0x81, Request(Op.READ, 1, EXPORT, 0, 1).encode())
    assert [packet["message"] for packet in reader.packets(bus)] == [["Request"]]


def test_a_frame_cut_by_the_capture_is_no_malformed_one(reader: Reader) -> None:
    bus = Bus()
    bus.v1()
    bus.moved(BULK, IN, framed([(WRITE, bytes(4096))])[0], cut=100)
    assert reader.packets(bus)[-1]["expert"] == ["100 of 4152 bytes are here"]


def test_a_gadget_that_stalls_hello_is_told_as_v0(reader: Reader) -> None:
    bus = Bus()
    bus.v0()
    bus.control(CONTROL_TYPE_V1[ControlV1.HELLO], ControlV1.HELLO, bytes(16), EPIPE)
    assert reader.packets(bus, infos=True)[-1]["info"] == ["HELLO refused (stalled)"]


def test_other_peoples_devices_are_left_alone(reader: Reader) -> None:
    bus = Bus()
    bus.control(0x80, 0x06, bytes(18))
    bus.control(0xC1, 0x01, b"NOTSMOO!")  # a vendor request of another device
    bus.moved(INTERRUPT, 0x81, bytes(8))
    bus.moved(BULK, 0x82, b"USBC" + bytes(27))
    assert reader.packets(bus) == []
