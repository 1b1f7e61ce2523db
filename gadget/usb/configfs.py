"""Our gadget's directory in configfs and its FunctionFS mount: made, taken over, removed. No endpoint is touched here.

Documentation/usb/gadget_configfs.rst tells the layout, Documentation/usb/functionfs.rst the mount. Every prefix of
`create` can be removed by `remove`, because a death may come between any two of its lines.
"""

import contextlib
import ctypes
import errno
import os
import time
from dataclasses import dataclass
from pathlib import Path

from common.errors import Exit, Refused
from common.wire import Identity
from gadget.usb import udc

ROOT = Path("/sys/kernel/config")
GADGETS = ROOT / "usb_gadget"
_ENGLISH = "0x409"
_MNT_DETACH = 2  # linux/fs.h: umount2
_BUSY_S = 5.0  # a dead owner's transfers may hold the tree for a moment
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class GadgetTree:
    """One gadget with one configuration and one FunctionFS function. `name` is unique for this machine."""

    name: str
    udc: str
    vendor_id: int
    product_id: int
    serial: str
    product: str
    mount_point: Path
    identity: Identity = Identity.SMOO  # of its interface: written by whoever opens ep0

    @property
    def path(self) -> Path:
        return GADGETS / self.name

    def create(self) -> None:
        """Make the tree and mount FunctionFS; what is there already is kept. Nothing is bound yet."""
        if not ROOT.is_mount():
            _mount("none", ROOT, "configfs")
        if not GADGETS.is_dir():
            _load_gadget_support()
        if not GADGETS.is_dir():
            raise Refused(f"{GADGETS}: not there: the kernel lacks gadget support: 'modprobe libcomposite'")
        for directory in (self.path, self._strings, self._configuration, self._function):
            directory.mkdir(parents=True, exist_ok=True)
        for attribute, value in (
            ("idVendor", f"{self.vendor_id:#06x}"),
            ("idProduct", f"{self.product_id:#06x}"),
            ("bcdUSB", "0x0200"),
            ("bcdDevice", "0x0100"),
        ):
            _write(self.path / attribute, value)
        for name, value in (("serialnumber", self.serial), ("product", self.product), ("manufacturer", "replug")):
            _write(self._strings / name, value)
        link = self._configuration / self._function.name
        if not link.is_symlink():
            link.symlink_to(self._function)
        self.mount_point.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self.mount_point.is_mount():
            _mount(self._instance, self.mount_point, "functionfs")

    def bind(self) -> None:
        """Show the gadget to the host. Bound already is no error. Refused if the controller is another gadget's.

        The kernel has one errno for every failure, EBUSY: bound already, bound to another, not there, no descriptors
        written to ep0 yet. It is raised as it is if none of the first three is the reason.
        """
        if self.bound_udc() == self.udc:
            return
        try:
            _write(self.path / "UDC", self.udc)
        except OSError as error:
            if self.udc not in udc.controllers():
                why = f"choose from: {', '.join(udc.controllers()) or 'none here'}"
                raise Refused(f"{self.udc}: no such USB device controller: {why}") from None
            if holder := self._holder():
                cure = "unbind that one first, or name another controller with --udc"
                raise Refused(f"{self.udc}: busy: gadget {holder} uses it: {cure}", Exit.BUSY) from None
            raise OSError(error.errno, f"bind to {self.udc}: {error.strerror}") from None

    def unbind(self) -> None:
        """The host sees a disconnect. Nothing bound is no error."""
        try:
            _write(self.path / "UDC", "\n")
        except OSError as error:
            if error.errno not in (errno.ENODEV, errno.ENOENT):  # not bound; not even a tree
                raise

    def exists(self) -> bool:
        """Is any part of it there?"""
        return self.path.exists() or self.mount_point.is_mount()

    def bound_udc(self) -> str:
        """Name of the controller, or empty."""
        try:
            return (self.path / "UDC").read_text().strip()
        except OSError:
            return ""

    def remove(self) -> None:
        """Take all of it away, however much of it is there. Raises OSError if the kernel keeps a part."""
        if self.path.exists():
            self.unbind()
        deadline = time.monotonic() + _BUSY_S
        while self.mount_point.is_mount():
            if _libc.umount2(os.fsencode(self.mount_point), _MNT_DETACH):
                raise OSError(ctypes.get_errno(), f"umount {self.mount_point}: {os.strerror(ctypes.get_errno())}")
        with contextlib.suppress(FileNotFoundError):
            self.mount_point.rmdir()
        with contextlib.suppress(FileNotFoundError):
            (self._configuration / self._function.name).unlink()
        for directory in (self._configuration, self._function, self._strings, self.path):
            while True:
                try:
                    directory.rmdir()
                except FileNotFoundError:
                    break
                except OSError as error:
                    if error.errno != errno.EBUSY or time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)  # a dead owner's last transfer is being cancelled; nothing announces its end
                else:
                    break

    def _holder(self) -> str:
        """Whose our controller is: the directory of a configfs gadget, or what an old-style driver calls itself."""
        for attribute in GADGETS.glob("*/UDC"):
            with contextlib.suppress(OSError):
                if attribute.read_text().strip() == self.udc:
                    return attribute.parent.name
        return udc.function(self.udc)

    @property
    def _strings(self) -> Path:
        return self.path / "strings" / _ENGLISH

    @property
    def _configuration(self) -> Path:
        return self.path / "configs" / "c.1"

    @property
    def _instance(self) -> str:
        return self.name

    @property
    def _function(self) -> Path:
        return self.path / "functions" / f"ffs.{self._instance}"


def _write(path: Path, text: str) -> None:
    """One write(2), as configfs wants it; no truncation, no creation."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _load_gadget_support() -> None:
    """Have the kernel load usb_f_fs, and libcomposite with it.

    Asking for a file system makes the kernel look for its module, so that no role has to execute modprobe. The mount
    itself always fails: no FunctionFS instance has an empty name.
    """
    with contextlib.suppress(OSError, Refused):
        _mount("", ROOT, "functionfs")


def _mount(source: str, target: Path, kind: str) -> None:
    if _libc.mount(source.encode(), os.fsencode(target), kind.encode(), 0, None):
        number = ctypes.get_errno()
        why = f"mount -t {kind} {target}: {os.strerror(number)}"
        if number == errno.ENODEV:
            module = {"functionfs": "usb_f_fs"}.get(kind, kind)
            raise Refused(f"{why}: the kernel does not know it: 'modprobe {module}'")
        raise OSError(number, why)
