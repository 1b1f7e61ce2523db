"""What the guest boots from: a cpio archive with a shell, modules, and one command to run.

Pure: an image and a job in, bytes out. The scripts `boot.sh` and `session.sh` beside this file are process
1 of the guest; everything that differs from run to run is in small files under /vm of the archive.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path, PurePosixPath

from tools.vm.images import Image

ALWAYS = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay", "configfs")
DRIVEN = ("ublk_drv", "libcomposite", "usb_f_fs", "usbmon", "crc32c_generic", "ext4", "xfs", "loop")
HIDDEN = (PurePosixPath("/tmp"), PurePosixPath("/run"), PurePosixPath("/dev/shm"))
"""Where the guest has a tmpfs of its own, so that the machine's directories below need a mount to be seen."""


class Speed(Enum):
    """How fast the dummy controllers say they are."""

    HIGH = "high"
    SUPER = "super"


@dataclass(frozen=True)
class Job:
    """One command and the machine it wants."""

    command: Sequence[str]
    cwd: str = "/"
    environment: Mapping[str, str] = field(default_factory=dict)
    udcs: int = 1
    speed: Speed = Speed.HIGH
    modules: Sequence[str] = ()
    visible: Sequence[str] = ()
    shares: Sequence[str] = ()
    dmesg: bool = False


def build(image: Image, job: Job, token: bytes) -> bytes:
    """The initrd for *job*. Raises KeyError for a module the image does not hold."""
    wanted = [*ALWAYS, *DRIVEN, *(("dummy_hcd",) if job.udcs else ()), *job.modules]
    order = image.load_order(wanted)
    entries: list[tuple[str, int, bytes]] = []
    for name in ("bin", "dev", "proc", "sys", "run", "lower", "upper", "root", "held", "vm", "modules"):
        entries.append((name, 0o040755, b""))
    entries.append(("bin/busybox", 0o100755, image.busybox.read_bytes()))
    entries.append(("init", 0o100755, (Path(__file__).parent / "boot.sh").read_bytes()))
    entries.extend((f"modules/{name}.ko", 0o100644, image.module_file(name).read_bytes()) for name in order)
    entries.extend((f"vm/{name}", 0o100644, data) for name, data in job_files(job, order, token).items())
    return cpio(entries)


def job_files(job: Job, order: Iterable[str], token: bytes) -> dict[str, bytes]:
    """The small files under /vm which make this run different from others."""
    options = {"dummy_hcd": controller_options(job.udcs, job.speed)}
    files = {
        "session.sh": (Path(__file__).parent / "session.sh").read_bytes(),
        "command": command_script(job).encode(),
        "token": token,
        "modules": "".join(f"{name} {options.get(name, '')}\n" for name in order).encode(),
        "visible": "".join(f"{path}\n" for path in hidden_ones(job.visible)).encode(),
        "shares": "".join(f"share{n} {path}\n" for n, path in enumerate(job.shares)).encode(),
    }
    if job.dmesg:
        files["dmesg"] = b""
    return files


def controller_options(udcs: int, speed: Speed) -> str:
    """Parameters of dummy_hcd; its own limit is 32 controllers (MAX_NUM_UDC in dummy_hcd.c)."""
    return f"num={udcs} is_super_speed={int(speed is Speed.SUPER)} is_high_speed=1"


def command_script(job: Job) -> str:
    """A shell script which becomes the command, with nothing in its environment but what was asked for."""
    pairs = [shlex.quote(f"{name}={value}") for name, value in job.environment.items()]
    words = [shlex.quote(word) for word in job.command]
    # the root's own env: a busybox one would run its applets instead of programs of that name
    environment = f"/usr/bin/env -i {' '.join(pairs)}"
    return f"cd {shlex.quote(job.cwd)} || exit 127\nexec {environment} {' '.join(words)}\n"


def hidden_ones(paths: Iterable[str]) -> list[str]:
    """Those of *paths* that a tmpfs of the guest would hide, none twice or inside another."""
    kept: list[str] = []
    for path in sorted({str(PurePosixPath(path)) for path in paths}):
        pure = PurePosixPath(path)
        if any(top in pure.parents for top in HIDDEN) and not any(
            PurePosixPath(outer) in pure.parents for outer in kept
        ):
            kept.append(path)
    return kept


def cpio(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """A `newc` archive (Documentation/driver-api/early-userspace/buffer-format.rst) of (path, mode, data)."""
    parts: list[bytes] = []
    for inode, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        path = name.encode() + b"\0"
        # magic, ino, mode, uid, gid, nlink, mtime, filesize, devmajor/minor, rdevmajor/minor, namesize, check
        numbers = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        header = b"070701" + b"".join(b"%08X" % number for number in numbers) + path
        parts += [header, bytes(-len(header) % 4), data, bytes(-len(data) % 4)]
    return b"".join(parts)
