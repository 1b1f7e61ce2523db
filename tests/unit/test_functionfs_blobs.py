"""What FunctionFS is told about us, and how its events are read: layout, and agreement with the kernel's headers."""

import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from common import limits
from common.wire import Identity
from gadget.usb.endpoint import pieces
from gadget.usb.functionfs import _ENDPOINT_DESC, ENDPOINTS, EventType, descriptors, strings
from gadget.usb.transport import PACKET_BYTES

HEADER = Path("/usr/include/linux/usb/functionfs.h")


@dataclass(frozen=True)
class Seen:
    """One speed's descriptors as a host would read them."""

    interface: bytes
    endpoints: list[tuple[int, int, int, int]]  # address, attributes, wMaxPacketSize, bInterval
    companions: list[tuple[int, int, int]]  # bMaxBurst, bmAttributes, wBytesPerInterval


def speeds(identity: Identity = Identity.SMOO) -> list[Seen]:
    """Walk the blob by bLength and bDescriptorType only, as f_fs does."""
    blob = descriptors(identity)
    counts = struct.unpack_from("<III", blob, 12)
    place, seen = 24, []
    for count in counts:
        interface, endpoints, companions = b"", [], []
        for _ in range(count):
            one = blob[place : place + blob[place]]
            place += len(one)
            match one[1]:
                case 4:
                    interface = one
                case 5:
                    endpoints.append(struct.unpack_from("<BBHB", one, 2))
                case 0x30:
                    companions.append(struct.unpack_from("<BBH", one, 2))
                case kind:
                    pytest.fail(f"descriptor type {kind:#x}")
        seen.append(Seen(interface, endpoints, companions))
    assert place == len(blob)
    return seen


def test_the_head_says_v2_the_whole_length_and_three_speeds() -> None:
    assert struct.unpack_from("<III", descriptors()) == (3, len(descriptors()), 0b111)


def test_every_speed_has_smoos_interface_and_its_four_endpoints_in_order() -> None:
    for seen in speeds():
        assert seen.interface == bytes.fromhex("09 04 00 00 04 ff 53 4d 01")
        assert tuple((address, kind) for address, kind, _, _ in seen.endpoints) == ENDPOINTS
    assert [(bool(address & 0x80), kind) for address, kind in ENDPOINTS] == [
        (True, 3),
        (False, 3),
        (True, 2),
        (False, 2),
    ]


def test_a_gadget_that_poses_as_fastboot_differs_in_nothing_else() -> None:
    assert speeds(Identity.FASTBOOT)[1].interface == bytes.fromhex("09 04 00 00 04 ff 42 03 01")
    assert descriptors(Identity.FASTBOOT).replace(b"\xff\x42\x03", b"\xff\x53\x4d") == descriptors()


@pytest.mark.parametrize(("index", "name"), list(enumerate(["full-speed", "high-speed", "super-speed"])))
def test_packet_sizes_are_what_usb_allows_at_this_speed_and_what_the_transport_rounds_to(index: int, name: str) -> None:
    packets = {kind: packet for _, kind, packet, _ in speeds()[index].endpoints}
    assert packets[2] == PACKET_BYTES[name]
    assert 28 <= packets[3] <= {"full-speed": 64, "high-speed": 1024, "super-speed": 1024}[name]


def test_intervals_are_legal_and_those_of_bulk_zero() -> None:
    for seen in speeds():
        for _, kind, _, interval in seen.endpoints:
            assert interval == 0 if kind == 2 else 1 <= interval <= 16


def test_only_super_speed_has_companions_one_for_each_endpoint() -> None:
    full, high, super_ = speeds()
    assert (full.companions, high.companions) == ([], [])
    # wBytesPerInterval is what the host reserves for an interrupt endpoint; reserved, so zero, for bulk
    assert super_.companions == [(0, 0, 1024), (0, 0, 1024), (0, 0, 0), (0, 0, 0)]


def test_strings_are_one_language_and_one_zero_terminated_string() -> None:
    blob = strings()
    assert struct.unpack_from("<IIIIH", blob) == (2, len(blob), 1, 1, 0x409)
    assert blob[18:] == b"replug\0"


@pytest.mark.skipif(not HEADER.exists(), reason="no kernel headers here")
def test_constants_and_sizes_agree_with_the_kernels_headers(tmp_path: Path) -> None:
    expected = {
        "FUNCTIONFS_DESCRIPTORS_MAGIC_V2": 3,
        "FUNCTIONFS_STRINGS_MAGIC": 2,
        "FUNCTIONFS_HAS_FS_DESC | FUNCTIONFS_HAS_HS_DESC | FUNCTIONFS_HAS_SS_DESC": 7,
        "sizeof(struct usb_functionfs_event)": 12,
        "offsetof(struct usb_functionfs_event, type)": 8,
        "sizeof(struct usb_functionfs_descs_head_v2)": 12,
        "sizeof(struct usb_functionfs_strings_head)": 16,
        "sizeof(struct usb_endpoint_descriptor_no_audio)": 7,
        "FUNCTIONFS_ENDPOINT_DESC & 0x7fffffff": _ENDPOINT_DESC & 0x7FFFFFFF,  # printed as an int
        "sizeof(struct usb_ss_ep_comp_descriptor)": 6,
        "sizeof(struct iocb)": 64,
        "offsetof(struct iocb, aio_lio_opcode)": 16,
        "offsetof(struct iocb, aio_buf)": 24,
        "offsetof(struct iocb, aio_resfd)": 60,
        "sizeof(struct io_event)": 32,
        "IOCB_CMD_PREAD * 10 + IOCB_CMD_PWRITE": 1,
        "IOCB_FLAG_RESFD": 1,
        **{f"FUNCTIONFS_{kind.name}": kind.value for kind in EventType},
    }
    prints = "".join(f'printf("%d\\n", (int)({name}));' for name in expected)
    source = tmp_path / "constants.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <linux/aio_abi.h>\n#include <linux/usb/ch9.h>\n"
        f"#include <linux/usb/functionfs.h>\nint main(void) {{ {prints} return 0; }}\n"
    )
    try:
        subprocess.run(["cc", "-o", tmp_path / "constants", source], check=True)
    except FileNotFoundError:
        pytest.skip("no C compiler here")
    said = subprocess.run([tmp_path / "constants"], check=True, capture_output=True, text=True).stdout
    assert dict(zip(expected, map(int, said.split()), strict=True)) == expected


@pytest.mark.parametrize("packet", sorted(set(PACKET_BYTES.values())))
@pytest.mark.parametrize("size", [512, 1536, 65024, 65536, 66048, 131072, 131584])
def test_a_payload_is_cut_into_whole_packets_that_cover_it_once_in_order(size: int, packet: int) -> None:
    cut = pieces(None, 0x10000, size, packet)
    place = 0x10000
    for piece in cut:
        assert piece.address == place
        assert piece.length % packet == 0 and 0 <= piece.length - piece.expected < packet
        assert piece.length <= limits.TRANSFER_BYTES
        place += piece.expected
    assert place == 0x10000 + size
    assert [piece.last for piece in cut] == [False] * (len(cut) - 1) + [True]
