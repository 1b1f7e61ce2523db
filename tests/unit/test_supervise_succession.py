"""A side handed over to another installation (issue 4, item 4): tiny roles, real processes, whoever dies on the way.

The other installation is a copy of this tree with another version. Where a process runs from is what it was executed
with: /proc/PID/environ, which forks have from their spawner.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import tools
from bus import fds
from bus.control import ask
from bus.role import WATCHDOG
from bus.runtime import FORMAT, Runtime, living, recorded_roles
from common.errors import Exit
from tests.unit.test_supervise_live import ROLES, LiveSide, side, steady
from tools.supervise.launch import SPAWNER, all_living
from tools.supervise.memory import memory_path
from tools.supervise.plan import RoleSpec, plan_path, write_json
from tools.supervise.twin import TWIN

__all__ = ["side"]  # a fixture
ROOT = Path(tools.__file__).parent.parent
PRODUCT = ("common", "bus", "gadget", "host", "tools")


def another_installation(place: Path, version: str = "9.9.9", parts: Iterable[str] = (*PRODUCT, "tests")) -> Path:
    """A copy of this one elsewhere, with its byte code; it says another version."""
    for part in parts:
        shutil.copytree(ROOT / part, place / part)
    (place / "tools" / "version.py").write_text(f'VERSION = "{version}"\n')
    return place


def upgrade_command(installation: Path, *options: str) -> list[str]:
    """`replug upgrade` of that installation, whatever this process has in its path."""
    path = f"PYTHONPATH={installation}"
    return ["env", "-C", "/", path, sys.executable, "-P", "-m", "tools.cli", "upgrade", *options]


def runs_from(pid: int) -> Path:
    fields = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    [path] = [field.partition(b"=")[2] for field in fields if field.startswith(b"PYTHONPATH=")]
    return Path(path.decode().split(os.pathsep)[0])


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return another_installation(tmp_path_factory.mktemp("other"))


@pytest.fixture
def at(side: LiveSide, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveSide]:
    assert side.runtime.base is not None
    monkeypatch.setenv("REPLUG_RUNTIME", str(side.runtime.base))
    yield side


def upgrade(other: Path) -> "subprocess.CompletedProcess[str]":
    command = upgrade_command(other, "--side", "host", "--instance", "t")
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def pids(side: LiveSide) -> dict[str, int]:
    return {record.role: record.pid for record in all_living(side.runtime)}


def until_pids(side: LiveSide, *roles: str) -> dict[str, int]:
    deadline = time.monotonic() + 20
    while not {*roles, SPAWNER, TWIN, WATCHDOG} <= (found := pids(side)).keys():
        assert time.monotonic() < deadline, f"waited 20 s for {roles} and their supervision: {found}"
        time.sleep(0.01)
    return found


def assert_all_new(side: LiveSide, before: dict[str, int], other: Path) -> None:
    after = until_pids(side, *before)
    assert after.keys() == before.keys()
    assert set(after.values()).isdisjoint(before.values())
    assert {role: runs_from(pid) for role, pid in after.items()} == dict.fromkeys(after, other)


def keeper_and_session(side: LiveSide) -> dict[str, int]:
    side.up(RoleSpec("usb", f"{ROLES}.keeper"), steady("session"))
    return until_pids(side, "usb", "session")


def test_every_process_is_another_from_the_new_installation_and_finds_what_was_kept(at: LiveSide, other: Path) -> None:
    before = keeper_and_session(at)
    done = upgrade(other)
    assert done.returncode == Exit.DONE, done.stderr
    assert_all_new(at, before, other)
    assert ask(at.runtime, "usb", "status")["found"] == f"kept by {before['usb']}"
    told = done.stderr.splitlines()
    assert told[0].startswith(f"replug: spawner: pid {before[SPAWNER]} gave its place to ")
    assert told[0].endswith(f"which runs from {other}")
    assert [line.split(": ")[1] for line in told[1:-1]] == [WATCHDOG, "session", "usb"], "in this order"
    assert told[-1].startswith("replug: host is upgraded to 9.9.9 in ")


def test_said_again_it_does_all_of_it_again(at: LiveSide, other: Path) -> None:
    keeper_and_session(at)
    assert upgrade(other).returncode == Exit.DONE
    before = until_pids(at, "usb", "session")
    assert upgrade(other).returncode == Exit.DONE
    assert_all_new(at, before, other)


@pytest.mark.parametrize("lines", [0, 1, 2, 3])
def test_the_command_may_be_killed_anywhere_and_said_again(at: LiveSide, other: Path, lines: int) -> None:
    before = keeper_and_session(at)
    command = upgrade_command(other, "--side", "host", "--instance", "t")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as first:
        assert first.stderr is not None
        for _ in range(lines):
            assert first.stderr.readline()
        first.kill()
    done = upgrade(other)
    assert done.returncode == Exit.DONE, done.stderr
    assert_all_new(at, before, other)


@pytest.mark.parametrize("point", ["spawner.given", "spawner.twin.ended"])
def test_the_old_spawner_may_die_at_each_step_of_the_succession(at: LiveSide, other: Path, point: str) -> None:
    before = keeper_and_session(at)
    with connect(at.runtime) as sock:
        fds.send(sock, {"do": "arm", "role": SPAWNER, "trace": {"name": point, "act": "kill"}})
        assert fds.receive(sock)[0] == {"event": "armed"}
    done = upgrade(other)
    if done.returncode != Exit.DONE:  # its twin was the faster one
        assert "say it again" in done.stderr or "what ran goes on" in done.stderr
        done = upgrade(other)
    assert done.returncode == Exit.DONE, done.stderr
    assert_all_new(at, before, other)
    assert ask(at.runtime, "usb", "status")["found"] == f"kept by {before['usb']}"


def connect(runtime: Runtime) -> socket.socket:
    """To its spawner."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(20)
    sock.connect(os.fspath(runtime.spawner_socket()))
    return sock


def test_a_successor_that_dies_with_all_that_was_kept_is_replaced_and_no_role_notices(at: LiveSide) -> None:
    before = keeper_and_session(at)
    with connect(at.runtime) as sock:
        fds.send(sock, {"do": "succeed", "format": FORMAT})
        while fds.receive(sock)[0]["event"] != "yours":
            pass
    deadline = time.monotonic() + 30
    while living(at.runtime, TWIN) is None or pids(at).get(SPAWNER) in (None, before[SPAWNER]):
        assert time.monotonic() < deadline, f"waited 30 s for a spawner that the watchdog executes: {pids(at)}"
        time.sleep(0.02)
    for role in ("usb", "session", WATCHDOG):
        assert pids(at)[role] == before[role]


def test_a_successor_that_is_dead_when_it_is_given_the_place_does_not_get_it(at: LiveSide) -> None:
    before = keeper_and_session(at)
    os.kill(before[SPAWNER], signal.SIGSTOP)
    with connect(at.runtime) as sock:
        fds.send(sock, {"do": "succeed", "format": FORMAT})
    os.kill(before[SPAWNER], signal.SIGCONT)
    with connect(at.runtime) as sock:  # heard after it
        fds.send(sock, {"do": "watch"})
        while fds.receive(sock)[0]["event"] != "hello":
            pass
    assert until_pids(at, *before) == before


@pytest.mark.parametrize("order", ["succeed", "successor"])
def test_a_successor_of_another_format_is_refused_and_changes_nothing(at: LiveSide, order: str) -> None:
    before = keeper_and_session(at)
    with connect(at.runtime) as sock:
        fds.send(sock, {"do": order, "format": FORMAT + 1, "command": ["/bin/false"], "pythonpath": ""})
        answer, _ = fds.receive(sock)
    assert answer == {
        "event": "error",
        "why": f"its format is {FORMAT + 1}, ours {FORMAT}: they cannot work side by side",
    }
    assert until_pids(at, *before) == before


@pytest.mark.parametrize("what", ["plan", "memory", "record"])
def test_what_is_of_another_format_is_refused_before_anything_is_touched(at: LiveSide, other: Path, what: str) -> None:
    before = keeper_and_session(at)
    home = at.runtime
    path = {"plan": plan_path(home), "memory": memory_path(home), "record": home.record_path("usb")}[what]
    text = path.read_text()
    newer = text.replace('"format": 1', f'"format": {FORMAT + 1}')
    assert newer != text
    path.write_text(newer)
    done = upgrade(other)
    path.write_text(text)
    assert done.returncode == Exit.BAD_INPUT
    name = {"plan": "plan.json", "memory": "wanted.json", "record": "usb"}[what]
    told = f"replug: upgrade: {name} is of format {FORMAT + 1}, and replug 9.9.9 works beside 1 only: nothing was done"
    assert done.stderr.startswith(told)
    assert until_pids(at, *before) == before


def test_an_installation_that_cannot_be_imported_is_told_and_what_ran_goes_on(at: LiveSide, tmp_path: Path) -> None:
    before = keeper_and_session(at)
    broken = another_installation(tmp_path / "broken")
    (broken / "tests" / "unit" / "roles" / "steady.py").write_text("import nothing_of_that_name\n")
    done = upgrade(broken)
    assert done.returncode == Exit.FAULT
    assert "the new spawner ended: cannot import tests.unit.roles.steady: No module named" in done.stderr
    assert done.stderr.endswith(": what ran goes on\n")
    assert until_pids(at, *before) == before


def test_a_role_that_is_failed_stops_the_upgrade_of_no_other_and_is_told(at: LiveSide, other: Path) -> None:
    at.up(RoleSpec("session", f"{ROLES}.asking", {"wants": str(wants_never(at))}), steady("usb"))
    at.until(lambda rows: rows.get("source.a", {}).get("state") == "failed", "the source to be failed")
    before = {role: pid for role, pid in pids(at).items() if role != "source.a"}
    done = upgrade(other)
    assert done.returncode == Exit.FAULT
    assert "not all of host is new: source.a is failed" in done.stderr
    assert_all_new(at, before, other)


def wants_never(side: LiveSide) -> Path:
    path = side.runtime.root.parent / "wants"
    write_json(path, {"": ""})
    path.write_text(f'[{{"role": "source.a", "entry": "{ROLES}.never", "args": {{}}}}]')
    return path


def test_where_the_supervision_is_dead_the_cure_is_told(at: LiveSide, other: Path) -> None:
    keeper_and_session(at)
    assert "usb" in recorded_roles(at.runtime)
    keepers = [record for record in all_living(at.runtime) if record.role in (TWIN, SPAWNER, WATCHDOG)]
    assert len(keepers) == 3
    for number in (signal.SIGSTOP, signal.SIGKILL):  # else one of them may replace another in between
        for record in keepers:
            os.kill(record.pid, number)
    at.spawners[0].wait(5.0)
    done = upgrade(other)
    assert done.returncode == Exit.DOWN
    assert "the supervision of host is dead: start the side again with this installation" in done.stderr
