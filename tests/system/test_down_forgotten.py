"""`gadget down` where nobody remembers the devices any more: they are found by their mark, and are gone afterwards."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.runtime import Runtime, Side
from common import limits
from tools.cli.devices import marked
from tools.demo import inside
from tools.supervise.launch import all_living, await_deaths, kill
from tools.supervise.memory import memory_path

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
GADGET = Runtime(Side.GADGET)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[inside.Bench]:
    (tmp_path / "disk.img").write_bytes(os.urandom(2 << 20))
    (tmp_path / "scratch.img").write_bytes(bytes(1 << 20))
    with inside.both_sides(tmp_path / "disk.img", tmp_path / "scratch.img") as both:  # sees that nothing is left
        yield both


@pytest.mark.parametrize("queues", ["killed too", "left alive"])
def test_devices_whose_side_lost_its_memory_go_with_down(bench: inside.Bench, queues: str) -> None:
    names = sorted([bench.image_device, bench.scratch_device])
    victims = [r for r in all_living(GADGET) if queues == "killed too" or not r.role.startswith("queue.")]
    kill(victims)
    assert await_deaths(victims, limits.DEATH_S)
    memory_path(GADGET).unlink()
    with open(bench.image_device, "rb"):
        held = inside.replug("gadget", "down")
    assert held.returncode == 3, "a holder is still found"
    assert bench.image_device in held.stderr and str(os.getpid()) in held.stderr
    done = inside.replug("gadget", "down")
    assert done.returncode == 0, done.stderr
    said = f"replug: gadget is down, and {', '.join(names)} that it had forgotten"
    assert done.stderr.splitlines()[-1] == said
    assert marked("default") == []
    assert not any(Path(name).exists() for name in names)
    assert inside.replug("gadget", "down").returncode == 5
