"""Two commands bring up one side at the same time: one does, the others say so and change nothing."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import tools
from bus.role import WATCHDOG
from bus.runtime import Runtime, Side
from common.errors import Exit, Refused
from tools.cli.claim import bringing_up, claim_path, clear_stale
from tools.cli.side import take_down
from tools.supervise.launch import SPAWNER, all_living

ROOT = Path(tools.__file__).parent.parent
# `host serve` whose `usb` is ready when the file that is its first argument exists.
SERVE = """
import sys
import tools.cli.host as host
from bus.runtime import Side
from tools.cli import main
from tools.supervise.plan import Plan, RoleSpec

gate = sys.argv.pop(1)
roles = (RoleSpec("usb", "tests.unit.roles.early", {"until": gate}), RoleSpec("session", "tests.unit.roles.steady"))
host.host_plan = lambda instance, sources, session_args: Plan(Side.HOST, instance, roles)
sys.exit(main(["host", "serve", *sys.argv[1:]]))
"""


class Serves:
    """`host serve` processes of one side."""

    def __init__(self, base: Path) -> None:
        self.runtime = Runtime(Side.HOST, base=base)
        self.gate = base.parent / "gate"
        self._image = base.parent / "disk.img"
        self._image.write_bytes(bytes(4096))
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *options: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(self.gate), str(self._image), *options],
            env={**os.environ, "PYTHONPATH": str(ROOT), "REPLUG_RUNTIME": str(self.runtime.base)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process


@pytest.fixture
def serves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serves]:
    serves = Serves(tmp_path_factory.mktemp("c") / "r")
    yield serves
    for process in serves.started:
        process.kill()
        process.communicate()
    if serves.runtime.root.exists():
        take_down(serves.runtime)
    assert not all_living(serves.runtime)


def until_roles(runtime: Runtime, *roles: str) -> set[tuple[str, int]]:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        living = {(record.role, record.pid) for record in all_living(runtime)}
        if set(roles) <= {role for role, _ in living}:
            return living
        time.sleep(0.01)
    raise AssertionError(f"waited 20 s for {roles}: {all_living(runtime)}")


def test_a_serve_beside_one_that_is_still_coming_up_is_told_so_and_harms_nothing(serves: Serves) -> None:
    first = serves.start()
    before = until_roles(serves.runtime, SPAWNER, WATCHDOG, "session")
    second = serves.start()
    said = second.communicate(timeout=20)[1]
    assert second.returncode == Exit.BUSY
    assert said.startswith("replug: host serve: host is being brought up already as instance 'default': ")
    assert f"pid {first.pid}: wait for it" in said
    serves.gate.touch()
    assert first.stderr is not None
    assert first.stderr.readline().startswith("replug: serving disk: ")
    after = {(record.role, record.pid) for record in all_living(serves.runtime)}
    assert {row for row in before if row[0] != "usb"} <= after, "nothing of the first was ended"


def test_of_four_serves_at_once_one_serves_and_three_say_busy(serves: Serves) -> None:
    serves.gate.touch()
    for _ in range(4):
        serves.start()
    deadline = time.monotonic() + 40
    while sum(process.poll() is not None for process in serves.started) < 3:
        assert time.monotonic() < deadline, [process.poll() for process in serves.started]
        time.sleep(0.01)
    refused = [process for process in serves.started if process.poll() is not None]
    assert [process.returncode for process in refused] == [Exit.BUSY] * 3
    (winner,) = [process for process in serves.started if process.poll() is None]
    assert winner.stderr is not None
    assert winner.stderr.readline().startswith("replug: serving disk: ")
    roles = [record.role for record in all_living(serves.runtime)]
    assert roles.count(WATCHDOG) == roles.count(SPAWNER) == 1
    winner.send_signal(signal.SIGINT)
    winner.communicate(timeout=20)
    assert winner.returncode == Exit.DONE
    assert not serves.runtime.root.parent.exists(), "nothing is left behind"


def killed_while_bringing_up(base: Path) -> Runtime:
    runtime = Runtime(Side.HOST, base=base)
    code = f"""
import os, signal
from pathlib import Path
from bus.runtime import Runtime, Side
from tools.cli.claim import bringing_up
with bringing_up(Runtime(Side.HOST, base=Path({str(base)!r})), "x"):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=20, check=False)
    assert claim_path(runtime).exists()
    return runtime


def test_a_claim_left_by_a_killed_command_holds_nobody_up(tmp_path: Path) -> None:
    runtime = killed_while_bringing_up(tmp_path / "r")
    with (
        bringing_up(runtime, "host serve"),
        pytest.raises(Refused, match="is being brought up already") as refused,
        bringing_up(runtime, "host serve"),
    ):
        pass
    assert refused.value.status is Exit.BUSY
    assert not (tmp_path / "r").exists()


def test_instances_and_sides_are_claimed_apart(tmp_path: Path) -> None:
    with (
        bringing_up(Runtime(Side.HOST, base=tmp_path), "a"),
        bringing_up(Runtime(Side.GADGET, base=tmp_path), "b"),
        bringing_up(Runtime(Side.HOST, "other", tmp_path), "c"),
    ):
        assert len(list(tmp_path.iterdir())) == 3


def test_down_takes_away_the_claim_of_a_killed_command_and_not_of_a_living_one(tmp_path: Path) -> None:
    """Found where `gadget up` was killed at its time limit: the file stayed for ever."""
    runtime = killed_while_bringing_up(tmp_path / "r")
    clear_stale(runtime)
    assert not (tmp_path / "r").exists()
    with bringing_up(runtime, "host serve"):
        clear_stale(runtime)
        assert claim_path(runtime).exists()
