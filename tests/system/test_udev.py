"""Our udev rules in a real udevd, on a real device node of a gadget: who may open it. Run by `make system`."""

import grp
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gadget.usb import udc
from tests.system import udevd as daemon
from tools.demo.inside import replug, wait_for

SYSFS = Path("/sys/bus/usb/devices")
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(200), daemon.needed]
udevd = daemon.udevd  # a fixture


@pytest.fixture(scope="module")
def node(udevd: None) -> Iterator[Path]:
    up = replug("gadget", "up", "--udc", udc.controllers()[0], "--serial", "udev1")
    assert up.returncode == 0, up.stderr

    def found() -> Path | None:
        serials = [file for file in SYSFS.glob("*/serial") if file.read_text().strip() == "udev1"]
        return serials[0].parent if serials else None

    device: Path = wait_for("the gadget on the bus", found)
    bus, address = (int((device / name).read_text()) for name in ("busnum", "devnum"))
    place = Path(f"/dev/bus/usb/{bus:03}/{address:03}")
    wait_for("udev to have seen it", lambda: daemon.knows(place))
    yield place
    assert replug("gadget", "down").returncode == 0


def test_the_group_plugdev_may_open_a_gadget_and_others_may_not(node: Path) -> None:
    status = node.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o660, grp.getgrnam("plugdev").gr_gid)


def test_whoever_sits_at_the_machine_is_given_access(node: Path) -> None:
    told = subprocess.run(["udevadm", "info", node], capture_output=True, text=True, timeout=30, check=True).stdout
    assert "E: ID_REPLUG=1" in told
    assert any(line.startswith("E: TAGS=") and ":uaccess:" in line for line in told.splitlines()), told


def test_another_usb_device_is_not_given_away(node: Path) -> None:
    for device in SYSFS.glob("usb*"):
        hub = Path(f"/dev/bus/usb/{int((device / 'busnum').read_text()):03}/{int((device / 'devnum').read_text()):03}")
        assert os.stat(hub).st_gid != grp.getgrnam("plugdev").gr_gid


def test_a_user_of_the_group_may_open_the_gadget(node: Path) -> None:
    group = grp.getgrnam("plugdev").gr_gid
    for extra, status in (([group], 0), ([], 1)):
        opened = subprocess.run(
            ["test", "-r", node, "-a", "-w", node], user=65534, group=65534, extra_groups=extra, timeout=20
        )
        assert opened.returncode == status
