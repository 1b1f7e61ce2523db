"""What udev is told of each device, so that it can name it: a small file per device, made before the device is.

`packaging/udev/71-replug-gadget.rules` reads it when the device comes and makes /dev/disk/by-id/replug-NAME and
replug-id-EXPORT. No program of ours runs for that, and nothing is looked up. Called by gadget/session/role.py.
"""

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from gadget.session.state import Device


def directory(root: Path) -> Path:
    return root / "udev"


def write_names(root: Path, devices: Iterable[Device]) -> None:
    """One file for each of `devices`, named as the kernel names it; those of others are taken away."""
    place = directory(root)
    place.mkdir(mode=0o700, exist_ok=True)
    wanted = {f"ublkb{device.ublk_id}": device for device in devices}
    for old in place.iterdir():
        if old.name not in wanted:
            with contextlib.suppress(FileNotFoundError):
                old.unlink()
    for name, device in wanted.items():
        temporary = place / f".{name}.{os.getpid()}"
        temporary.write_text(f"ID_REPLUG_NAME={safe(device.label or device.name)}\nID_REPLUG_EXPORT={device.name}\n")
        temporary.replace(place / name)


def safe(label: str) -> str:
    """A host chose it: it must be one line, and one name in a directory."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", label).lstrip(".") or "_"
