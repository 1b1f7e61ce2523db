"""Facts for tools.doctor.core, from /proc, /sys, /dev and a try of what cannot be read there. Changes nothing."""

import contextlib
import grp
import os
import platform
import re
import resource
from importlib.util import find_spec
from pathlib import Path

from gadget.ublk.control import Control
from gadget.ublk.uring import Ring
from gadget.usb import udc
from host.usb import library
from tools.doctor.core import PACKAGES, Access, Facts, Module

_UBLK_CONTROL = "/dev/ublk-control"
_RULE, _RULES = "70-replug.rules", ("etc/udev/rules.d", "usr/lib/udev/rules.d", "lib/udev/rules.d")
_FAMILIES = ("ubuntu", "debian", "fedora", "arch", "alpine")


def look(root: Path = Path("/")) -> Facts:
    """`root` stands for / where files are read, so that tests can show a machine that is not there."""
    release = platform.release()
    numbers = re.findall(r"\d+", release)
    ublk = _access(_UBLK_CONTROL)
    nodes = [str(node) for node in (root / "dev/bus/usb").glob("*/*")]
    return Facts(
        release=release,
        kernel=(int(numbers[0]), int(numbers[1])),
        distribution=distribution(root / "etc/os-release"),
        root=os.geteuid() == 0,
        modules={name: module(name, release, root) for name in ("ublk_drv", "libcomposite", "usb_f_fs", "usbmon")},
        ublk_control=ublk,
        ublk_features=_features() if ublk is Access.FINE else None,
        configfs_gadgets=(root / "sys/kernel/config/usb_gadget").is_dir(),
        controllers=tuple(udc.controllers()),
        io_uring=_io_uring(),
        io_uring_disabled=_number(root / "proc/sys/kernel/io_uring_disabled"),
        libusb=library.PATH,
        usb_nodes=len(nodes),
        usb_nodes_denied=sum(not os.access(node, os.R_OK | os.W_OK) for node in nodes),
        memlock_bytes=_limit(resource.RLIMIT_MEMLOCK),
        nofile=_limit(resource.RLIMIT_NOFILE) or 1 << 20,
        python_missing=tuple(name for name in PACKAGES if find_spec(name) is None),
        controllers_used=controllers_used(root),
        udev_rule=any((root / place / _RULE).exists() for place in _RULES),
        in_plugdev=_in_group("plugdev"),
    )


def controllers_used(root: Path = Path("/")) -> tuple[tuple[str, str], ...]:
    """Controllers that a gadget has which is not replug's, with its name in configfs."""
    found = []
    for file in sorted((root / "sys/kernel/config/usb_gadget").glob("*/UDC")):
        with contextlib.suppress(OSError):
            if (name := file.read_text().strip()) and not file.parent.name.startswith("replug-"):
                found.append((name, file.parent.name))
    return tuple(found)


def _in_group(name: str) -> bool:
    try:
        return grp.getgrnam(name).gr_gid in (os.getegid(), *os.getgroups())
    except KeyError:
        return False


def distribution(os_release: Path) -> str:
    """The family by ID or ID_LIKE (os-release(5)); empty if it is none that we know cures for."""
    try:
        text = os_release.read_text()
    except OSError:
        return ""
    found = dict(re.findall(r'^(ID|ID_LIKE)="?([^"\n]*)"?$', text, re.MULTILINE))
    words = [found.get("ID", ""), *found.get("ID_LIKE", "").split()]
    return next((word for word in words if word in _FAMILIES), "")


def module(name: str, release: str, root: Path = Path("/")) -> Module:
    """Loaded or built in; else in the kernel's module tree; else absent, or nobody can tell."""
    tree = root / "lib/modules" / release
    if (root / "sys/module" / name).is_dir() or _listed(tree / "modules.builtin", name):
        return Module.THERE
    if not (tree / "modules.dep").exists():
        return Module.UNKNOWN
    return Module.LOADABLE if _listed(tree / "modules.dep", name) else Module.ABSENT


def _listed(file: Path, name: str) -> bool:
    """Names of files may have - where the module has _."""
    pattern = rf"(^|/){name.replace('_', '[-_]')}\.ko(\.\w+)?(:|$)"
    try:
        return re.search(pattern, file.read_text(), re.MULTILINE) is not None
    except OSError:
        return False


def _access(path: str) -> Access:
    if not os.path.exists(path):
        return Access.ABSENT
    return Access.FINE if os.access(path, os.R_OK | os.W_OK) else Access.DENIED


def _features() -> tuple[str, ...] | None:
    try:
        return tuple(feature.name or "" for feature in Control().features())
    except OSError:
        return None  # the driver is older than the question; the kernel's finding says it


def _io_uring() -> str:
    try:
        Ring(2).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _number(file: Path) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0


def _limit(which: int) -> int | None:
    soft, _ = resource.getrlimit(which)
    return None if soft == resource.RLIM_INFINITY else soft
