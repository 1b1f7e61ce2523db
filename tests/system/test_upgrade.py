"""`replug upgrade` of the gadget side on a real kernel while two dds run (issue 4, item 4); the pause is printed.

The new installation is a copy of this tree elsewhere. tests/chaos/test_upgrade.py does the same over modelled kernels,
where the budget of a pause is judged: an emulated guest is too slow for that.
"""

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.runtime import Runtime, Side
from common.units import show_ms
from tests.e2e.v0_host import number
from tests.unit.test_supervise_succession import another_installation, runs_from, upgrade_command
from tools.demo import dd, inside
from tools.supervise.launch import all_living
from tools.supervise.twin import TWIN

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(500)]
DISK_BYTES, SCRATCH_BYTES = 16 << 20, 12 << 20


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[inside.Bench]:
    work = tmp_path_factory.mktemp("upgrade")
    (work / "disk.img").write_bytes(bytes(range(256)) * (DISK_BYTES // 256))
    (work / "scratch.img").write_bytes(bytes(SCRATCH_BYTES))
    with inside.both_sides(work / "disk.img", work / "scratch.img") as both:
        yield both


@pytest.fixture
def load(bench: inside.Bench, tmp_path: Path) -> Iterator[inside.Load]:
    load = inside.Load(bench, tmp_path)
    yield load
    load.stop()


def pids(side: Side) -> dict[str, int]:
    return {record.role: record.pid for record in all_living(Runtime(side))}


def with_twin(side: Side) -> dict[str, int]:
    """Also of the newest spawner."""
    found: dict[str, int] = inside.wait_for("a twin", lambda: here if TWIN in (here := pids(side)) else None)
    return found


def longest_gap(load: inside.Load, devices: list[str], command: "subprocess.Popen[str]") -> float:
    """Between two completions of a disk that has I/O in flight, in seconds, until the command has ended."""
    counts, longest = {device: dd.completions(device) for device in devices}, 0.0
    last = dict.fromkeys(devices, time.monotonic())
    while command.poll() is None:
        load.turn()
        for device in devices:
            now, count = time.monotonic(), dd.completions(device)
            longest = max(longest, now - last[device])
            if count != counts[device] or not dd.in_flight(device):  # between two dds nobody waits
                counts[device], last[device] = count, now
        time.sleep(0.003)
    return longest


@pytest.mark.parametrize("side", list(Side))
def test_a_side_is_upgraded_under_two_dds_and_the_device_keeps_its_address(
    side: Side, bench: inside.Bench, load: inside.Load, tmp_path: Path
) -> None:
    new, before, address = another_installation(tmp_path / "new"), with_twin(side), number()
    inside.wait_for("both dds to be in the middle", load.both_in_the_middle)
    command = subprocess.Popen(upgrade_command(new, "--side", side), stderr=subprocess.PIPE, text=True)
    longest_s = longest_gap(load, [bench.image_device, bench.scratch_device], command)
    said = command.communicate()[1]
    assert command.returncode == 0, said
    after = with_twin(side)
    assert after.keys() == before.keys() and set(after.values()).isdisjoint(before.values())
    assert {role: runs_from(pid) for role, pid in after.items()} == dict.fromkeys(after, new)
    assert number() == address
    load.finish()  # raises what was wrong with a byte or a dd
    assert load.verified_bytes >= DISK_BYTES + SCRATCH_BYTES
    last = said.splitlines()[-1]
    print(f"\n{side}: longest gap between two completions of a disk: {show_ms(longest_s)}; it said: {last}")
    if side is Side.GADGET:
        assert re.search(r"; I/O waited for .* at most, when .* was restarted$", last)
