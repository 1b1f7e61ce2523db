"""Where ledgers lie: a file for each export in the runtime directory, mapped by who writes and by who reads.

On tmpfs, so it survives every kill of ours and no reboot, which the gadget's devices do not survive either; they do
survive a loss of the directory (`distrust_missing`). Called by the gadget's usb (writes) and session (reads), and by
the host's sources.
"""

import mmap
import os
from collections.abc import Iterable
from pathlib import Path

from bus.runtime import Runtime
from common import limits
from common.ledger import Ledger


def distrust_missing(runtime: Runtime, export_ids: Iterable[int]) -> list[int]:
    """Make a ledger that knows of its ignorance for each export that has none; returns those.

    For devices that are there already: their ledger was lost with the runtime directory, and an empty one would say
    that a host may reboot over nothing.
    """
    directory = _directory(runtime)
    missing = [export_id for export_id in export_ids if not (directory / f"{export_id:08x}").exists()]
    for export_id in missing:
        page = bytearray(limits.PAGE)
        Ledger(page).distrust()
        temporary = directory / f".{export_id:08x}.{os.getpid()}"
        temporary.write_bytes(page)
        temporary.replace(directory / f"{export_id:08x}")  # whole or not at all, whenever we are killed
    return missing


def _directory(runtime: Runtime) -> Path:
    directory = runtime.root / "unflushed"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory


def ledger_of(runtime: Runtime, export_id: int) -> Ledger:
    """The ledger of this export, made if there is none. It stays mapped as long as it is used."""
    fd = os.open(_directory(runtime) / f"{export_id:08x}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.posix_fallocate(fd, 0, limits.PAGE)  # ENOSPC now, rather than SIGBUS in the middle of an I/O
        return Ledger(memoryview(mmap.mmap(fd, limits.PAGE)))
    finally:
        os.close(fd)
