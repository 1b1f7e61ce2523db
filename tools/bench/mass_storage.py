"""System `mass_storage`: the kernel's own USB disk, f_mass_storage over the same controller, read by usb-storage.

A disk the other way round (the gadget has the bytes), but all of it kernel code over the same cable.
"""

import contextlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from common.errors import Exit, Refused
from gadget.usb import udc
from gadget.usb.configfs import ROOT
from tools.bench import usage
from tools.bench.system import Ready, await_, disk_file

_NAME = "replug-bench-storage"


@contextmanager
def mass_storage(place: Path) -> Iterator[Ready]:
    """See the module."""
    gadget = ROOT / "usb_gadget" / _NAME
    if not gadget.parent.is_dir():
        raise Refused("mass_storage: no configfs gadgets here: 'modprobe libcomposite'", Exit.LACKING)
    with ExitStack() as stack:
        try:
            _make(stack, gadget, disk_file(place, "storage.img"))
        except FileNotFoundError:
            cure = "'modprobe usb_f_mass_storage usb_storage sd_mod'"
            raise Refused(f"mass_storage: the kernel does not have it: {cure}", Exit.LACKING) from None
        with contextlib.suppress(OSError):  # a second of waiting for disks that are not ready
            Path("/sys/module/usb_storage/parameters/delay_use").write_text("0")
        before = _disks()
        _put(gadget / "UDC", udc.choose(None))
        stack.callback(_put, gadget / "UDC", "\n")
        name = await_("the disk of f_mass_storage", lambda: min(_disks() - before, default=None))
        device = Path("/dev") / name
        await_(f"{device}", lambda: device.exists() and int(Path(f"/sys/block/{name}/size").read_text()))
        yield Ready(device, lambda: usage.kernel_threads("file-storage", "usb-storage"))


def _make(stack: ExitStack, gadget: Path, file: Path) -> None:
    function, configuration = gadget / "functions" / "mass_storage.bench", gadget / "configs" / "c.1"
    for directory in (gadget, function, configuration):
        directory.mkdir()
        stack.callback(directory.rmdir)
    _put(gadget / "idVendor", "0x1d6b")
    _put(gadget / "idProduct", "0x0105")
    _put(function / "lun.0" / "file", os.fspath(file))
    stack.callback(_put, function / "lun.0" / "file", "\n")
    link = configuration / function.name
    link.symlink_to(function)
    stack.callback(link.unlink)


def _put(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _disks() -> set[str]:
    return {path.name for path in Path("/sys/block").glob("sd*")}
