"""What a machine must have before a gadget side can come up, looked at before anything is made.

What this machine lacks is exit status 4, as in the doctor, whose cures say more; what was asked wrongly is 2.
"""

import contextlib
import os
import subprocess
from pathlib import Path

from bus.runtime import Runtime
from common.errors import Exit, Refused
from gadget.usb import mounted, udc
from tools.supervise.launch import all_living

_GADGETS = Path("/sys/kernel/config/usb_gadget")
_UBLK_CONTROL = Path("/dev/ublk-control")


def need_root() -> None:
    if os.geteuid() != 0:
        raise Refused("gadget up: only root may make USB gadgets and block devices: run it with sudo")


def load_modules() -> None:
    """Best effort: they may be built in, or loaded, or there is no modprobe; the checks after this one decide."""
    for name in ("ublk_drv", "libcomposite"):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                ["/sbin/modprobe", "-q", name],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=30,
                check=False,
            )


def need_ublk() -> None:
    if not _UBLK_CONTROL.exists():
        cure = "load it with 'modprobe ublk_drv' (Linux 6.0 or newer)"
        raise Refused(f"{_UBLK_CONTROL}: not there: this kernel has no ublk driver loaded: {cure}", Exit.LACKING)


def need_udc(wanted: str | None, own_gadget: str) -> str:
    """The controller to use: there, and not another gadget's."""
    name = udc.choose(wanted)
    for file in _GADGETS.glob("*/UDC"):
        with contextlib.suppress(OSError):
            if file.parent.name != own_gadget and file.read_text().strip() == name:
                raise Refused(f"{name}: in use by the gadget {file.parent.name}: choose another with --udc, or end it")
    return name


def need_ffs(directory: Path, runtime: Runtime) -> None:
    """A FunctionFS, and used by nobody but what lives of this side."""
    mounted.need(directory)
    if who := mounted.holders(directory, {record.pid for record in all_living(runtime)}):
        raise Refused(mounted.busy(directory, who), Exit.BUSY)
