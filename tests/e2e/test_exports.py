"""Many exports on the real kernel (issue 4, item 3): added and removed in use, their limits, another disk."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bus.runtime import Runtime, Side, living
from tools.demo import inside

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
MIB = 1 << 20
STARTED_S = 5.0  # one more export at once, on an emulated processor: a process on each side


class Sides:
    """Both sides, with the images in `work`; `serve` again replaces the host side."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.contents: dict[str, bytes] = {}
        done = inside.replug("gadget", "up")
        assert done.returncode == 0, done.stderr

    def image(self, name: str, size_bytes: int = MIB) -> str:
        self.contents[name] = os.urandom(size_bytes)
        path = self.work / f"{name}.img"
        path.write_bytes(self.contents[name])
        return str(path)

    def host(self, *arguments: str) -> str:
        done = inside.replug("host", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def exports(self) -> dict[str, dict[str, Any]]:
        return {export["name"]: export for export in inside.status(Side.GADGET)["exports"]}

    def live(self, *names: str) -> dict[str, dict[str, Any]]:
        def all_live() -> dict[str, dict[str, Any]] | None:
            exports = self.exports()
            ready = all(exports.get(name, {}).get("state") == "live" for name in names)
            return exports if ready and all(Path(exports[n]["device"]).exists() for n in names) else None

        limit_s = inside.DEADLINE_S + STARTED_S * len(names)
        return dict(inside.wait_for(f"{names} to be live", all_live, 0.5, limit_s))

    def device(self, name: str) -> str:
        return str(self.live(name)[name]["device"])

    def read(self, name: str) -> bytes:
        return content(self.device(name))

    def close(self) -> None:
        inside.replug("host", "down")
        down = inside.replug("gadget", "down", "--force")
        assert down.returncode in (0, 5), down.stderr


@pytest.fixture
def sides(tmp_path: Path) -> Iterator[Sides]:
    sides = Sides(tmp_path)
    yield sides
    sides.close()


def content(device: str) -> bytes:
    command = ["dd", f"if={device}", "bs=64K", "iflag=direct", "status=none"]
    return subprocess.run(command, capture_output=True, check=True, timeout=120).stdout


def limit(device: str, name: str) -> int:
    return int(Path("/sys/block", Path(device).name, "queue", name).read_text())


def kill(side: Side, role: str) -> None:
    record = living(Runtime(side), role)
    assert record is not None
    os.kill(record.pid, signal.SIGKILL)


def test_a_device_has_the_limits_of_its_source(sides: Sides) -> None:
    """Issue 4, items 1 and 3: discard where the source discards, and nowhere else; sizes where it knows them."""
    image = sides.image("disk")
    overlay = f"cow=overlay:{sides.work}/map?over={sides.image('base')}"
    sides.host("serve", "--background", "--block-size", "512", image, overlay, f"ro=file:{sides.image('ro')}?ro")
    exports = sides.live("disk", "cow", "ro")
    disk, cow, read_only = (exports[name]["device"] for name in ("disk", "cow", "ro"))
    assert limit(disk, "discard_max_bytes") > 0 and limit(disk, "write_zeroes_max_bytes") > 0
    assert limit(cow, "discard_max_bytes") > 0 and limit(cow, "write_zeroes_max_bytes") > 0
    assert limit(read_only, "discard_max_bytes") == limit(read_only, "write_zeroes_max_bytes") == 0
    assert [limit(cow, f"{kind}_block_size") for kind in ("logical", "physical")] == [512, 4096]
    assert exports["ro"]["read_only"] and not exports["cow"]["read_only"]


def test_an_export_is_added_and_removed_while_another_is_read(sides: Sides) -> None:
    sides.host("serve", "--background", sides.image("first"), sides.image("second"))
    first = sides.device("first")
    sides.live("second")
    generation = inside.pids()[Side.GADGET, "usb"], inside.pids()[Side.HOST, "usb"]
    # with rests: the disk's own processes go before the commands below, which else need minutes on one processor
    reads = f"while :; do cmp {first} {sides.work}/first.img || exit 9; sleep 0.5; done"
    load = subprocess.Popen(["sh", "-c", reads], start_new_session=True)
    try:
        sides.host("add", sides.image("third"))
        assert sides.read("third") == sides.contents["third"]
        second = sides.device("second")
        sides.host("remove", "second")
        inside.wait_for("the device to go", lambda: not Path(second).exists() and "second" not in sides.exports(), 0.3)
        kill(Side.HOST, "session")
        kill(Side.HOST, "watchdog")
        assert sides.read("third") == sides.contents["third"]
        assert load.poll() is None
    finally:
        os.killpg(load.pid, signal.SIGKILL)
        load.wait()
    roles = inside.pids()
    assert (roles[Side.GADGET, "usb"], roles[Side.HOST, "usb"]) == generation
    assert (Side.HOST, "source.second") not in roles and (Side.HOST, "source.third") in roles


def test_a_removed_export_in_use_is_parked_naming_its_user_and_goes_with_it(sides: Sides) -> None:
    sides.host("serve", "--background", sides.image("stays"), sides.image("goes"))
    device = sides.device("goes")
    with open(device, "rb"):
        sides.host("remove", "goes")
        parked = inside.wait_for(
            "the reason", lambda: (e := sides.exports()["goes"]) and "in use by" in e["reason"] and e, 0.3
        )
        assert parked["state"] == "parked" and str(os.getpid()) in parked["reason"]
        kill(Side.GADGET, "session")
        inside.wait_for("the session", lambda: "in use by" in sides.exports().get("goes", {}).get("reason", ""), 0.3)
        assert Path(device).exists()
    inside.wait_for("the device to go", lambda: not Path(device).exists() and "goes" not in sides.exports(), 0.3)
    assert sides.read("stays") == sides.contents["stays"]
    sides.host("add", str(sides.work / "goes.img"))
    assert sides.read("goes") == sides.contents["goes"]


def test_another_geometry_parks_and_another_file_is_another_device(sides: Sides) -> None:
    """Invariant 5: what was there stays what it was, and says why it waits."""
    sides.host("serve", "--background", sides.image("grown"), sides.image("swapped"))
    before = sides.live("grown", "swapped")
    sides.host("down")
    os.truncate(sides.work / "grown.img", 2 * MIB)
    (sides.work / "swapped.img").rename(sides.work / "kept.img")
    sides.host("serve", "--background", str(sides.work / "grown.img"), sides.image("swapped"))

    def settled() -> Any:
        exports = inside.status(Side.GADGET)["exports"]
        new = [e for e in exports if e["name"] == "swapped" and e["id"] != before["swapped"]["id"]]
        return exports if new and new[0]["state"] == "live" else None

    exports = {e["id"]: e for e in inside.wait_for("the new disk", settled, 0.5)}
    grown, old = exports[before["grown"]["id"]], exports[before["swapped"]["id"]]
    assert grown["state"] == "parked" and "to 2097152 bytes, and this kernel cannot resize" in grown["reason"]
    assert (grown["size_bytes"], old["state"]) == (MIB, "parked")
    assert old["device"] == before["swapped"]["device"] and "does not serve it" in old["reason"]
