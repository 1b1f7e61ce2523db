"""The first start of a device while no host answers: it starts, recovers and goes all the same (issue 3, item 6).

A START_DEV that read the disk would hang here, and with it every command for that device (test_ublk_wedges.py).
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.runtime import Runtime, Side, living
from common.wire import ExportRecord
from tests.chaos.machine import stuck_tasks
from tests.chaos.stages import arm_next, await_state
from tests.e2e.v0_host import V0Host, await_event
from tools.demo import inside

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(200)]
RECORD = ExportRecord(0x5EED, 4096, 8 << 20)
ROLE = "queue.00005eed"
DISK = Path("/sys/block/ublkb0")


@pytest.fixture
def gadget() -> Iterator[Runtime]:
    up = inside.replug("gadget", "up")
    assert up.returncode == 0, up.stderr
    yield Runtime(Side.GADGET)
    if Runtime(Side.GADGET).root.exists():
        inside.replug("gadget", "down", "--force")
    inside._see_nothing_left()


def running(gadget: Runtime, other_than: int = 0) -> int:
    """The pid of the queue, when it says that it is ready."""

    def ready() -> int | None:
        rows = {row["role"]: row for row in inside.status(Side.GADGET)["processes"]}
        row = rows.get(ROLE, {})
        return row["pid"] if row.get("state") == "running" and row["pid"] != other_than else None

    pid = await_event(f"{ROLE} to be ready", ready)
    assert pid is not None
    return pid


@pytest.mark.parametrize("link", ["up, and nobody answers", "down"])
def test_a_device_starts_and_recovers_and_goes_without_a_host_that_answers(gadget: Runtime, link: str) -> None:
    arm_next(gadget, ROLE, {"name": "queue.fetched", "act": "stop"})
    host = V0Host(RECORD)
    host.configure()
    before_start = await_event(f"{ROLE} before START_DEV", lambda: living(gadget, ROLE)).pid
    await_state(before_start, "T")
    assert not DISK.exists()
    if link == "down":
        (host.device.place / "authorized").write_text("0")
        await_event("the link to be down", lambda: inside.status(Side.GADGET)["link"]["state"] != "online")
    os.kill(before_start, signal.SIGCONT)
    assert running(gadget) == before_start
    assert DISK.exists()
    os.kill(before_start, signal.SIGKILL)
    running(gadget, other_than=before_start)
    down = inside.replug("gadget", "down")
    assert down.returncode == 0, down.stderr
    assert stuck_tasks() == []
    host.leave()
