"""Wire v1, byte by byte: golden messages, any bytes at all, and payloads through frames and back."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import limits
from common.errors import WireError
from common.framing import Frame, Packer, Unpacker
from common.wire import ExportRecord, Op, Request
from common.wire_v1 import (
    HEAD_BYTES,
    RECORD_BYTES,
    ConfigV1,
    ExportFlag,
    ExportV1,
    Hello,
    Record,
    RequestFlag,
    pack_head,
    unpack_frame,
)

EPOCH = 0x0102030405060708
EXPORT = ExportV1(
    ExportRecord(0x11223344, 4096, 1 << 26),
    ExportFlag.READ_ONLY | ExportFlag.DISCARD,
    4096,
    65536,
    bytes(range(16)),
    "disk",
)
READ = Record(Op.READ, 0, 7, 0x11223344, 9, 8)

GOLDEN = [
    (Hello(), "52504c31 0100 0000 00000100 00000000"),
    (ConfigV1(EPOCH, b"B" * 16, ()), "0100 0000 00000000 0807060504030201" + "42" * 16),
    (
        ConfigV1(1, bytes(16), (EXPORT,)),
        "0100 0100 00000000 0100000000000000"
        + "00" * 16
        + "44332211 00100000 0000000400000000 03000000 00100000 00000100 000102030405060708090a0b0c0d0e0f 6469736b"
        + "00" * 28,
    ),
]


@pytest.mark.parametrize(("message", "hexes"), GOLDEN, ids=["hello", "empty config", "config"])
def test_message_has_exactly_these_bytes(message: Hello | ConfigV1, hexes: str) -> None:
    data = bytes.fromhex(hexes)
    assert message.encode() == data
    assert type(message).decode(data) == message


def test_a_frame_has_exactly_these_bytes() -> None:
    packer: Packer[str] = Packer(EPOCH)
    packer.add(replace(READ, op=Op.WRITE, mark=RequestFlag.FUA, blocks=1), 4096, "w")
    frame = packer.take()
    assert frame is not None
    head = "52504c46 0100 0100 0807060504030201 00000000 38100000"
    record = "01010000 07000000 44332211 0900000000000000 01000000 00000000 00100000"
    assert frame.head == bytes.fromhex(head + record)
    assert (frame.pad, frame.size_bytes) == (0, HEAD_BYTES + RECORD_BYTES + 4096)


@pytest.mark.parametrize("decode", [Hello.decode, ConfigV1.decode, lambda data: unpack_frame(data, EPOCH, 0)])
@given(data=st.binary(max_size=400))
def test_any_bytes_decode_or_raise_the_one_error(decode: Callable[[bytes], object], data: bytes) -> None:
    try:
        decode(data)
    except WireError as error:
        assert str(error) and "\n" not in str(error)


@given(data=st.binary(max_size=300), count=st.integers(0, 5), length=st.integers(0, 400))
def test_any_bytes_behind_a_sound_head_decode_or_raise_the_one_error(data: bytes, count: int, length: int) -> None:
    try:
        unpack_frame(pack_head(EPOCH, 0, count, length) + data, EPOCH, 0)
    except WireError as error:
        assert str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("export", "why"),
    [
        (lambda: replace(EXPORT, identity=b"short"), "identity"),
        (lambda: replace(EXPORT, name="x" * 33), "name"),
        (lambda: replace(EXPORT, name="a\0b"), "name"),
        (lambda: replace(EXPORT, name="a\x1b[2Jb"), "name"),
        (lambda: replace(EXPORT, name="a\nb"), "name"),
        (lambda: replace(EXPORT, physical_block=4097), "power of two"),
        (lambda: replace(EXPORT, optimal_io=limits.MAX_OPTIMAL_IO * 2), "power of two"),
        (lambda: ConfigV1(0, bytes(16), ()), "epoch"),
        (lambda: ConfigV1(1, bytes(16), (EXPORT, EXPORT)), "twice"),
    ],
)
def test_what_cannot_be_said_cannot_be_made(export: Callable[[], object], why: str) -> None:
    with pytest.raises(WireError, match=why):
        export()


def test_an_unknown_flag_is_refused_not_ignored() -> None:
    data = bytearray(ConfigV1(1, bytes(16), (EXPORT,)).encode())
    data[32 + 16] |= 0x80
    with pytest.raises(WireError, match="not all known"):
        ConfigV1.decode(bytes(data))


def test_v0_does_not_know_write_zeroes() -> None:
    with pytest.raises(WireError, match="unknown op 4"):
        Request.decode(Request(Op.WRITE_ZEROES, 1, 1, 0, 1).encode())


# -- framing -----------------------------------------------------------------------------------------------------
def wire_bytes(frame: Frame[bytes]) -> bytes:
    body = b"".join(part.token[part.offset : part.offset + part.size_bytes] for part in frame.parts)
    return frame.head + body + bytes(frame.pad)


def frames_of(packer: Packer[bytes]) -> list[bytes]:
    frames = []
    while (frame := packer.take()) is not None:
        data = wire_bytes(frame)
        assert len(data) == frame.size_bytes < limits.FRAME_BYTES
        assert len(data) % 64, "it would not end with a short packet"
        frames.append(data)
    return frames


@given(sizes=st.lists(st.sampled_from([0, 1, 512, 4096, 65536, 131072, 65535 - 56, 40]), max_size=300))
def test_payloads_come_out_as_they_went_in_whatever_their_sizes(sizes: list[int]) -> None:
    packer: Packer[bytes] = Packer(EPOCH)
    payloads = {n: bytes([n & 255, 7]) * (size // 2) + b"x" * (size % 2) for n, size in enumerate(sizes)}
    for number, payload in payloads.items():
        packer.add(replace(READ, request_id=number), len(payload), payload)
    unpacker, got = Unpacker(EPOCH), {}
    for data in frames_of(packer):
        for record, where in unpacker.take(data):
            have = got.setdefault(record.request_id, bytearray())
            assert record.data_offset == len(have)
            have += data[where : where + record.data_bytes]
    assert got == payloads and list(got) == sorted(got)


def test_small_requests_share_a_frame() -> None:
    """Issue 6, item 2: a crowd travels together."""
    packer: Packer[bytes] = Packer(EPOCH)
    for number in range(limits.FRAME_RECORDS + 1):
        packer.add(replace(READ, request_id=number), 0, b"")
    assert [len(Unpacker(EPOCH).take(data)) for data in frames_of(packer)[:1]] == [limits.FRAME_RECORDS]


def test_a_record_that_just_fits_is_in_the_frame_and_the_next_one_is_not() -> None:
    packer: Packer[bytes] = Packer(EPOCH)
    room = limits.FRAME_BYTES - 4 - HEAD_BYTES - 2 * RECORD_BYTES
    packer.add(replace(READ, request_id=1), room, bytes(room))
    for number in (2, 3):
        packer.add(replace(READ, request_id=number), 0, b"")
    assert [len(Unpacker(EPOCH).take(data)) for data in frames_of(packer)[:1]] == [2]


def test_a_payload_is_cut_only_where_a_good_piece_of_it_fits() -> None:
    """Else the frame ends: a record for a few bytes costs more than they are worth."""
    for piece, records in ((4096, 2), (4095, 1)):
        packer: Packer[bytes] = Packer(EPOCH)
        room = limits.FRAME_BYTES - 4 - HEAD_BYTES - 2 * RECORD_BYTES - piece
        for number, size in ((1, room), (2, 8192)):
            packer.add(replace(READ, request_id=number), size, bytes(size))
        assert [len(Unpacker(EPOCH).take(data)) for data in frames_of(packer)[:1]] == [records]


def frame_of_one() -> bytes:
    packer: Packer[bytes] = Packer(EPOCH)
    packer.add(READ, 100, bytes(100))
    return frames_of(packer)[0]


@pytest.mark.parametrize("cut", [1, 24, 56, 100])
def test_a_frame_that_lost_bytes_is_refused(cut: int) -> None:
    with pytest.raises(WireError):
        Unpacker(EPOCH).take(frame_of_one()[:-cut])


def test_a_frame_behind_the_rest_of_another_is_refused() -> None:
    frame = frame_of_one()
    with pytest.raises(WireError):
        Unpacker(EPOCH).take(frame[:50] + frame)


def test_a_frame_of_another_epoch_and_one_that_comes_twice_are_refused() -> None:
    frame = frame_of_one()
    with pytest.raises(WireError, match="epoch"):
        Unpacker(EPOCH + 1).take(frame)
    unpacker = Unpacker(EPOCH)
    unpacker.take(frame)
    with pytest.raises(WireError, match="expected 1"):
        unpacker.take(frame)
