"""Both sides under a real udevd, which names our disks, opens each as it comes, and probes it after every writer.

The main path, every role killed under load, and the cable, as tests/e2e has them without one (issue 3, item 8). Run by
`make system`.
"""

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.runtime import Side
from tests.chaos.machine import Machine
from tests.e2e.test_file_systems import with_partitions
from tests.e2e.test_recovery import whole_side
from tests.system import udevd as daemon
from tools.demo import dd, faults, image, inside

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300), daemon.needed]
udevd = daemon.udevd  # a fixture
DISK_BYTES, SCRATCH_BYTES = 16 << 20, 12 << 20
PARTS = {1: (1 << 20, 11 << 20), 2: (13 << 20, 2 << 20)}
BY_ID = Path("/dev/disk/by-id")
PROBE_FAILED = re.compile(r"dmesg: (?:Buffer )?I/O error(?: on)?,? dev ublkb\d+, .*")  # udev's, of the last test here
HELD_S = 1.0  # far longer than any probe
G, H = Side.GADGET, Side.HOST


@pytest.fixture(scope="module")
def bench(udevd: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[inside.Bench]:
    work = tmp_path_factory.mktemp("udev")
    with_partitions(work / "disk.img", DISK_BYTES, PARTS)
    (work / "scratch.img").write_bytes(bytes(SCRATCH_BYTES))
    machine = Machine()
    with inside.both_sides(work / "disk.img", work / "scratch.img") as both:
        yield both
    daemon.settle()
    assert names() == []
    assert [line for line in machine.complaints() if not PROBE_FAILED.fullmatch(line)] == []


@pytest.fixture(scope="module")
def load(bench: inside.Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[inside.Load]:
    load = inside.Load(bench, tmp_path_factory.mktemp("load"))
    yield load
    load.stop()


def names() -> list[str]:
    return sorted(path.name for path in BY_ID.glob("replug-*")) if BY_ID.exists() else []


def ours(bench: inside.Bench) -> dict[str, str]:
    """What the names should be, and of what."""
    disk, scratch = (Path(device).name for device in (bench.image_device, bench.scratch_device))
    return {
        "replug-disk": disk,
        "replug-disk-part1": f"{disk}p1",
        "replug-disk-part2": f"{disk}p2",
        "replug-scratch": scratch,
    }


def named(bench: inside.Bench) -> bool:
    return all((BY_ID / name).resolve() == Path("/dev") / target for name, target in ours(bench).items())


def test_each_disk_and_partition_has_its_name(bench: inside.Bench) -> None:
    inside.wait_for("all names", lambda: named(bench))
    assert len(names()) == 2 * len(ours(bench)), "by its export's id, too"


def test_a_partition_is_used_by_its_name_and_udev_probes_what_was_written(bench: inside.Bench, tmp_path: Path) -> None:
    part, place, content = BY_ID / "replug-disk-part1", tmp_path / "mnt", tmp_path / "tree"
    place.mkdir()
    content.mkdir()
    image.make_content(content, 2 << 20)
    run("mkfs.ext4", "-q", "-F", "-L", "replugged", str(part))
    daemon.settle()
    assert "ID_FS_LABEL=replugged" in run("udevadm", "info", "--query=property", str(part))
    run("mount", str(part), str(place))
    run("cp", "-r", str(content), str(place))
    run("umount", str(place))
    run("mount", str(part), str(place))
    assert image.tree_digest(content) == image.tree_digest(place / "tree")
    run("umount", str(place))


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@pytest.mark.parametrize(
    ("side", "role"),
    [
        *((G, role) for role in ("queue", "usb", "session", "watchdog", "spawner")),
        *((H, role) for role in ("source.disk", "usb", "session", "watchdog", "spawner")),
    ],
)
def test_a_killed_role_is_replaced_and_the_names_stay(
    bench: inside.Bench, load: inside.Load, side: Side, role: str
) -> None:
    inside.strike(load, faults.kill(side, bench.image_role if role == "queue" else role))
    daemon.settle()
    assert named(bench)


@pytest.mark.parametrize("cut", ["UDC unbound", "authorized 0"])
def test_a_pulled_cable_is_waited_out_and_the_names_stay(bench: inside.Bench, load: inside.Load, cut: str) -> None:
    [fault] = [fault for fault in inside.all_faults(bench) if cut in fault.title]
    inside.strike(load, fault)
    daemon.settle()
    assert named(bench)


def test_the_whole_gadget_side_is_killed_and_the_names_stay(bench: inside.Bench, load: inside.Load) -> None:
    inside.strike(load, whole_side(G, ["gadget", "up"]))
    daemon.settle()
    assert named(bench)


def test_a_queue_whose_device_udev_holds_for_a_moment_is_recovered_after_it(
    bench: inside.Bench, load: inside.Load
) -> None:
    """START_USER_RECOVERY is told EBUSY as long as anybody has the character device, which opens once, open."""
    with_it, told = os.pipe()
    device = bench.image_device.replace("ublkb", "ublkc")
    holder = os.fork()
    if holder == 0:
        try:
            hold_for_a_moment(device, told)
        finally:
            os._exit(1)
    started = time.monotonic()
    try:
        inside.strike(load, faults.kill(G, bench.image_role))
        assert select.select([with_it], [], [], 0)[0], "it never had the device"
        assert time.monotonic() - started > HELD_S
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        os.close(with_it)
        os.close(told)


def hold_for_a_moment(device: str, told: int) -> None:
    """As udev's worker does, and longer: open it as soon as its owner is dead."""
    while True:
        try:
            fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        os.write(told, b"h")
        time.sleep(HELD_S)  # what is tested: that it is held
        os.close(fd)
        select.select([], [], [])


def test_every_byte_was_right_through_all_of_it(load: inside.Load) -> None:
    load.finish()
    assert load.verified_bytes > SCRATCH_BYTES


def test_down_does_not_take_udevs_probe_for_a_user(bench: inside.Bench) -> None:
    """The host is away, so udev's worker waits in the kernel with the disk open. Nobody could make it let go."""
    bench.serve.send_signal(signal.SIGINT)
    assert bench.serve.wait(60) == 0
    run("udevadm", "trigger", "--action=change", bench.scratch_device)
    inside.wait_for("udev's worker to wait for the disk", lambda: dd.in_flight(bench.scratch_device) > 0)
    down = inside.replug("gadget", "down")
    assert down.returncode == 0, down.stderr
