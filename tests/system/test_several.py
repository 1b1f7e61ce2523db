"""Three gadgets on one host: one `host serve` from a file, each chosen in another way, and another host that gets none.

Wants three controllers: run by `make system`.
"""

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
from gadget.usb import udc
from tools.cli.status import look
from tools.demo.inside import _see_nothing_left, replug, wait_for

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(400),
    pytest.mark.skipif(len(udc.controllers()) < 3, reason="wants three controllers: `make system`"),
]
NAMES = ("one", "two", "three")
SIZE = 1 << 20


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
        for number, (name, controller) in enumerate(zip(NAMES, udc.controllers(), strict=True)):
            ids = ["--udc", controller, "--serial", f"s{number}", "--pid", f"0x010{number}"]
            up = replug("gadget", "up", "--instance", name, *ids)
            assert up.returncode == 0, up.stderr
        chosen = dict(zip(NAMES, ("s0", "id:1d6b:0101", f"port:{place_of('s2')}"), strict=True))
        config = work / "farm.toml"
        config.write_text(
            "".join(f'[host.{n}]\nsource = "{work}/{n}.img"\ngadget = "{g}"\n' for n, g in chosen.items())
        )
        served = replug("host", "serve", "--background", "--config", str(config))
        assert served.returncode == 0, served.stderr
        wait_for("all three to be live", farm.live, 0.5)
        yield farm
        assert replug("host", "down", "--config", str(config)).returncode == 0
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
    for number in range(3):
        device = Path("/sys/bus/usb/devices") / place_of(f"s{number}")
        assert (device / "idProduct").read_text().strip() == f"010{number}"


def test_another_host_that_takes_any_gadget_gets_none_even_while_a_usb_is_replaced(farm: Farm) -> None:
    thief = replug("host", "serve", "--background", "--instance", "thief", str(farm.work / "thief.img"))
    assert thief.returncode == 0, thief.stderr
    try:
        held = "held by another replug: s0, s1, s2"
        wait_for("the thief to see that all are held", lambda: farm.host("thief")["link"].get("reason") == held, 0.3)
        for _ in range(3):
            for name in NAMES:
                record = living(Runtime(Side.HOST, name), "usb")
                assert record is not None
                os.kill(record.pid, signal.SIGKILL)
            for name in NAMES:
                fd = os.open(farm.device(name), os.O_RDONLY)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                assert os.pread(fd, 65536, 65536) == farm.images[name][65536:131072]
                os.close(fd)
        assert farm.host("thief")["link"]["reason"] == held
        wait_for("all three to be live", farm.live, 0.5)
    finally:
        assert replug("host", "down", "--instance", "thief").returncode == 0


def test_the_end_of_one_side_is_nothing_to_the_others(farm: Farm) -> None:
    before = {name: living(Runtime(Side.HOST, name), "usb") for name in NAMES}
    source = farm.work / "two.img"
    assert replug("host", "down", "--instance", "two").returncode == 0
    for name in ("one", "three"):
        assert subprocess.run(["blockdev", "--flushbufs", str(farm.device(name))], timeout=30).returncode == 0
        assert farm.device(name).read_bytes() == farm.images[name]
        assert living(Runtime(Side.HOST, name), "usb") == before[name]
    back = ["host", "serve", "--background", "--instance", "two", "--gadget", "id:1d6b:0101", str(source)]
    assert replug(*back).returncode == 0
    wait_for("all three to be live", farm.live, 0.5)


def test_status_of_each_is_json(farm: Farm) -> None:
    for name in NAMES:
        told = replug("status", "--json", "--side", "host", "--instance", name)
        assert json.loads(told.stdout)["instance"] == name
