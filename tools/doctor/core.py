"""What facts about a machine mean for each side: findings, and for each lack what mends it. Pure.

A finding is `ok`, `warn` (works, but not as well as it could) or `lack` (this side cannot run here).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

OLDEST_KERNEL = (6, 6)  # a long-term one; ublk tells its features (6.5), and takes ioctl-encoded commands (6.4)
TESTED_KERNEL = (6, 12)
MEMLOCK_BYTES = 256 << 20  # a side of a few exports with everything locked is below 100 MiB
NOFILE = 1024
NEEDED_FEATURES = ("USER_RECOVERY", "USER_RECOVERY_REISSUE")


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    LACK = "lack"


class Module(StrEnum):
    """A driver: there, to be had by modprobe, or not at all. UNKNOWN: no module tree to look into (a container)."""

    THERE = "there"
    LOADABLE = "loadable"
    ABSENT = "absent"
    UNKNOWN = "unknown"


class Access(StrEnum):
    FINE = "fine"
    DENIED = "denied"
    ABSENT = "absent"


@dataclass(frozen=True)
class Facts:
    """What the probe saw. Sizes in bytes; None where there was nothing to see."""

    release: str
    kernel: tuple[int, int]
    distribution: str  # debian, ubuntu, fedora, arch, alpine or empty
    root: bool
    modules: dict[str, Module]
    ublk_control: Access
    ublk_features: tuple[str, ...] | None  # None: the driver was not asked
    configfs_gadgets: bool  # /sys/kernel/config/usb_gadget is there
    controllers: tuple[str, ...]
    io_uring: str  # empty: allowed; else what the kernel answered
    io_uring_disabled: int  # kernel.io_uring_disabled
    libusb: str | None
    usb_nodes: int  # device nodes below /dev/bus/usb
    usb_nodes_denied: int
    memlock_bytes: int | None  # None: no limit
    nofile: int
    python_missing: tuple[str, ...] = ()  # of PACKAGES, by the name that is imported
    controllers_used: tuple[tuple[str, str], ...] = ()  # those that another gadget than ours has, and which
    udev_rule: bool = True  # that of the host side is installed
    in_plugdev: bool = True  # the user is in the group that it names


@dataclass(frozen=True)
class Finding:
    side: str
    check: str
    level: Level
    text: str
    cure: str = ""


# What mends a lack, by distribution; "" is for every other one.
_KERNEL = {
    "debian": "a kernel of Debian 13 or bookworm-backports (linux-image-amd64 or -arm64, not the cloud flavour)",
    "ubuntu": "apt install linux-modules-extra-$(uname -r); where the kernel is too old, linux-generic-hwe-24.04",
    "fedora": "dnf upgrade kernel kernel-modules-extra, and boot it",
    "arch": "pacman -Syu linux, and boot it",
    "alpine": "apk add linux-lts, and boot it",
    "": "install a kernel of 6.12 or newer with CONFIG_BLK_DEV_UBLK, CONFIG_USB_CONFIGFS_F_FS and CONFIG_IO_URING",
}
_LIBUSB = {
    **dict.fromkeys(("debian", "ubuntu"), "apt install libusb-1.0-0"),
    "fedora": "dnf install libusb1",
    "arch": "pacman -S libusb",
    "alpine": "apk add libusb",
    "": "install libusb 1.0, or replug's extra 'libusb'",
}


# What is imported, for what, and Debian's package of it.
PACKAGES = {
    "zmq": ("both sides", "python3-zmq"),
    "msgpack": ("both sides", "python3-msgpack"),
    "psutil": ("both sides", "python3-psutil"),
    "usb": ("the host side", "python3-usb"),
    "rich": ("top, and progress of long work", "python3-rich"),
}
_PIP = {"zmq": "pyzmq", "usb": "pyusb"}


def findings(facts: Facts) -> list[Finding]:
    """For the gadget side first, then for the host side."""
    return [*_gadget(facts), *_host(facts)]


def sides(found: Iterable[Finding]) -> dict[str, Level]:
    """The worst level of each side."""
    order = list(Level)
    worst: dict[str, Level] = {}
    for finding in found:
        worst[finding.side] = max(worst.get(finding.side, Level.OK), finding.level, key=order.index)
    return worst


def _gadget(facts: Facts) -> list[Finding]:
    rows: list[_Row | None] = [_kernel(facts)]
    rows += [_module(facts, name) for name in ("ublk_drv", "libcomposite", "usb_f_fs")]
    rows += [_ublk(facts), _features(facts), _io_uring(facts), _configfs(facts), _controllers(facts)]
    rows.append(_python(facts, "usb"))
    if facts.root:
        rows.append(("root", Level.OK, "runs as root", ""))
    else:
        rows.append(("root", Level.LACK, "not root: only root may make gadgets and block devices", "run it with sudo"))
    return [Finding("gadget", *row) for row in [*rows, *_limits(facts)] if row is not None]


def _host(facts: Facts) -> list[Finding]:
    rows: list[_Row | None] = []
    if facts.libusb is None:
        rows.append(("libusb", Level.LACK, "no libusb-1.0.so.0", _cure(_LIBUSB, facts)))
    else:
        rows.append(("libusb", Level.OK, facts.libusb, ""))
    rows += [_python(facts), _usb_nodes(facts), _rule(facts), _usbmon(facts), *_limits(facts)]
    return [Finding("host", *row) for row in rows if row is not None]


_Row = tuple[str, Level, str, str]


def _cure(cures: dict[str, str], facts: Facts) -> str:
    return cures.get(facts.distribution, cures[""])


def _kernel(facts: Facts) -> _Row:
    needs = ".".join(map(str, OLDEST_KERNEL))
    if facts.kernel < OLDEST_KERNEL:
        return "kernel", Level.LACK, f"Linux {facts.release}: older than {needs}", _cure(_KERNEL, facts)
    if facts.kernel < TESTED_KERNEL:
        tested = ".".join(map(str, TESTED_KERNEL))
        text = f"Linux {facts.release}: new enough ({needs}), but replug is tested on {tested} and newer"
        return "kernel", Level.WARN, text, _cure(_KERNEL, facts)
    return "kernel", Level.OK, f"Linux {facts.release}", ""


def _module(facts: Facts, name: str) -> _Row:
    match facts.modules.get(name, Module.UNKNOWN):
        case Module.THERE:
            return name, Level.OK, "there", ""
        case Module.LOADABLE if facts.root:
            return name, Level.OK, "not loaded; 'gadget up' loads it", ""
        case Module.LOADABLE:
            return name, Level.WARN, "not loaded", f"sudo modprobe {name}"
        case Module.ABSENT:
            return name, Level.LACK, f"Linux {facts.release} has no such driver", _cure(_KERNEL, facts)
    text = f"not loaded, and there is no /lib/modules/{facts.release} to load it from"
    return name, Level.LACK, text, f"in a container: 'modprobe {name}' on its host; else {_cure(_KERNEL, facts)}"


def _ublk(facts: Facts) -> _Row | None:
    if facts.ublk_control is Access.DENIED:
        return "/dev/ublk-control", Level.LACK, "not ours to open", "run it with sudo"
    if facts.ublk_control is Access.FINE:
        return "/dev/ublk-control", Level.OK, "there", ""
    if facts.modules.get("ublk_drv") is Module.THERE:
        cure = "mknod it with the numbers in /sys/class/misc/ublk-control/dev, or let udev or devtmpfs do it"
        return "/dev/ublk-control", Level.LACK, "the driver is there, but its node is not", cure
    return None  # the module's own finding says it


def _features(facts: Facts) -> _Row | None:
    if facts.ublk_features is None:
        return None
    missing = [name for name in NEEDED_FEATURES if name not in facts.ublk_features]
    if missing:
        return "ublk features", Level.LACK, f"the driver has no {', '.join(missing)}", _cure(_KERNEL, facts)
    return "ublk features", Level.OK, ", ".join(facts.ublk_features), ""


def _io_uring(facts: Facts) -> _Row:
    if not facts.io_uring:
        return "io_uring", Level.OK, "allowed", ""
    if facts.io_uring_disabled == 2 or (facts.io_uring_disabled == 1 and not facts.root):
        text = f"kernel.io_uring_disabled is {facts.io_uring_disabled}"
        cure = "sudo sysctl kernel.io_uring_disabled=0 (and in /etc/sysctl.d for the next boot)"
        return "io_uring", Level.LACK, text, cure
    cure = "in a container: allow io_uring in its seccomp profile; else a kernel with CONFIG_IO_URING"
    return "io_uring", Level.LACK, f"refused: {facts.io_uring}", cure


def _configfs(facts: Facts) -> _Row | None:
    if facts.configfs_gadgets:
        return "configfs", Level.OK, "/sys/kernel/config/usb_gadget is there", ""
    if facts.modules.get("libcomposite") is Module.THERE:
        cure = "mount -t configfs none /sys/kernel/config"
        return "configfs", Level.LACK, "not mounted: no /sys/kernel/config/usb_gadget", cure
    return None  # it comes with libcomposite, whose own finding says it


def _python(facts: Facts, but: str = "") -> _Row:
    """`but`: what this side does without."""
    missing = [name for name in facts.python_missing if name != but]
    if not missing:
        return "Python", Level.OK, "has the modules it needs", ""
    if facts.distribution in ("debian", "ubuntu"):
        cure = "apt install " + " ".join(PACKAGES[name][1] for name in missing)
    else:
        cure = "install into replug's own environment: " + " ".join(_PIP.get(name, name) for name in missing)
    told = ", ".join(f"{name} (for {PACKAGES[name][0]})" for name in missing)
    return "Python", Level.WARN if missing == ["rich"] else Level.LACK, f"misses {told}", cure


def _controllers(facts: Facts) -> _Row:
    used = dict(facts.controllers_used)
    if facts.controllers and used.keys() >= set(facts.controllers):
        text = ", ".join(f"{name} is used by the gadget {gadget}" for name, gadget in used.items())
        cure = f"end that gadget: echo | sudo tee /sys/kernel/config/usb_gadget/{next(iter(used.values()))}/UDC"
        cure += ", or be a function of it: gadget up --ffs-dir DIR"
        return "UDC", Level.LACK, text, cure
    if facts.controllers:
        return "UDC", Level.OK, ", ".join(facts.controllers), ""
    cure = "switch the USB port to device mode (the board's dr_mode or dtoverlay), and load its driver (dwc2, musb)"
    return "UDC", Level.LACK, "no USB device controller in /sys/class/udc", f"{cure}; to try it out: modprobe dummy_hcd"


def _usb_nodes(facts: Facts) -> _Row:
    if not facts.usb_nodes:
        cure = "plug something in; in a container: pass /dev/bus/usb on"
        return "/dev/bus/usb", Level.WARN, "no USB devices", cure
    if facts.usb_nodes_denied:
        cure = "a udev rule for the gadget (packaging/udev/70-replug.rules) and the group plugdev, or run it with sudo"
        text = f"{facts.usb_nodes_denied} of {facts.usb_nodes} devices are not ours to write to"
        return "/dev/bus/usb", Level.WARN, text, cure
    return "/dev/bus/usb", Level.OK, f"{facts.usb_nodes} devices, all ours to use", ""


def _rule(facts: Facts) -> _Row | None:
    if facts.root:
        return None
    if not facts.udev_rule:
        cure = "sudo cp packaging/udev/70-replug.rules /etc/udev/rules.d/ && sudo udevadm control --reload"
        return "udev rule", Level.WARN, "not installed: only root may open a gadget", cure
    if not facts.in_plugdev:
        text = "there; without the group plugdev only who sits at this machine may open a gadget"
        return "udev rule", Level.WARN, text, 'sudo adduser "$USER" plugdev, and log in again'
    return "udev rule", Level.OK, "there, and the group is right", ""


def _usbmon(facts: Facts) -> _Row:
    match facts.modules.get("usbmon", Module.UNKNOWN):
        case Module.THERE:
            return "usbmon", Level.OK, "there", ""
        case Module.LOADABLE:
            return "usbmon", Level.OK, "not loaded; 'replug capture' wants 'modprobe usbmon' before it", ""
    return "usbmon", Level.WARN, "not there: only 'replug capture' wants it", "a kernel with CONFIG_USB_MON"


def _limits(facts: Facts) -> list[_Row]:
    rows: list[_Row] = []
    if facts.memlock_bytes is None or facts.memlock_bytes >= MEMLOCK_BYTES or facts.root:
        rows.append(("memlock", Level.OK, "memory can be locked", ""))
    else:
        text = f"only {facts.memlock_bytes >> 10}K may be locked: short of memory, I/O may wait for its own disk"
        cure = "a file in /etc/security/limits.d with '* - memlock unlimited', or LimitMEMLOCK=infinity in its unit"
        rows.append(("memlock", Level.WARN, text, cure))
    if facts.nofile >= NOFILE:
        rows.append(("nofile", Level.OK, f"{facts.nofile} open files", ""))
    else:
        text = f"only {facts.nofile} open files: enough for a few exports"
        rows.append(("nofile", Level.WARN, text, "ulimit -n 4096"))
    return rows
