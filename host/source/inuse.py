"""Is an image written to behind our back? Loop devices over it and their mounts, and the image behind a loop device.

The kernel refuses to share block devices (O_EXCL) and our locks tell served files from each other; loop devices honour
neither. Looked at whenever a source is opened, by its role too: what was mounted while a source was dead must not be
served by its successor. A look, not a lock: the kernel has none for this.
"""

import os
import shlex
from pathlib import Path

from common.errors import Refused

_SYS, _MOUNTS = Path("/sys"), Path("/proc/self/mounts")


def refuse_in_use(path: Path, status: os.stat_result, sys: Path = _SYS, mounts: Path = _MOUNTS) -> None:
    """Refused if the regular file is a loop device, with where it is mounted and what ends that."""
    for entry in sorted((sys / "block").glob("loop*/loop/backing_file")):
        backing = _status(_path_in(entry))
        if backing is None or (backing.st_dev, backing.st_ino) != (status.st_dev, status.st_ino):
            continue
        loop = f"/dev/{entry.parent.parent.name}"
        at = mount_point(loop, mounts)
        if at is not None:
            raise Refused(f"{path}: mounted on {at}: unmount it with 'umount {shlex.quote(at)}'")
        raise Refused(f"{path}: in use as {loop}: detach it with 'losetup -d {loop}'")


def image_behind(status: os.stat_result, sys: Path = _SYS) -> Path | None:
    """The file that a loop device (or a partition of one) stands for: whoever serves either serves both."""
    device = (sys / "dev" / "block" / f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}").resolve()
    for place in (device, device.parent):
        entry = place / "loop" / "backing_file"
        if entry.is_file():
            return _path_in(entry)
    return None


def mount_point(device: str, mounts: Path = _MOUNTS) -> str | None:
    """Where the device or a partition of it is mounted."""
    for line in mounts.read_text().splitlines():
        fields = line.split()
        if fields[0] == device or fields[0].startswith(device + "p"):
            return fields[1].encode().decode("unicode_escape")
    return None


def _path_in(entry: Path) -> Path:
    try:
        return Path(entry.read_text().rstrip("\n"))
    except OSError:  # detached meanwhile
        return Path("/dev/null")


def _status(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:  # deleted, or of another mount namespace
        return None
