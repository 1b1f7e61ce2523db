"""What `replug kill ROLE` says of how long I/O waited, against what a user of the disks saw. The kernels are modelled.

A successor is held up for a known time at a known point: a role that I/O goes through costs at least that, and what is
told is no more than the longest wait of a user, nor than the command's own time. One that I/O does not go through is
dead for as long, and what is told has nothing of it.
"""

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.runtime import Runtime, Side, recorded_roles
from common.errors import Exit
from tests.chaos.events import kind_of
from tests.chaos.stages import arm_next
from tests.chaos.workload import BLOCK
from tests.native.__main__ import images
from tests.native.bench import Bench, await_, bench
from tests.native.disk import ModelDisk
from tests.native.wire import call
from tools.cli import main
from tools.cli.pause import await_io

HELD_MS = 1000  # far above all else that a recovery takes here
TOLD = re.compile(r"; I/O waited for ([\d.]+) (m?s) at most\n")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(images(tmp_path_factory.mktemp("files"))) as up:
        yield up


class User:
    """Writes one block and reads it back, one I/O after the other, so that the longest of them is a wait."""

    def __init__(self, device: Path) -> None:
        self.completed, self._longest_s, self._over = 0, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._use, args=(ModelDisk(device),), daemon=True)
        self._thread.start()

    def _use(self, disk: ModelDisk) -> None:
        block = memoryview(bytearray(BLOCK))
        while not self._over.is_set():
            began = time.monotonic()
            if self.completed % 2:
                assert disk.read(block, 0) == BLOCK
            else:
                assert disk.write(block, 0, False) == BLOCK
            self._longest_s = max(self._longest_s, time.monotonic() - began)
            self.completed += 1
        disk.close()

    def begin(self) -> None:
        self._longest_s = 0.0

    def longest_ms(self) -> float:
        """Once it goes on, which it does."""
        mark = self.completed
        await_(lambda: self.completed > mark + 1, "I/O to go on")
        return self._longest_s * 1000

    def end(self) -> None:
        self._over.set()
        self._thread.join(20.0)


@pytest.fixture
def users(here: Bench) -> Iterator[list[User]]:
    made = [User(device) for device in here.devices]
    yield made
    for user in made:
        user.end()


def killed(side: Side, role: str, users: list[User], capsys: pytest.CaptureFixture[str]) -> tuple[float, float]:
    """What the command tells, and what users saw meanwhile; both in milliseconds."""
    for user in users:
        user.begin()
    await_(lambda: slowest_ms(side) <= longest_ms(users), "what was before to be forgotten")
    capsys.readouterr()
    began = time.monotonic()
    assert main(["kill", role, "--side", side]) == Exit.DONE
    took_ms = (time.monotonic() - began) * 1000
    said = capsys.readouterr().err
    found = TOLD.search(said)
    assert found is not None, said
    told_ms = float(found[1]) * (1 if found[2] == "ms" else 1000)
    assert told_ms < 1.1 * max(took_ms, longest_ms(users)), f"the command took {took_ms:.0f} ms: {said}"
    return told_ms, longest_ms(users)


def longest_ms(users: list[User]) -> float:
    return max(user.longest_ms() for user in users)


def slowest_ms(side: Side) -> float:
    pause = await_io(Runtime(side), "watchdog", None, time.monotonic(), print)
    return pause.waited_ms or 0.0


# Where the successor is held up, in the order in which I/O can go on; a usb is ready, and then has no link yet.
THROUGH = [
    (Side.GADGET, "usb", "role.starting"),
    (Side.GADGET, "queue", "role.starting"),
    (Side.HOST, "usb", "role.starting"),
    (Side.HOST, "usb", "usb.epoch.begun"),
    (Side.HOST, "source", "role.starting"),
    (Side.HOST, "source", "source.requests.received"),
]


@pytest.mark.parametrize(("side", "kind", "point"), THROUGH, ids=lambda value: str(value))
def test_what_is_told_is_at_least_what_the_successor_cost_and_no_more_than_a_user_waited(
    users: list[User], side: Side, kind: str, point: str, capsys: pytest.CaptureFixture[str]
) -> None:
    role = next(name for name in recorded_roles(Runtime(side)) if kind_of(name) == kind)
    arm_next(Runtime(side), role, {"name": point, "act": "delay", "delay_ms": HELD_MS})
    told_ms, seen_ms = killed(side, role, users, capsys)
    # A queue takes I/O before it is ready: both are told in one sum, which the command's own time bounds.
    most_ms = float("inf") if kind == "queue" else 1.1 * seen_ms
    assert max(HELD_MS, seen_ms / 2) <= told_ms <= most_ms, f"told {told_ms:.0f} ms, users saw {seen_ms:.0f} ms"


@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize("kind", ["session", "watchdog"])
def test_the_death_of_one_that_no_io_goes_through_is_not_told_as_a_wait(
    users: list[User], side: Side, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arm_next(Runtime(side), kind, {"name": "role.starting", "act": "delay", "delay_ms": HELD_MS})
    told_ms, seen_ms = killed(side, kind, users, capsys)
    assert 0 < told_ms <= 1.1 * seen_ms, f"told {told_ms:.0f} ms, users saw {seen_ms:.0f} ms"


# Not a usb's: with a new link the gadget's session has the disks searched for partitions, which is I/O.
@pytest.mark.parametrize("kind", ["source", "session"])
def test_a_host_that_nobody_asks_says_that_nothing_waited(
    here: Bench, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await_(lambda: slowest_ms(Side.HOST) == 0, "what was before to be forgotten")
    role = next(name for name in recorded_roles(Runtime(Side.HOST)) if kind_of(name) == kind)
    assert main(["kill", role, "--side", "host"]) == Exit.DONE
    assert capsys.readouterr().err.endswith("; no I/O was under way\n")


def test_without_a_gadget_the_host_says_who_knows(here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    call("plug", False)
    try:
        assert main(["kill", "usb", "--side", "host"]) == Exit.DONE
        told = capsys.readouterr().err
        assert told.endswith("; no gadget is attached: how long I/O waits 'replug status' of the gadget tells\n"), told
    finally:
        call("plug", True)
    host = Runtime(Side.HOST)
    await_(lambda: await_io(host, "usb", None, time.monotonic(), print).waited_ms is not None, "the link to be back")
