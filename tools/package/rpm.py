"""An RPM package from tools.package.tree, written by rpmbuild (on Debian: the package `rpm`) from a spec made here.

Architecture noarch: there is no compiled code. Dependencies are what Python's packages provide (`python3dist`), which
Fedora and openSUSE both know; nothing is generated, stripped or compiled meanwhile. The tests look at its structure.
"""

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common.errors import Exit, Refused
from tools.package.tree import LIBRARY, Installed, installed
from tools.version import VERSION

DEPENDS = (
    "python3 >= 3.11",
    "python3dist(pyzmq) >= 24",
    "python3dist(msgpack) >= 1.0.3",
    "python3dist(psutil) >= 5.9",
    "python3dist(pyusb) >= 1.2",
    "python3dist(rich) >= 13",
)
_EPOCH = 1704067200  # the same bytes for the same tree
# As in the Debian package nothing is started, stopped or restarted: disks may be in use.
_SPEC = """\
Name: replug
Version: {version}
Release: 1
Summary: Block devices of a USB gadget whose bytes lie on the USB host
License: MIT
BuildArch: noarch
AutoReqProv: no
{requires}

%description
An inverted USB disk: a phone or board with a USB device controller gets block
devices /dev/ublkbN, and a PC holds their bytes in images or block devices.
Every process of it may be killed while the disk is in use; I/O waits and goes
on. This package is for both sides.

%post
/usr/bin/python3 -P -m compileall -q /{library} || :
[ ! -d /run/systemd/system ] || systemctl daemon-reload || :
[ ! -d /run/udev ] || udevadm control --reload || :

%preun
if [ "$1" = 0 ]; then
    find /{library} -type d -name __pycache__ -prune -exec rm -rf {{}} +
fi

%postun
[ ! -d /run/systemd/system ] || systemctl daemon-reload || :

%files
{files}
"""
_DEFINES = {
    "_build_id_links": "none",
    "_buildhost": "localhost",
    "__os_install_post": "%{nil}",  # the files are what the tree says, not what a distribution's scripts make of them
    "use_source_date_epoch_as_buildtime": "1",
    "clamp_mtime_to_source_date_epoch": "1",
    "_binary_payload": "w9.gzdio",  # every rpm reads it
}


def build(root: Path, destination: Path) -> Path:
    """Make the package from the source tree `root`; returns its path in the directory `destination`."""
    files = installed(root)
    destination.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="replug-rpm-") as work:
        top = Path(work)
        stage = top / "stage"
        _stage(stage, files)
        (top / "replug.spec").write_text(_spec(files))
        _run(top, stage)
        target = destination / f"replug-{VERSION}-1.noarch.rpm"
        target.write_bytes((top / "RPMS/noarch" / target.name).read_bytes())
    return target


def _spec(files: Sequence[Installed]) -> str:
    lines = [f"%attr({'0755' if file.executable else '0644'}, root, root) /{file.path}" for file in files]
    directories = {str(parent) for file in files for parent in Path(file.path).parents}
    ours = sorted(each for each in directories if "replug" in each)  # others are the distribution's
    lines += [f"%dir %attr(0755, root, root) /{each}" for each in ours]
    requires = "\n".join(f"Requires: {name}" for name in DEPENDS)
    return _SPEC.format(version=VERSION, requires=requires, library=LIBRARY, files="\n".join(lines))


def _stage(stage: Path, files: Sequence[Installed]) -> None:
    for file in files:
        path = stage / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
        os.utime(path, (_EPOCH, _EPOCH))
    for directory, _, _ in os.walk(stage, topdown=False):
        os.utime(directory, (_EPOCH, _EPOCH))


def _run(top: Path, stage: Path) -> None:
    defines = [word for name, value in _DEFINES.items() for word in ("--define", f"{name} {value}")]
    # no %install: rpmbuild would make the root anew, and it is there already
    command = ["rpmbuild", "-bb", "--noprep", "--noclean", "--define", f"_topdir {top}", "--buildroot", str(stage)]
    environment = {"SOURCE_DATE_EPOCH": str(_EPOCH), **os.environ, "HOME": str(top)}
    try:
        result = subprocess.run(
            [*command, *defines, str(top / "replug.spec")], env=environment, capture_output=True, text=True, timeout=300
        )
    except FileNotFoundError:
        cure = "'apt-get install rpm' or 'dnf install rpm-build'"
        raise Refused(f"rpm: rpmbuild: not found: {cure}", Exit.LACKING) from None
    if result.returncode:
        raise Refused(f"rpm: rpmbuild: {result.stderr.strip()[-1500:]}", Exit.FAULT)
