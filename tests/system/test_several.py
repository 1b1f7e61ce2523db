"""Three gadgets on one host (issue 4, item 4): one `host serve` from a file, each chosen in another way, none stolen.

Also what each gadget was asked to be: controller, ids, serial number, depth of its queues, largest I/O. Wants three
controllers, so it has a guest of its own in `make e2e`.
"""

import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bus.runtime import Runtime, Side, living
from common import limits
from gadget.usb import udc
from tools.cli.gadget import machine_serial
from tools.cli.status import look
from tools.demo.inside import DEADLINE_S, REPLUG, _see_nothing_left, replug, wait_for

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(400),
    pytest.mark.skipif(len(udc.controllers()) < 3, reason="wants three controllers: see `make system`"),
]
SIZE = 1 << 20
ASKED = {
    "one": ("--serial", "s0", "--vid", "0x1209", "--pid", "0x0100"),
    "two": ("--serial", "s1", "--pid", "0x0101", "--queue-depth", "8", "--max-io", "64K"),
    "three": ("--pid", "0x0102"),  # its serial number is this machine's
}
NAMES = tuple(ASKED)
MACHINE = str(machine_serial() or "replug")
MACHINE_ID = Path("/etc/machine-id")
LIMITS = ("nr_requests", "max_hw_sectors_kb")
SERIALS = dict(zip(NAMES, ("s0", "s1", MACHINE), strict=True))


@dataclass
class Farm:
    work: Path
    images: dict[str, bytes]

    def gadget(self, name: str) -> dict[str, Any]:
        return look(Runtime(Side.GADGET, name))

    def host(self, name: str) -> dict[str, Any]:
        return look(Runtime(Side.HOST, name))

    def live(self) -> bool:
        documents = [self.gadget(name) for name in NAMES]
        return all([e["state"] for e in document["exports"]] == ["live"] for document in documents)

    def device(self, name: str) -> Path:
        return Path(self.gadget(name)["exports"][0]["device"])


def place_of(serial: str) -> str:
    def found() -> str:
        files = Path("/sys/bus/usb/devices").glob("*/serial")
        return next((file.parent.name for file in files if file.read_text().strip() == serial), "")

    return str(wait_for(f"the gadget {serial} on the bus", found))


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    work = tmp_path_factory.mktemp("farm")
    farm = Farm(work, {name: os.urandom(SIZE) for name in (*NAMES, "thief")})
    for name, data in farm.images.items():
        (work / f"{name}.img").write_bytes(data)
    try:
        for name, controller in zip(NAMES, udc.controllers(), strict=True):
            up = replug("gadget", "up", "--instance", name, "--udc", controller, *ASKED[name])
            assert up.returncode == 0, up.stderr
        chosen = dict(zip(NAMES, ("s0", "id:1d6b:0101", f"port:{place_of(MACHINE)}"), strict=True))
        config = work / "farm.toml"
        config.write_text(
            "".join(f'[host.{n}]\nsource = "{work}/{n}.img"\ngadget = "{g}"\n' for n, g in chosen.items())
        )
        command = [*REPLUG, "host", "serve", "--background", "--config", str(config)]
        served = subprocess.run(command, capture_output=True, text=True, timeout=len(NAMES) * DEADLINE_S)
        assert served.returncode == 0, served.stderr
        wait_for("all three to be live", farm.live, 0.5)
        yield farm
        assert replug("host", "down", "--if-running", "--config", str(config)).returncode == 0  # one is down already
        for name in NAMES:
            assert replug("gadget", "down", "--instance", name).returncode == 0
        _see_nothing_left()
    finally:
        for name in NAMES:
            replug("host", "down", "--instance", name)
            replug("gadget", "down", "--force", "--instance", name)


@pytest.mark.parametrize("name", NAMES)
def test_each_gadget_has_the_bytes_that_are_meant_for_it(farm: Farm, name: str) -> None:
    assert farm.device(name).read_bytes() == farm.images[name]


def test_gadgets_show_the_ids_and_serials_they_were_given(farm: Farm) -> None:
    """Issue 4, item 4: VID, PID and serial number, on the controllers that were named."""
    seen = {name: Path("/sys/bus/usb/devices") / place_of(serial) for name, serial in SERIALS.items()}
    ids = [[(place / f"id{kind}").read_text().strip() for kind in ("Vendor", "Product")] for place in seen.values()]
    assert ids == [["1209", "0100"], ["1d6b", "0101"], ["1d6b", "0102"]]
    bound = [Path("/sys/kernel/config/usb_gadget", f"replug-{name}", "UDC").read_text().strip() for name in NAMES]
    assert bound == udc.controllers()


def test_a_gadget_without_a_serial_of_its_own_has_this_machines_which_does_not_tell_its_id(farm: Farm) -> None:
    """Issue 4, item 4: from machine-id, not to be shown (machine-id(5)); without one it is "replug"."""
    machine_id = MACHINE_ID.read_text().strip() if MACHINE_ID.exists() else ""
    expected = hashlib.sha256(f"replug gadget {machine_id}".encode()).hexdigest()[:16] if machine_id else "replug"
    assert (Path("/sys/bus/usb/devices") / place_of(MACHINE) / "serial").read_text().strip() == expected
    assert not machine_id or machine_id not in expected


def test_a_queue_has_the_depth_and_the_largest_io_that_were_asked_for(farm: Farm) -> None:
    """Issue 4, item 4: as the block layer has them. One tag stays idle, so that a death is noticed at once."""
    asked, default = (Path("/sys/block", farm.device(name).name, "queue") for name in ("two", "one"))
    read = {name: [int((place / name).read_text()) for place in (asked, default)] for name in LIMITS}
    assert read == {"nr_requests": [7, limits.QUEUE_DEPTH - 1], "max_hw_sectors_kb": [64, limits.MAX_IO_BYTES >> 10]}


def test_another_host_that_takes_any_gadget_gets_none_even_while_a_usb_is_replaced(farm: Farm) -> None:
    thief = replug("host", "serve", "--background", "--instance", "thief", str(farm.work / "thief.img"))
    assert thief.returncode == 0, thief.stderr
    devices = {name: farm.device(name) for name in NAMES}
    try:
        held = f"held by another replug: {', '.join(SERIALS.values())}"
        wait_for("the thief to see that all are held", lambda: farm.host("thief")["link"].get("reason") == held, 0.3)
        for _ in range(2):
            for name in NAMES:
                record = living(Runtime(Side.HOST, name), "usb")
                assert record is not None
                os.kill(record.pid, signal.SIGKILL)
            for name in NAMES:
                fd = os.open(devices[name], os.O_RDONLY)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                assert os.pread(fd, 65536, 65536) == farm.images[name][65536:131072]
                os.close(fd)
        assert farm.host("thief")["link"]["reason"] == held
        wait_for("all three to be live", farm.live, 0.5)
    finally:
        assert replug("host", "down", "--instance", "thief").returncode == 0


def test_status_of_one_is_json(farm: Farm) -> None:
    told = replug("status", "--json", "--side", "host", "--instance", "two")
    assert (json.loads(told.stdout)["instance"], told.returncode) == ("two", 0)


def test_the_end_of_one_side_is_nothing_to_the_others(farm: Farm) -> None:
    before = {name: living(Runtime(Side.HOST, name), "usb") for name in NAMES}
    assert replug("host", "down", "--instance", "two").returncode == 0
    for name in ("one", "three"):
        assert subprocess.run(["blockdev", "--flushbufs", str(farm.device(name))], timeout=30).returncode == 0
        assert farm.device(name).read_bytes() == farm.images[name]
        assert living(Runtime(Side.HOST, name), "usb") == before[name]
