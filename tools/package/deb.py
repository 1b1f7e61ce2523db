"""A Debian package (deb(5)) from tools.package.tree, staged in a directory and packed by dpkg-deb.

Architecture `all`: there is no compiled code. The dependencies are Debian 12's own packages; no virtual environment.
"""

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common.errors import Exit, Refused
from tools.package.tree import LIBRARY, Installed, installed
from tools.version import VERSION

DEPENDS = (
    "python3 (>= 3.11)",
    "python3-zmq (>= 24)",
    "python3-msgpack (>= 1.0.3)",
    "python3-psutil (>= 5.9)",
    "python3-usb (>= 1.2)",
    "python3-rich (>= 13)",
)
_CONTROL = """\
Package: replug
Version: {version}
Section: admin
Priority: optional
Architecture: all
Depends: {depends}
Recommends: udev
Installed-Size: {kib}
Maintainer: the replug authors <replug@localhost>
Description: block devices of a USB gadget whose bytes lie on the USB host
 An inverted USB disk: a phone or board with a USB device controller gets block
 devices /dev/ublkbN, and a PC holds their bytes in images or block devices.
 Every process of it may be killed while the disk is in use; I/O waits and goes
 on. This package is for both sides.
"""
# Nothing is started, stopped or restarted: disks may be in use. docs/how-to/upgrade.md tells how to go on.
_POSTINST = f"""\
#!/bin/sh
set -e
if [ "$1" = configure ]; then
    python3 -P -m compileall -q /{LIBRARY} || true
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload || true
    fi
    if command -v udevadm >/dev/null && [ -d /run/udev ]; then
        udevadm control --reload || true
    fi
fi
"""
_PRERM = f"""\
#!/bin/sh
set -e
find /{LIBRARY} -type d -name __pycache__ -prune -exec rm -rf {{}} +
"""


def build(root: Path, destination: Path) -> Path:
    """Make the package from the source tree `root`; returns its path in the directory `destination`."""
    files = installed(root)
    destination.mkdir(parents=True, exist_ok=True)
    target = destination / f"replug_{VERSION}_all.deb"
    with tempfile.TemporaryDirectory(prefix="replug-deb-") as stage:
        _stage(Path(stage), files)
        command = ["dpkg-deb", "--root-owner-group", "-Zxz", "--build", stage, str(target)]
        try:
            result = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=120)
        except FileNotFoundError:
            raise Refused(
                "deb: dpkg-deb: not found: 'apt-get install dpkg', or build on Debian", Exit.LACKING
            ) from None
    if result.returncode:
        raise Refused(f"deb: dpkg-deb: {result.stderr.strip()}", Exit.FAULT)
    return target


def _environment() -> dict[str, str]:
    """The same bytes for the same tree: times are no newer than SOURCE_DATE_EPOCH (reproducible-builds.org)."""
    return {"SOURCE_DATE_EPOCH": "1704067200", **os.environ}


def _stage(stage: Path, files: Sequence[Installed]) -> None:
    stage.chmod(0o755)
    for file in files:
        path = stage / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
        path.chmod(0o755 if file.executable else 0o644)
    kib = sum(-(-len(file.data) // 1024) for file in files)
    debian = stage / "DEBIAN"
    debian.mkdir()
    (debian / "control").write_text(_CONTROL.format(version=VERSION, depends=", ".join(DEPENDS), kib=kib))
    # usedforsecurity: a checksum, which is what dpkg --verify wants
    sums = [f"{hashlib.md5(f.data, usedforsecurity=False).hexdigest()}  {f.path}\n" for f in files]
    (debian / "md5sums").write_text("".join(sums))
    for name, text in (("postinst", _POSTINST), ("prerm", _PRERM)):
        (debian / name).write_text(text)
        (debian / name).chmod(0o755)
