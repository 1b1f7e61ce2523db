"""That a gadget is ours while our usb is being replaced: a lock on its usbfs node, for every other replug to see.

While usb lives its claim of the interface keeps others out, by the kernel; in the moment between a usb's death and its
successor's claim only this does. It goes with the node, and with our death. Called by host.session.role.
"""

import contextlib
import fcntl
import os
from pathlib import Path

from host.session.finder import Gadget

_NODES = Path("/dev/bus/usb")


class Hold:
    """At most one gadget at a time."""

    def __init__(self, nodes: Path = _NODES) -> None:
        self._nodes = nodes
        self._fd: int | None = None

    def take(self, gadget: Gadget) -> bool:
        """False if another replug has it. What was held before is let go of.

        A node that cannot be opened is no reason against it: attaching will tell better what is wrong.
        """
        node = self._nodes / f"{gadget.bus:03}" / f"{gadget.address:03}"
        try:
            if self._fd is not None and os.path.samestat(os.fstat(self._fd), node.stat()):
                return True
            self.release()
            # An open node keeps its device awake, and only a writable one can be told to let it sleep (usbfs: EPERM).
            fd = os.open(node, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return True
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return False
        self._fd = fd
        return True

    def release(self) -> None:
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.close(self._fd)
        self._fd = None
