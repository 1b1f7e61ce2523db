"""Who holds a block device open: processes with it open, mounts of any namespace, swap, other block devices.

Asked before a device is taken away. A look, not a lock: a holder may come a moment later.
"""

import contextlib
import os
import re
import stat
from pathlib import Path
from typing import Final

# They look at a disk and do not use it: a job of ours, which reads the partition table, and udev's workers, which probe
# each disk that comes or was written to. Where no host answers they wait; they end with the queue.
_PROBES: Final = ("replug:", "(udev-worker)", "systemd-udevd")


def holders_of(ublk_id: int, proc: Path = Path("/proc"), sys_block: Path = Path("/sys/block")) -> list[str]:
    """Holders of /dev/ublkbN and its partitions, each named for people: `dd (pid 12)`, `mounted on /mnt`."""
    disk = sys_block / f"ublkb{ublk_id}"
    numbers = _numbers(disk)
    if not numbers:
        return []
    found: dict[str, None] = {f"block device {name}": None for name in _stacked(disk)}
    found.update(_swap(proc, ublk_id))
    for process in proc.iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):  # it ended, or is not ours to look at
                found.update(_mounts(process, numbers))
            with contextlib.suppress(OSError):
                found.update(_open_by(process, numbers))
    return list(found)


def _numbers(disk: Path) -> set[str]:
    """major:minor of the disk and its partitions."""
    numbers = set()
    for file in (disk / "dev", *disk.glob("*/dev")):
        with contextlib.suppress(OSError):
            numbers.add(file.read_text().strip())
    return numbers


def _stacked(disk: Path) -> list[str]:
    return [entry.name for pattern in ("holders/*", "*/holders/*") for entry in disk.glob(pattern)]


def _swap(proc: Path, ublk_id: int) -> dict[str, None]:
    """Swapping keeps no descriptor and no mount; proc(5) swaps: the first field is the device."""
    try:
        devices = [line.split()[0] for line in (proc / "swaps").read_text().splitlines()[1:]]
    except OSError:
        return {}
    own = re.compile(rf"/dev/ublkb{ublk_id}(p\d+)?")
    return {f"swap on {device}": None for device in devices if own.fullmatch(device)}


def _mounts(process: Path, numbers: set[str]) -> dict[str, None]:
    """Fields of proc(5) mountinfo: 3rd major:minor, 5th mount point."""
    mounts = (line.split() for line in (process / "mountinfo").read_text().splitlines())
    return {f"mounted on {m[4].encode().decode('unicode_escape')}": None for m in mounts if m[2] in numbers}


def _open_by(process: Path, numbers: set[str]) -> dict[str, None]:
    for link in (process / "fd").iterdir():
        with contextlib.suppress(OSError):
            status = link.stat()
            number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
            if stat.S_ISBLK(status.st_mode) and number in numbers:
                comm = (process / "comm").read_text().strip()
                if only_probes(comm):
                    return {}
                return {f"{comm} (pid {process.name})": None}
    return {}


def only_probes(comm: str) -> bool:
    """Is a process of this name one that looks at disks and uses none?"""
    return comm.startswith(_PROBES)
