"""Which USB devices may be smoo gadgets: read from sysfs only, and the kernel's own word when one comes (uevents).

Nothing is opened: that is usb's. The netlink socket needs neither udevd nor root. Called by host.session.role.
"""

import contextlib
import errno
import socket
from dataclasses import dataclass, field
from pathlib import Path

from common.shown import shown
from common.wire import Identity
from host.session.choice import Facts, chooser

_SYSFS = Path("/sys/bus/usb/devices")
_KERNEL_GROUP = 1  # uevents of the kernel itself; 2 is udevd's
_NETLINK_KOBJECT_UEVENT = 15  # linux/netlink.h
_UEVENT_BYTES = 8192  # UEVENT_BUFFER_SIZE is 2048, and a header
_SPEEDS = {"1.5": "low", "12": "full", "480": "high", "5000": "super", "10000": "super-plus", "20000": "super-plus"}
_SHAPES = [("in", "Bulk"), ("in", "Interrupt"), ("out", "Bulk"), ("out", "Interrupt")]  # of our endpoints


@dataclass(frozen=True, slots=True)
class Gadget:
    """Where a gadget is now. `serial` and `speed` are for people and for choosing; empty if it tells none."""

    bus: int
    address: int
    serial: str
    speed: str
    place: str = field(default="", compare=False)  # its name in sysfs, which says the port


def find(wanted: str | None, root: Path = _SYSFS) -> list[Gadget]:
    """All gadgets that are there, or those that host.session.choice means. One that goes meanwhile is left out."""
    found, chosen = set(), chooser(wanted)
    for interface in root.glob("*:*"):
        with contextlib.suppress(OSError, ValueError):
            if _may_be_ours(interface):
                device = root / interface.name.partition(":")[0]
                gadget = _gadget(device)
                if chosen(Facts(gadget.serial, *_ids(device), gadget.place)):
                    found.add(gadget)
    return sorted(found, key=lambda gadget: (gadget.bus, gadget.address))


def _may_be_ours(interface: Path) -> bool:
    """By what it calls itself. A real fastboot, which calls itself so too, has other endpoints: it is left alone."""
    kind = tuple(int((interface / f"bInterface{name}").read_text(), 16) for name in ("Class", "SubClass", "Protocol"))
    if kind != Identity.FASTBOOT.value:
        return kind == Identity.SMOO.value
    return sorted((_text(place / "direction"), _text(place / "type")) for place in interface.glob("ep_*")) == _SHAPES


def _gadget(device: Path) -> Gadget:
    speed = _text(device / "speed")
    return Gadget(
        int((device / "busnum").read_text()),
        int((device / "devnum").read_text()),
        shown(_text(device / "serial")),
        _SPEEDS.get(speed, shown(speed)),
        device.name,
    )


def _ids(device: Path) -> tuple[int, int]:
    """VID and PID; 0 where sysfs tells none."""
    one, two = (int(_text(device / name) or "0", 16) for name in ("idVendor", "idProduct"))
    return one, two


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


class Uevents:
    """The kernel's uevents. `fd` is readable when there are some; None where netlink is not allowed (containers)."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_KOBJECT_UEVENT
            )
            self._socket.setblocking(False)
            self._socket.bind((0, _KERNEL_GROUP))
        except OSError:
            if self._socket is not None:
                self._socket.close()
            self._socket = None

    @property
    def fd(self) -> int | None:
        return None if self._socket is None else self._socket.fileno()

    def usb_device_came(self) -> bool:
        """Read what is there; has an interface of a USB device been added? True too if some were lost (ENOBUFS)."""
        came = False
        while self._socket is not None:
            try:
                data = self._socket.recv(_UEVENT_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                came = True  # ENOBUFS: some were lost
                if error.errno == errno.ENOBUFS:
                    continue
                break
            fields = data.split(b"\0")
            came = came or (fields[0].startswith(b"add@") and b"DEVTYPE=usb_interface" in fields)
        return came
