"""Whose a ublk device is: the 64 bits of ublksrv_flags, which the kernel keeps for its server and gives back.

They outlive every process and file of ours, so a device can be told from a stranger's, and from that of another
instance on the same machine, when nothing else is left.
"""

import zlib
from typing import Final

_MAGIC: Final = 0x5250  # "RP", in the top 16 bits; then 16 of the instance's name; then the export id


def ownership_mark(instance: str, export_id: int) -> int:
    """The mark of the device that serves this export for this instance."""
    if not 0 < export_id <= 0xFFFFFFFF:
        raise ValueError(f"export id {export_id:#x} is not a non-zero u32")
    return _MAGIC << 48 | _of(instance) << 32 | export_id


def export_of(mark: int, instance: str) -> int | None:
    """The export a device with this mark serves, None if it is not this instance's."""
    if mark >> 32 != _MAGIC << 16 | _of(instance) or not mark & 0xFFFFFFFF:
        return None
    return mark & 0xFFFFFFFF


def _of(instance: str) -> int:
    return zlib.crc32(instance.encode()) & 0xFFFF
