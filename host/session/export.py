"""One export as the host's session knows it: what its source is, in the terms of the wire.

Made from the source role's own arguments, so that a session can have a source started. Pure. Called by
host.session.offer; the command line fills in the arguments (tools.cli.sources).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from common import limits
from common.wire import ExportRecord
from common.wire_v1 import NO_IDENTITY, ExportFlag, ExportV1


@dataclass(frozen=True, slots=True)
class Export:
    """`identity` as the source says it, of any length; empty or 0 where nobody knows."""

    export_id: int
    block_size: int
    size_bytes: int
    name: str
    read_only: bool
    discard: bool = False
    write_zeroes: bool = False
    physical_block: int = 0
    optimal_io: int = 0
    identity: str = ""

    @staticmethod
    def of(args: Mapping[str, Any]) -> "Export":
        """From a source role's arguments. KeyError, TypeError, ValueError or WireError if they are not such."""
        export = Export(
            int(args["export_id"]),
            int(args["block_size"]),
            int(args["size_bytes"]),
            str(args["name"]),
            bool(args["read_only"]),
            bool(args.get("discard")),
            bool(args.get("write_zeroes")),
            int(args.get("physical_block", 0)),
            int(args.get("optimal_io", 0)),
            str(args.get("identity", "")),
        )
        export.announced()  # raises for what no wire could carry
        return export

    @property
    def record(self) -> ExportRecord:
        return ExportRecord(self.export_id, self.block_size, self.size_bytes)

    def for_usb(self) -> list[Any]:
        return [self.export_id, self.block_size, self.size_bytes, self.name, self.read_only]

    def announced(self) -> ExportV1:
        """As CONFIG of v1 carries it. A capability that is not announced is not offered by the gadget's device."""
        flags = ExportFlag(0)
        if self.read_only:
            flags |= ExportFlag.READ_ONLY
        if self.discard and not self.read_only:
            flags |= ExportFlag.DISCARD
        if self.write_zeroes and not self.read_only:
            flags |= ExportFlag.WRITE_ZEROES
        short = self.name.encode()[: limits.WIRE_NAME_BYTES].decode(errors="ignore")
        identity = hashlib.sha256(self.identity.encode()).digest()[:16] if self.identity else NO_IDENTITY
        sizes = (power_of_two(self.physical_block), power_of_two(self.optimal_io))
        return ExportV1(self.record, flags, *sizes, identity, short)


def removed(export: ExportV1) -> ExportV1:
    """`export` as it is announced once more, when it is served no longer."""
    return replace(export, flags=export.flags | ExportFlag.EJECTED | ExportFlag.FLUSHED | ExportFlag.REMOVED)


def power_of_two(size_bytes: int) -> int:
    """What the wire and ublk can say of a size: its largest such factor (of a RAID's stripe, say), else 0: unknown."""
    factor = size_bytes & -size_bytes
    return factor if limits.MIN_BLOCK_SIZE <= factor <= limits.MAX_OPTIMAL_IO else 0
