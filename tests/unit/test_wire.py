"""smoo v0, byte by byte: golden messages, both bounds of every limit, and any bytes at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import limits, wire
from common.errors import WireError
from common.wire import ConfigExports, ExportRecord, Ident, Op, Request, Response, Status, answers

EXPORT = ExportRecord(0x11223344, 4096, 1 << 26)

GOLDEN = [
    (Ident(), "534d4f4f 0000 0100"),
    (Status(True, 2, 0x0102030405060708), "0000 0100 02000000 0807060504030201"),
    (Status(False, 0, 1), "0000 0000 00000000 0100000000000000"),
    (ConfigExports(()), "0000 0000 00000000"),
    (ConfigExports((EXPORT,)), "0000 0100 00000000 44332211 00100000 0000000400000000 0000000000000000"),
    (
        Request(Op.READ, 7, 0x11223344, 0x1_0000_0002, 8),
        "00000000 07000000 44332211 0200000001000000 08000000 00000000",
    ),
    (Request(Op.DISCARD, 1 << 16, 1, 0, 1), "03000000 00000100 01000000 0000000000000000 01000000 00000000"),
    (Response(Op.WRITE, 28, 7, 0x11223344, 2, 8), "011c0000 07000000 44332211 0200000000000000 08000000 00000000"),
    (Response(Op.FLUSH, 0, 9, 1, 0, 0), "02000000 09000000 01000000 0000000000000000 00000000 00000000"),
]


@pytest.mark.parametrize(("message", "hexes"), GOLDEN, ids=lambda value: type(value).__name__)
def test_message_has_exactly_these_bytes(message: object, hexes: str) -> None:
    data = bytes.fromhex(hexes)
    assert message.encode() == data  # type: ignore[attr-defined]
    assert type(message).decode(data) == message  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [Ident, Status, ConfigExports, Request, Response])
@given(data=st.binary(max_size=1200))
def test_any_bytes_decode_or_raise_the_one_error(kind: type, data: bytes) -> None:
    try:
        message = kind.decode(data)  # type: ignore[attr-defined]
    except WireError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert type(message).decode(message.encode()) == message


@pytest.mark.parametrize("kind", [Ident, Status, Request, Response])
def test_one_byte_more_or_less_is_refused(kind: type) -> None:
    size = {Ident: 8, Status: 16, Request: 28, Response: 28}[kind]
    for wrong in (size - 1, size + 1, 0):
        with pytest.raises(WireError, match=rf"{wrong} bytes, not {size}"):
            kind.decode(bytes(wrong))  # type: ignore[attr-defined]


def test_at_most_32_exports() -> None:
    records = tuple(ExportRecord(n + 1, 512, 512) for n in range(limits.MAX_EXPORTS + 1))
    full = ConfigExports(records[:-1])
    assert len(full.encode()) == wire.CONFIG_MAX_BYTES
    assert ConfigExports.decode(full.encode()) == full
    with pytest.raises(WireError, match="33 exports"):
        ConfigExports(records)
    with pytest.raises(WireError, match="33 exports"):
        ConfigExports.decode(bytes.fromhex("0000 2100 00000000") + bytes(33 * 24))


def test_an_export_id_appears_once() -> None:
    with pytest.raises(WireError, match="appears twice"):
        ConfigExports((EXPORT, EXPORT))


@pytest.mark.parametrize(
    ("export_id", "block_size", "size_bytes", "words"),
    [
        (0, 4096, 4096, "non-zero"),
        (1 << 32, 4096, 4096, "non-zero u32"),
        (1, 0, 4096, "block size 0"),
        (1, 256, 4096, "block size 256"),
        (1, 131072, 131072, "block size 131072"),
        (1, 1000, 1000, "block size 1000"),
        (1, 4096, 0, "not a multiple"),
        (1, 4096, 4097, "not a multiple"),
    ],
)
def test_impossible_export_is_refused(export_id: int, block_size: int, size_bytes: int, words: str) -> None:
    with pytest.raises(WireError, match=words):
        ExportRecord(export_id, block_size, size_bytes)


@pytest.mark.parametrize("block_size", [512, 65536])
def test_smallest_and_largest_block_size_are_taken(block_size: int) -> None:
    assert ExportRecord(1, block_size, block_size).blocks == 1


def test_config_with_version_flags_or_reserved_bytes_is_refused() -> None:
    for head in ("0100 0000 00000000", "0000 0000 01000000"):
        with pytest.raises(WireError, match="only 0 and 0"):
            ConfigExports.decode(bytes.fromhex(head))
    data = bytearray(ConfigExports((EXPORT,)).encode())
    data[-1] = 1
    with pytest.raises(WireError, match="reserved"):
        ConfigExports.decode(bytes(data))


def test_ident_of_a_stranger_is_refused() -> None:
    with pytest.raises(WireError, match="not a smoo gadget"):
        Ident.decode(b"SMOP\0\0\1\0")


def test_unknown_op_is_refused() -> None:
    for kind in (Request, Response):
        with pytest.raises(WireError, match="unknown op 4"):
            kind.decode(b"\4" + bytes(27))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("op", "lba", "blocks", "words"),
    [
        (Op.READ, 0, 0, "0 blocks"),
        (Op.READ, EXPORT.blocks, 1, "past the end"),
        (Op.WRITE, EXPORT.blocks - 1, 2, "past the end"),
        (Op.READ, (1 << 64) - 1, 1, "past the end"),
        (Op.WRITE, 0, 3, "more than 8192"),
        (Op.DISCARD, 0, EXPORT.blocks + 1, "past the end"),
    ],
)
def test_request_outside_the_export_is_named(op: Op, lba: int, blocks: int, words: str) -> None:
    assert words in (wire.out_of_bounds(op, lba, blocks, EXPORT, 8192) or "")


@pytest.mark.parametrize(
    ("op", "lba", "blocks"),
    [(Op.READ, EXPORT.blocks - 1, 1), (Op.WRITE, 0, 2), (Op.DISCARD, 0, EXPORT.blocks), (Op.FLUSH, 0, 0)],
)
def test_request_at_the_edge_is_inside(op: Op, lba: int, blocks: int) -> None:
    assert wire.out_of_bounds(op, lba, blocks, EXPORT, 8192) is None


def test_response_answers_only_the_request_with_all_its_fields() -> None:
    request = Request(Op.READ, 7, 1, 2, 3)
    assert answers(Response.to(request, 5), request)
    for other in (Request(Op.WRITE, 7, 1, 2, 3), Request(Op.READ, 8, 1, 2, 3), Request(Op.READ, 7, 1, 3, 3)):
        assert not answers(Response.to(request, 0), other)
