"""smoo v0 on the wire, pure: frozen messages to bytes and back. Little-endian throughout.

Every byte sequence either decodes or raises WireError with one line; nothing else is ever raised. Bulk payloads carry
no header in v0, so they do not appear here. Called by both `usb` roles and both sessions; golden bytes for every
message are in tests/unit/test_wire.py.
"""

import struct
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final, Protocol

from common import limits
from common.errors import WireError

MAGIC = b"SMOO"
VERSION_MAJOR, VERSION_MINOR = 0, 1


class Identity(Enum):
    """What our interface calls itself: class, subclass and protocol. Its endpoints are the same four in any case."""

    SMOO = (0xFF, 0x53, 0x4D)
    FASTBOOT = (0xFF, 0x42, 0x03)  # for devices that pose as such. A real fastboot has two endpoints, and no IDENT


class Control(IntEnum):
    """bRequest of our ep0 requests; bmRequestType is in CONTROL_TYPE."""

    IDENT = 0x01
    CONFIG_EXPORTS = 0x02
    STATUS = 0x03


CONTROL_TYPE = {Control.IDENT: 0xC1, Control.CONFIG_EXPORTS: 0x41, Control.STATUS: 0xA1}


class Op(IntEnum):
    """First byte of Request and Response (v0), and of a v1 record."""

    READ = 0
    WRITE = 1
    FLUSH = 2
    DISCARD = 3
    WRITE_ZEROES = 4  # v1 only


OPS: Final[dict[int, Op]] = {op.value: op for op in Op}  # each I/O asks; the call of an Enum is two calls of Python

_IDENT = struct.Struct("<4sHH")
_CONFIG = struct.Struct("<HHI")
_EXPORT = struct.Struct("<IIQQ")
_STATUS = struct.Struct("<HHIQ")
_REQUEST = struct.Struct("<B3xIIQII")
_RESPONSE = struct.Struct("<BBHIIQII")

IDENT_BYTES = _IDENT.size
STATUS_BYTES = _STATUS.size
MESSAGE_BYTES = _REQUEST.size
CONFIG_MAX_BYTES = _CONFIG.size + limits.MAX_EXPORTS * _EXPORT.size


@dataclass(frozen=True, slots=True)
class Ident:
    """Answer to IDENT: who speaks, and which version."""

    major: int = VERSION_MAJOR
    minor: int = VERSION_MINOR

    def encode(self) -> bytes:
        return _IDENT.pack(MAGIC, self.major, self.minor)

    @staticmethod
    def decode(data: bytes) -> "Ident":
        _exactly(data, _IDENT.size, "IDENT")
        magic, major, minor = _IDENT.unpack(data)
        if magic != MAGIC:
            raise WireError(f"IDENT: magic is {magic!r}, not {MAGIC!r}: not a smoo gadget")
        return Ident(major, minor)


@dataclass(frozen=True, slots=True)
class ExportRecord:
    """One export as the host announces it. Checked on construction: an invalid one cannot exist."""

    export_id: int
    block_size: int
    size_bytes: int

    def __post_init__(self) -> None:
        if not 0 < self.export_id < 1 << 32:
            raise WireError(f"export id {self.export_id:#x} is not a non-zero u32")
        size = self.block_size
        if size & (size - 1) or not limits.MIN_BLOCK_SIZE <= size <= limits.MAX_BLOCK_SIZE:
            raise WireError(f"export {self.export_id:#x}: block size {size} is not a power of two in 512..65536")
        if self.size_bytes <= 0 or self.size_bytes % size or self.size_bytes >= 1 << 63:
            raise WireError(f"export {self.export_id:#x}: {self.size_bytes} bytes is not a multiple of {size}")

    @property
    def blocks(self) -> int:
        return self.size_bytes // self.block_size


@dataclass(frozen=True, slots=True)
class ConfigExports:
    """CONFIG_EXPORTS: the whole set of exports, replacing the one before. An empty set is legal."""

    exports: tuple[ExportRecord, ...]

    def __post_init__(self) -> None:
        if len(self.exports) > limits.MAX_EXPORTS:
            raise WireError(f"CONFIG_EXPORTS: {len(self.exports)} exports, more than {limits.MAX_EXPORTS}")
        if len({e.export_id for e in self.exports}) != len(self.exports):
            raise WireError("CONFIG_EXPORTS: an export id appears twice")

    def encode(self) -> bytes:
        head = _CONFIG.pack(0, len(self.exports), 0)
        return head + b"".join(_EXPORT.pack(e.export_id, e.block_size, e.size_bytes, 0) for e in self.exports)

    @staticmethod
    def decode(data: bytes) -> "ConfigExports":
        if len(data) < _CONFIG.size:
            raise WireError(f"CONFIG_EXPORTS: {len(data)} bytes, shorter than its head of {_CONFIG.size}")
        version, count, flags = _CONFIG.unpack_from(data)
        if version != 0 or flags != 0:
            raise WireError(f"CONFIG_EXPORTS: version {version}, flags {flags:#x}: only 0 and 0 are known")
        if count > limits.MAX_EXPORTS:
            raise WireError(f"CONFIG_EXPORTS: {count} exports, more than {limits.MAX_EXPORTS}")
        _exactly(data, _CONFIG.size + count * _EXPORT.size, f"CONFIG_EXPORTS of {count}")
        exports = []
        for export_id, block_size, size_bytes, reserved in _EXPORT.iter_unpack(data[_CONFIG.size :]):
            if reserved:
                raise WireError(f"CONFIG_EXPORTS: export {export_id:#x}: reserved field is {reserved:#x}, not 0")
            exports.append(ExportRecord(export_id, block_size, size_bytes))
        return ConfigExports(tuple(exports))


@dataclass(frozen=True, slots=True)
class Status:
    """Answer to STATUS: is the set of exports in force, how many, in which session."""

    active: bool
    export_count: int
    session_id: int

    def encode(self) -> bytes:
        return _STATUS.pack(0, int(self.active), self.export_count, self.session_id)

    @staticmethod
    def decode(data: bytes) -> "Status":
        _exactly(data, _STATUS.size, "STATUS")
        version, flags, count, session_id = _STATUS.unpack(data)
        if version != 0:
            raise WireError(f"STATUS: version {version}: only 0 is known")
        if count > limits.MAX_EXPORTS:
            raise WireError(f"STATUS: {count} exports, more than {limits.MAX_EXPORTS}")
        return Status(bool(flags & 1), count, session_id)


@dataclass(slots=True)
class Request:
    """Gadget to host, interrupt IN: do `op` on `blocks` blocks from `lba` of an export."""

    op: Op
    request_id: int
    export_id: int
    lba: int
    blocks: int
    flags: int = 0

    def encode(self) -> bytes:
        return _REQUEST.pack(self.op, self.request_id, self.export_id, self.lba, self.blocks, self.flags)

    @staticmethod
    def decode(data: bytes) -> "Request":
        _exactly(data, _REQUEST.size, "Request")
        op, request_id, export_id, lba, blocks, flags = _REQUEST.unpack(data)
        return Request(_op(op, "Request"), request_id, export_id, lba, blocks, flags)


@dataclass(slots=True)
class Response:
    """Host to gadget, interrupt OUT: the Request with these fields ended with `status` (0 or an errno)."""

    op: Op
    status: int
    request_id: int
    export_id: int
    lba: int
    blocks: int
    flags: int = 0

    def encode(self) -> bytes:
        return _RESPONSE.pack(
            self.op, self.status, 0, self.request_id, self.export_id, self.lba, self.blocks, self.flags
        )

    @staticmethod
    def decode(data: bytes) -> "Response":
        _exactly(data, _RESPONSE.size, "Response")
        op, status, _, request_id, export_id, lba, blocks, flags = _RESPONSE.unpack(data)
        return Response(_op(op, "Response"), status, request_id, export_id, lba, blocks, flags)

    @staticmethod
    def to(request: Request, status: int) -> "Response":
        """The answer to `request`. `status` is 0 or an errno below 256 (the field is one byte)."""
        return Response(
            request.op, status, request.request_id, request.export_id, request.lba, request.blocks, request.flags
        )


class Answering(Protocol):
    """What names the Request that it answers: a Response, or a record of v1."""

    op: Op
    request_id: int
    export_id: int
    lba: int
    blocks: int


def answers(response: Answering, request: Request) -> bool:
    """Is this the answer to exactly this request? Compared in full: an id alone is not trusted."""
    return (
        response.request_id == request.request_id
        and response.op is request.op
        and response.export_id == request.export_id
        and response.lba == request.lba
        and response.blocks == request.blocks
    )


def out_of_bounds(op: Op, lba: int, blocks: int, export: ExportRecord, max_io_bytes: int) -> str | None:
    """Why this request may not touch this export, or None. A FLUSH covers all of it, whatever its lba says."""
    if op is Op.FLUSH:
        return None
    if blocks == 0:
        return f"{op.name} of 0 blocks"
    if lba + blocks > export.size_bytes // export.block_size:
        return f"{op.name} of {blocks} blocks at {lba} is past the end of {export.blocks}"
    if op <= Op.WRITE and blocks * export.block_size > max_io_bytes:
        return f"{op.name} of {blocks * export.block_size} bytes is more than {max_io_bytes}"
    return None


def _op(value: int, what: str) -> Op:
    if value > Op.DISCARD:
        raise WireError(f"{what}: unknown op {value}")
    return OPS[value]


def _exactly(data: bytes, size: int, what: str) -> None:
    if len(data) != size:
        raise WireError(f"{what}: {len(data)} bytes, not {size}")
