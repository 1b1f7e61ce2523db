"""Where ledgers lie: a file for each export in the runtime directory, mapped by who writes and by who reads.

On tmpfs, so it survives every kill of ours and no reboot, which the gadget's devices do not survive either. Called by
the gadget's usb (writes) and session (reads), and by the host's sources.
"""

import mmap
import os

from bus.runtime import Runtime
from common import limits
from common.ledger import Ledger


def ledger_of(runtime: Runtime, export_id: int) -> Ledger:
    """The ledger of this export, made if there is none. It stays mapped as long as it is used."""
    directory = runtime.root / "unflushed"
    directory.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(directory / f"{export_id:08x}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.posix_fallocate(fd, 0, limits.PAGE)  # ENOSPC now, rather than SIGBUS in the middle of an I/O
        return Ledger(memoryview(mmap.mmap(fd, limits.PAGE)))
    finally:
        os.close(fd)
