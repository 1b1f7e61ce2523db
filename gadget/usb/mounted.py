"""A FunctionFS that somebody else has mounted, in a gadget that somebody else makes, binds and unbinds (`--ffs-dir`).

Ours are its ep0 and the endpoints behind that; configfs and the controller are not touched, but for `release`. What
the kernel does by itself (f_fs.c) is in that owner's hands too: a gadget can be bound only once ep0 has its
descriptors, and when the last descriptor is closed the kernel unbinds the whole gadget, other functions included,
unless the mount says no_disconnect=1: then it does so at the next opening, where replug does it first.
"""

import contextlib
import os
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import Exit, Refused
from common.wire import Identity
from gadget.usb import configfs
from gadget.usb.configfs import GadgetTree

_CLOSED_S: Final = 5.0  # a dead owner's transfers may hold its files for a moment
_LOOK_S: Final = 0.01


@dataclass(frozen=True)
class MountedFfs:
    """Named by its mount point. `left`: the gadget that this instance had of its own, if it was up without this."""

    mount_point: Path
    left: GadgetTree
    identity: Identity = Identity.SMOO

    def create(self) -> None:
        """Nothing is made: it must be there, and nobody may have written descriptors to it. Refused else."""
        need(self.mount_point)
        deadline = time.monotonic() + _CLOSED_S
        while _written(self.mount_point):  # until the kernel has closed the last of a dead owner's files: nothing tells
            if time.monotonic() > deadline:
                raise Refused(busy(self.mount_point, holders(self.mount_point)), Exit.BUSY)
            time.sleep(_LOOK_S)
        release(gadgets_of(self.mount_point))

    def bind(self) -> None:
        """Its owner's to do."""

    def has(self, ep0: int) -> bool:
        """Is this descriptor of what is mounted there now? Not if its owner has mounted another one since."""
        try:
            now = os.stat(self.mount_point / "ep0")
        except OSError:
            return False
        return (now.st_dev, now.st_ino) == (os.fstat(ep0).st_dev, os.fstat(ep0).st_ino)

    def remove(self) -> None:
        """Of ours there is nothing but, maybe, that gadget of before."""
        if self.left.exists():
            self.left.remove()


def need(directory: Path, mountinfo: Path = Path("/proc/self/mountinfo")) -> None:
    """Refused if no FunctionFS is mounted there."""
    if not directory.is_dir():
        raise Refused(f"{directory}: no such directory: name the one where a FunctionFS is mounted")
    kind = _kind(directory, mountinfo)
    if kind != "functionfs":
        what = f"a mount of {kind}" if kind else "a plain directory"
        cure = f"its owner mounts it: 'mount -t functionfs NAME {directory}'"
        raise Refused(f"{directory}: {what}, not a FunctionFS: {cure}")


def gadgets_of(
    directory: Path, mountinfo: Path = Path("/proc/self/mountinfo"), gadgets: Path = configfs.GADGETS
) -> list[Path]:
    """The gadgets in configfs that have the function of this mount: named by its device, `ffs.NAME`."""
    mount = _mount_of(directory, mountinfo)
    return [place.parents[1] for place in gadgets.glob(f"*/functions/ffs.{mount[1]}")] if mount else []


def release(gadgets: Iterable[Path]) -> None:
    """Unbind those that are bound although nobody has the FunctionFS open: it is deactivated, as no_disconnect has it.

    The kernel unbinds such a gadget at the next opening of ep0. Some do not survive that: ffs_ep0_open holds the mutex
    that functionfs_unbind then waits for (f_fs.c of 6.12.117: the opener and all who ask for UDC sleep for ever).
    """
    for gadget in gadgets:
        with contextlib.suppress(OSError):  # it goes just now, or cannot be read here: then the kernel sees to it
            if (gadget / "UDC").read_text().strip():
                (gadget / "UDC").write_text("\n")


def holders(directory: Path, but: Collection[int] = (), proc: Path = Path("/proc")) -> list[str]:
    """Who has a file of it open, each named for people: `adbd (pid 12)`. `but`: pids that do not count."""
    found = []
    for process in sorted(proc.glob("[0-9]*"), key=lambda entry: int(entry.name)):
        with contextlib.suppress(OSError):  # it ended meanwhile
            mine = any(os.readlink(fd).startswith(f"{directory}/ep") for fd in (process / "fd").iterdir())
            if mine and int(process.name) not in but:
                found.append(f"{(process / 'comm').read_text().strip()} (pid {process.name})")
    return found


def busy(directory: Path, who: list[str]) -> str:
    whose = f"{', '.join(who)} uses it" if who else "somebody has written descriptors to its ep0"
    return f"{directory}: busy: {whose}: end that one, or name another FunctionFS"


def _written(directory: Path) -> bool:
    """Have descriptors been written to its ep0? Then there are endpoints. To try ep0 itself might answer its host."""
    return (directory / "ep1").exists()


def _kind(directory: Path, mountinfo: Path) -> str:
    """The type of the topmost mount there; empty if none is."""
    mount = _mount_of(directory, mountinfo)
    return mount[0] if mount else ""


def _mount_of(directory: Path, mountinfo: Path) -> tuple[str, str] | None:
    """Type and device of the topmost mount there. proc(5): the 5th field is the place, behind ` - ` are these two."""
    found = None
    for line in mountinfo.read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if _plain(fields.split()[4]) == str(directory):
            kind, device = rest.split()[:2]
            found = kind, _plain(device)
    return found


def _plain(field: str) -> str:
    """Without the escapes of blanks and the like."""
    return field.encode().decode("unicode_escape")
