"""A gadget that poses as fastboot (issue 4, item 4), and a real one, which the host leaves alone."""

import contextlib
import os
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.runtime import Runtime, Side, living
from common import limits
from gadget.usb import udc
from gadget.usb.configfs import GadgetTree
from tests.e2e.v0_host import await_event
from tools.demo import inside

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
SIZE = 1 << 20
FASTBOOT = ("ff", "42", "03")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A host that serves it, before any gadget is there."""
    image = tmp_path_factory.mktemp("identity") / "disk.img"
    image.write_bytes(os.urandom(SIZE))
    served = inside.replug("host", "serve", "--background", str(image))
    assert served.returncode == 0, served.stderr
    yield image
    assert inside.replug("host", "down").returncode == 0
    inside._see_nothing_left()


def interface() -> Path | None:
    """The interface that calls itself fastboot, as the host's kernel has it."""

    def triple(place: Path) -> tuple[str, ...]:
        return tuple((place / f"bInterface{name}").read_text().strip() for name in ("Class", "SubClass", "Protocol"))

    with contextlib.suppress(OSError):  # it may go while it is looked at
        return next((p for p in Path("/sys/bus/usb/devices").glob("*:*") if triple(p) == FASTBOOT), None)
    return None


class Phone:
    """Two bulk endpoints, as a boot loader has them, on FunctionFS; nobody answers there."""

    def __init__(self, mount_point: Path) -> None:
        controller = udc.choose(None)
        self.tree = GadgetTree("phone", controller, 0x18D1, 0xD00D, "phone", "phone", mount_point)
        self.tree.create()
        one = struct.pack("<BBBBBBBBB", 9, 4, 0, 0, 2, 0xFF, 0x42, 0x03, 0)
        one += b"".join(struct.pack("<BBBBHB", 7, 5, address, 2, 512, 0) for address in (0x81, 0x02))
        body = struct.pack("<I", 3) + one  # high speed only: FUNCTIONFS_HAS_HS_DESC
        self.ep0 = os.open(mount_point / "ep0", os.O_RDWR)
        os.write(self.ep0, struct.pack("<III", 3, 12 + len(body), 2) + body)
        os.write(self.ep0, struct.pack("<IIII", 2, 16, 0, 0))
        self.tree.bind()

    def close(self) -> None:
        self.tree.unbind()
        os.close(self.ep0)
        self.tree.remove()


def test_a_real_fastboot_is_not_opened(image: Path, tmp_path: Path) -> None:
    """Whoever flashes a phone on this machine must not find its interface taken."""
    phone = Phone(tmp_path / "phone")
    try:
        place = await_event("the phone's interface", interface)
        claims = []
        until = time.monotonic() + 3 * limits.SEARCH_S  # that nothing happens can only be waited for
        while time.monotonic() < until:
            claims.append((place / "driver").exists())
            time.sleep(0.05)
        link = inside.status(Side.HOST)["link"]
    finally:
        phone.close()
    assert not any(claims)
    assert link["state"] == "absent" and "fastboot" not in link.get("reason", "")


def test_a_gadget_that_poses_as_fastboot_is_found_served_and_healed(image: Path) -> None:
    """Issue 4, item 4: the same bytes under another name; kill -9 of the host's usb finds it anew."""
    up = inside.replug("gadget", "up", "--identity", "fastboot", "--vid", "0x18d1", "--pid", "0xd00d")
    assert up.returncode == 0, up.stderr
    try:
        device = inside.wait_for("the device to be live", live, interval_s=0.5)
        place = interface()
        assert place is not None and (place / "bNumEndpoints").read_text().strip() == "04"
        assert (place.parent / "idVendor").read_text().strip() == "18d1"
        assert content(device) == image.read_bytes()
        before = living(Runtime(Side.HOST), "usb")
        assert before is not None
        os.kill(before.pid, 9)
        assert content(device) == image.read_bytes()
        after = living(Runtime(Side.HOST), "usb")
        assert after is not None and after.pid != before.pid
    finally:
        down = inside.replug("gadget", "down", "--force")
    assert down.returncode == 0, down.stderr


def live() -> str:
    exports = [e for e in inside.status(Side.GADGET)["exports"] if e["state"] == "live"]
    return next((e["device"] for e in exports if Path(e["device"]).exists()), "")


def content(device: str) -> bytes:
    command = ["dd", f"if={device}", "bs=64K", "iflag=direct", "status=none"]
    return subprocess.run(command, capture_output=True, check=True, timeout=120).stdout
