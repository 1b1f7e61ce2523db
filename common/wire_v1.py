"""Wire v1: what replug says to replug beside smoo's v0. Pure: frozen messages to bytes and back, little-endian.

A v0 peer stalls HELLO, and nothing else of v1 is then ever sent. Data travels in frames over the two bulk endpoints:
a head with an epoch and a number, records, and the records' data. A frame that is not exactly what is expected means
that the data plane must start over: searching for the next head in a stream that lost bytes does not work. Every byte
sequence either decodes or raises WireError. Called by both `usb` roles and both sessions; what is cut into frames is
common.framing's.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from common import limits
from common.errors import WireError
from common.wire import OPS, ConfigExports, ExportRecord, Op

_HELLO = struct.Struct("<4sHHII")  # magic, version, flags, largest frame, 0
_CONFIG = struct.Struct("<HHIQ16s")  # version, count, flags, epoch, the host's boot id
_EXPORT = struct.Struct("<IIQIII16s32s")  # id, block size, bytes, flags, physical block, optimal I/O, identity, name
_HEAD = struct.Struct("<4sHHQII")  # magic, version, count, epoch, sequence, length without padding
_RECORD = struct.Struct("<BBHIIQIII")  # op, flags or status, 0, request id, export id, lba, blocks, offset, bytes

VERSION: Final = 1
HELLO_MAGIC, FRAME_MAGIC = b"RPL1", b"RPLF"
HELLO_BYTES, HEAD_BYTES, RECORD_BYTES = _HELLO.size, _HEAD.size, _RECORD.size
CONFIG_MAX_BYTES = _CONFIG.size + limits.MAX_EXPORTS * _EXPORT.size
NO_IDENTITY = bytes(16)


class ControlV1(IntEnum):
    """bRequest of v1's ep0 requests; bmRequestType is in CONTROL_TYPE_V1. STATUS stays v0's."""

    HELLO = 0x51
    CONFIG = 0x52


CONTROL_TYPE_V1 = {ControlV1.HELLO: 0xC1, ControlV1.CONFIG: 0x41}


class ExportFlag(IntFlag):
    """What an export can do, or must not be asked."""

    READ_ONLY = 1
    DISCARD = 2
    WRITE_ZEROES = 4
    EJECTED = 8  # the host's operator takes it away: nothing of it may be sent
    FLUSHED = 16  # with EJECTED: everything of it that was ever answered is on stable storage
    REMOVED = 32  # with both: it will not come back; its device may go when nobody uses it


class RequestFlag(IntFlag):
    """How a request is to be done (Record.mark, gadget to host)."""

    FUA = 1  # the write is on stable storage before it is answered
    NO_UNMAP = 2  # write zeroes, and keep the space allocated


_NO_FLAGS: Final = ExportFlag(0)


@dataclass(frozen=True, slots=True)
class Hello:
    """Answer to HELLO: this gadget speaks v1, and takes frames up to `frame_bytes`."""

    frame_bytes: int = limits.FRAME_BYTES

    def encode(self) -> bytes:
        return _HELLO.pack(HELLO_MAGIC, VERSION, 0, self.frame_bytes, 0)

    @staticmethod
    def decode(data: bytes) -> "Hello":
        if len(data) != _HELLO.size:
            raise WireError(f"HELLO: {len(data)} bytes, not {_HELLO.size}")
        magic, version, _, frame_bytes, _ = _HELLO.unpack(data)
        if magic != HELLO_MAGIC or version != VERSION:
            raise WireError(f"HELLO: {magic!r} version {version}: only {HELLO_MAGIC!r} version {VERSION} is known")
        if frame_bytes != limits.FRAME_BYTES:
            raise WireError(f"HELLO: frames of {frame_bytes} bytes: only {limits.FRAME_BYTES} are known")
        return Hello(frame_bytes)


@dataclass(frozen=True, slots=True)
class ExportV1:
    """One export as a v1 host announces it. Sizes of 0 mean: not known."""

    record: ExportRecord
    flags: ExportFlag = _NO_FLAGS
    physical_block: int = 0  # bytes
    optimal_io: int = 0  # bytes
    identity: bytes = NO_IDENTITY  # of the source: 16 bytes that another disk does not have
    name: str = ""

    def __post_init__(self) -> None:
        if len(self.identity) != 16:
            raise WireError(f"export {self.record.export_id:#x}: identity of {len(self.identity)} bytes, not 16")
        # Names are shown in terminals: what is not printable could make a screen say what nobody said.
        if len(self.name.encode()) > limits.WIRE_NAME_BYTES or not self.name.isprintable():
            raise WireError(f"export {self.record.export_id:#x}: name {self.name!r} does not fit the wire")
        for value in (self.physical_block, self.optimal_io):
            if value & (value - 1) or not 0 <= value <= limits.MAX_OPTIMAL_IO:
                raise WireError(f"export {self.record.export_id:#x}: {value} is no power of two of bytes")

    def encode(self) -> bytes:
        r = self.record
        sizes = (self.flags, self.physical_block, self.optimal_io)
        return _EXPORT.pack(r.export_id, r.block_size, r.size_bytes, *sizes, self.identity, self.name.encode())

    @staticmethod
    def decode(data: bytes) -> "ExportV1":
        export_id, block_size, size_bytes, flags, physical, optimal, identity, name = _EXPORT.unpack(data)
        if flags & ~sum(ExportFlag):
            raise WireError(f"export {export_id:#x}: flags {flags:#x} are not all known")
        try:
            text = name.rstrip(b"\0").decode()
        except UnicodeDecodeError:
            raise WireError(f"export {export_id:#x}: its name is not UTF-8") from None
        record = ExportRecord(export_id, block_size, size_bytes)
        return ExportV1(record, ExportFlag(flags), physical, optimal, identity, text)


@dataclass(frozen=True, slots=True)
class ConfigV1:
    """CONFIG of v1: the epoch that begins, and the whole set of exports."""

    epoch: int
    boot_id: bytes
    exports: tuple[ExportV1, ...]

    def __post_init__(self) -> None:
        if not 0 < self.epoch < 1 << 64 or len(self.boot_id) != 16:
            raise WireError("CONFIG: no epoch, or a boot id that is not 16 bytes")
        ConfigExports(tuple(export.record for export in self.exports))  # ids are unique, and not too many

    def encode(self) -> bytes:
        head = _CONFIG.pack(VERSION, len(self.exports), 0, self.epoch, self.boot_id)
        return head + b"".join(export.encode() for export in self.exports)

    @staticmethod
    def decode(data: bytes) -> "ConfigV1":
        if len(data) < _CONFIG.size:
            raise WireError(f"CONFIG: {len(data)} bytes, shorter than its head of {_CONFIG.size}")
        version, count, flags, epoch, boot_id = _CONFIG.unpack_from(data)
        if version != VERSION or flags:
            raise WireError(f"CONFIG: version {version}, flags {flags:#x}: only {VERSION} and 0 are known")
        if count > limits.MAX_EXPORTS or len(data) != _CONFIG.size + count * _EXPORT.size:
            raise WireError(f"CONFIG: {len(data)} bytes for {count} exports")
        body = data[_CONFIG.size :]
        starts = range(0, len(body), _EXPORT.size)
        return ConfigV1(epoch, boot_id, tuple(ExportV1.decode(body[n : n + _EXPORT.size]) for n in starts))


@dataclass(slots=True)
class Record:
    """A Request or a Response, with `data_bytes` of its payload from `data_offset` on.

    `mark`: RequestFlag from the gadget, status (0 or errno) from the host. A payload may be spread over the records of
    several frames, in order and without gaps; the one with offset 0 begins it.
    """

    op: Op
    mark: int
    request_id: int
    export_id: int
    lba: int
    blocks: int
    data_offset: int = 0
    data_bytes: int = 0


def pack_record(record: Record, data_offset: int, data_bytes: int) -> bytes:
    """`record` with another fragment of its payload."""
    r = record
    return _RECORD.pack(r.op, r.mark, 0, r.request_id, r.export_id, r.lba, r.blocks, data_offset, data_bytes)


def pack_head(epoch: int, sequence: int, count: int, length: int) -> bytes:
    """Head of a frame: `length` counts head, records and data."""
    return _HEAD.pack(FRAME_MAGIC, VERSION, count, epoch, sequence, length)


def unpack_frame(data: bytes | memoryview, epoch: int, sequence: int) -> list[tuple[Record, int]]:
    """The records of the frame that must come next, and where in `data` the data of each begin.

    Raises WireError if it is not exactly that frame.
    """
    size = len(data)
    if size < HEAD_BYTES:
        raise WireError(f"frame of {size} bytes, shorter than its head of {HEAD_BYTES}")
    magic, version, count, its_epoch, its_sequence, length = _HEAD.unpack_from(data)
    if magic != FRAME_MAGIC or version != VERSION:
        raise WireError(f"frame: {bytes(magic)!r} version {version}: only {FRAME_MAGIC!r} version {VERSION} is known")
    if its_epoch != epoch or its_sequence != sequence:
        raise WireError(f"frame {its_sequence} of epoch {its_epoch:#x}, expected {sequence} of {epoch:#x}")
    if size != length + padding(length):
        raise WireError(f"frame {sequence}: {size} bytes where {length} and its padding were to come")
    if not 0 < count <= limits.FRAME_RECORDS or HEAD_BYTES + count * RECORD_BYTES > length:
        raise WireError(f"frame {sequence}: {count} records do not fit {length} bytes")
    placed, where = [], HEAD_BYTES + count * RECORD_BYTES
    for code, mark, zero, *rest in _RECORD.iter_unpack(data[HEAD_BYTES:where]):
        op = OPS.get(code)
        if op is None or zero:
            raise WireError(f"frame {sequence}: op {code}, reserved {zero}: not known")
        record = Record(op, mark, *rest)
        placed.append((record, where))
        where += record.data_bytes
    if where != length:
        raise WireError(f"frame {sequence}: its records and data are {where} bytes, its head says {length}")
    return placed


def padding(length: int) -> int:
    """Zero bytes behind a frame, so that it ends with a short packet whatever the packet size (64, 512, 1024)."""
    return 4 if length % 64 == 0 else 0
