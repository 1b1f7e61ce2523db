"""A forked role holds what is its own and nothing of spawner, twin or sibling: a copied flock or ring would live on."""

import os
from pathlib import Path

import pytest

from bus.role import WATCHDOG
from bus.runtime import Runtime
from tests.unit.test_supervise_live import LiveSide, side, steady  # noqa: F401 (a fixture)
from tools.supervise.launch import SPAWNER, all_living


def files_of(pid: int) -> list[str]:
    """What its descriptors are, of those that have a path."""
    targets = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        target = os.readlink(entry)
        if target.startswith("/") and not target.startswith("/dev/null"):
            targets.append(target)
    return sorted(targets)


def sockets_of(pid: int) -> set[str]:
    targets = {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    return {target for target in targets if target.startswith(("socket:", "pipe:"))}


def own_files(runtime: Runtime, role: str) -> set[str]:
    own = {runtime.record_path(role), runtime.log_path(role), runtime.root / "log" / f"{role}.err"}
    return {str(path) for path in own} | ({str(runtime.root / "log" / "spawner.err")} if role == "twin" else set())


def test_a_role_holds_its_own_files_and_shares_no_socket_with_another(side: LiveSide) -> None:  # noqa: F811
    side.up(steady("usb"), steady("source.a"), steady("session"))
    side.until(lambda rows: rows.get("twin", {}).get("pid") is not None, "a twin")
    pids = {record.role: record.pid for record in all_living(side.runtime)}
    assert set(pids) == {WATCHDOG, SPAWNER, "twin", "usb", "source.a", "session"}
    for role, pid in pids.items():
        assert set(files_of(pid)) <= own_files(side.runtime, role), role
    for role, pid in pids.items():
        for other, its in pids.items():
            assert role == other or not sockets_of(pid) & sockets_of(its), f"{role} and {other}"


def test_a_role_forked_after_a_death_holds_no_more_than_its_predecessor(side: LiveSide) -> None:  # noqa: F811
    side.up(steady("usb"), steady("session"))
    held = {}
    for turn in range(4):
        before = side.rows()
        held[turn] = {role: len(os.listdir(f"/proc/{row['pid']}/fd")) for role, row in before.items()}
        os.kill(before["usb"]["pid"], 9)
        side.until_replaced(before, "usb")
    for role in (WATCHDOG, SPAWNER):
        assert held[3][role] <= held[1][role] + 1, f"descriptors of {role} grow with each respawn: {held}"


@pytest.mark.parametrize("role", ["usb", WATCHDOG])
def test_no_role_writes_a_core_dump(side: LiveSide, role: str) -> None:  # noqa: F811
    side.up(steady("usb"))
    text = Path(f"/proc/{side.rows()[role]['pid']}/limits").read_text()
    (core,) = [line for line in text.splitlines() if line.startswith("Max core file size")]
    assert core.split()[4:6] == ["0", "0"], "a dump would be written to the disk we may be serving"
