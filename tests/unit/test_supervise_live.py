"""A real side of tiny roles in real processes: started, killed in every part, taken down; nothing is ever left."""

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from bus.control import ask
from bus.role import WATCHDOG
from bus.runtime import Runtime, Side, living, start_ticks
from common import limits
from common.errors import Exit, Gone, Refused, ReplugError
from tools.cli.side import bring_up, take_down
from tools.supervise.launch import SPAWNER, all_living, await_deaths, kill, supervised
from tools.supervise.memory import failures_path, memory_path
from tools.supervise.plan import Plan, RoleSpec, SupervisionLimits

ROLES = "tests.unit.roles"
Row = dict[str, Any]


class LiveSide:
    """A side under test, and how to wait for what it does."""

    def __init__(self, base: Path) -> None:
        self.runtime = Runtime(Side.HOST, "t", base)
        self.spawners: list[Popen[bytes]] = []

    def up(self, *roles: RoleSpec, **bounds: float) -> None:
        plan = Plan(Side.HOST, "t", roles, SupervisionLimits(**bounds))
        self.spawners.append(bring_up(plan, self.runtime))

    def rows(self) -> dict[str, Row]:
        try:
            return {row["role"]: row for row in ask(self.runtime, WATCHDOG, "status", timeout_s=1.0)["processes"]}
        except ReplugError:
            return {}

    def until(self, condition: Callable[[dict[str, Row]], object], what: str, limit_s: float = 20.0) -> dict[str, Row]:
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            rows = self.rows()
            if rows and condition(rows):
                return rows
            time.sleep(0.01)
        logs = {p.name: p.read_text()[-2000:] for p in (self.runtime.root / "log").glob("*") if p.stat().st_size}
        raise AssertionError(f"waited {limit_s} s for {what}; roles: {self.rows()}; logs: {json.dumps(logs, indent=1)}")

    def until_replaced(self, before: dict[str, Row], role: str) -> dict[str, Row]:
        def replaced(rows: dict[str, Row]) -> bool:
            row = rows.get(role, {})
            return bool(row and row["generation"] > before[role]["generation"] and row["state"] == "running")

        return self.until(replaced, f"a successor of {role}")


@pytest.fixture
def side(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSide]:
    live = LiveSide(tmp_path_factory.mktemp("s"))
    yield live
    with contextlib.suppress(Refused):  # some tests leave what cannot be retired
        if live.runtime.root.exists():
            take_down(live.runtime)
    for spawner in live.spawners:
        spawner.wait(5.0)
    assert not all_living(live.runtime)


def steady(role: str, **args: Any) -> RoleSpec:
    return RoleSpec(role, f"{ROLES}.steady", args)


def pids(rows: dict[str, Row], *but: str) -> dict[str, int]:
    return {role: row["pid"] for role, row in rows.items() if role not in but}


def test_every_killed_role_is_respawned_and_no_other_is_touched(side: LiveSide) -> None:
    side.up(steady("usb"), steady("source.a"), steady("session"))
    for role in ("usb", "source.a", "session"):
        before = side.rows()
        os.kill(before[role]["pid"], signal.SIGKILL)
        after = side.until_replaced(before, role)
        assert pids(after, role) == pids(before, role)
        assert after[role]["last_exit"] == "killed by signal 9"
        assert after[role]["restarts"] == before[role]["restarts"] + 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may go before others")
def test_the_watchdog_goes_before_all_for_good_and_a_successor_until_it_is_ready(side: LiveSide) -> None:
    def niceness(rows: dict[str, Row]) -> dict[str, int]:
        return {role: os.getpriority(os.PRIO_PROCESS, row["pid"]) for role, row in rows.items() if role != "twin"}

    side.up(steady("usb"))
    before = side.rows()
    usual = {SPAWNER: limits.NICE, WATCHDOG: limits.NEWBORN_NICE, "usb": limits.NICE}
    assert niceness(before) == usual
    os.kill(before["usb"]["pid"], signal.SIGKILL)
    after = side.until_replaced(before, "usb")
    assert niceness(after) == usual


def test_a_killed_watchdog_is_replaced_and_its_successor_restarts_nothing(side: LiveSide) -> None:
    side.up(steady("usb"), steady("session"))
    os.kill(side.rows()["usb"]["pid"], signal.SIGKILL)
    before = side.until(lambda rows: rows["usb"]["restarts"] == 1 and rows["usb"]["state"] == "running", "usb again")
    os.kill(before[WATCHDOG]["pid"], signal.SIGKILL)
    after = side.until_replaced(before, WATCHDOG)
    after = side.until(lambda rows: rows["usb"]["state"] == rows["session"]["state"] == "running", "adoption")
    assert pids(after, WATCHDOG) == pids(before, WATCHDOG)
    assert after["usb"]["restarts"] == 1, "what status tells of the past outlives the watchdog"
    os.kill(after["usb"]["pid"], signal.SIGKILL)
    assert side.until_replaced(after, "usb")["usb"]["last_exit"] == "killed by signal 9"


def test_a_killed_spawner_is_replaced_by_its_twin_which_goes_on_healing(side: LiveSide) -> None:
    side.up(steady("usb"), steady("session"))
    for _ in range(3):  # each twin has a twin
        before = side.until(lambda rows: rows.get("twin", {}).get("pid") is not None, "a twin")
        os.kill(before[SPAWNER]["pid"], signal.SIGKILL)
        after = side.until_replaced(before, SPAWNER)
        assert after[SPAWNER]["pid"] == before["twin"]["pid"]
        assert pids(after, SPAWNER, "twin") == pids(before, SPAWNER, "twin")
        os.kill(after["usb"]["pid"], signal.SIGKILL)
        side.until_replaced(after, "usb")


def test_a_killed_twin_is_renewed(side: LiveSide) -> None:
    side.up(steady("usb"))
    before = side.rows()
    os.kill(before["twin"]["pid"], signal.SIGKILL)
    after = side.until(lambda rows: rows["twin"]["pid"] not in (None, before["twin"]["pid"]), "another twin")
    assert pids(after, "twin") == pids(before, "twin")


def test_spawner_and_watchdog_killed_at_once_are_both_replaced(side: LiveSide) -> None:
    side.up(steady("usb"), steady("session"))
    before = side.rows()
    for role in (SPAWNER, WATCHDOG):
        os.kill(before[role]["pid"], signal.SIGKILL)
    side.until_replaced(before, SPAWNER)
    after = side.until_replaced(before, WATCHDOG)
    assert pids(after, SPAWNER, WATCHDOG, "twin") == pids(before, SPAWNER, WATCHDOG, "twin")


def test_spawner_and_twin_killed_at_once_are_replaced_by_a_fresh_one(side: LiveSide) -> None:
    side.up(steady("usb"))
    before = side.rows()
    for role in ("twin", SPAWNER):
        os.kill(before[role]["pid"], signal.SIGKILL)
    after = side.until_replaced(before, SPAWNER)
    assert after["usb"]["pid"] == before["usb"]["pid"]
    os.kill(after["usb"]["pid"], signal.SIGKILL)
    side.until_replaced(after, "usb")


def test_a_stopped_role_is_replaced_after_silence_and_is_dead_before(side: LiveSide) -> None:
    side.up(steady("usb"), silence_s=0.3)
    before = side.rows()
    os.kill(before["usb"]["pid"], signal.SIGSTOP)
    after = side.until_replaced(before, "usb")
    assert after["usb"]["last_exit"].startswith("killed by signal 9 (silent for 0.6 s")
    with pytest.raises(ProcessLookupError):
        os.kill(before["usb"]["pid"], 0)


@pytest.mark.timeout(90)
@pytest.mark.parametrize("first", [SPAWNER, WATCHDOG])
def test_a_side_that_was_frozen_for_long_kills_nobody_when_it_goes_on(side: LiveSide, first: str) -> None:
    """A paused virtual machine, a frozen cgroup: who was frozen himself has not waited for the other's word."""
    side.up(steady("usb"))
    before = side.until(lambda rows: rows["usb"]["state"] == "running", "usb")
    frozen = pids(before)
    for pid in frozen.values():
        os.kill(pid, signal.SIGSTOP)
    time.sleep(limits.SILENT_WAITS * limits.SILENCE_S + 2 * limits.BEAT_S)  # there is nothing to await: it is frozen
    for pid in sorted(frozen.values(), key=lambda pid: pid != frozen[first]):
        os.kill(pid, signal.SIGCONT)
        time.sleep(1.0)  # it goes on alone, and must not judge those who sleep
    after = side.until(lambda rows: rows["usb"]["state"] == "running", "usb")
    assert pids(after) == frozen


def test_a_role_that_can_never_work_is_shown_and_not_respawned(side: LiveSide, tmp_path: Path) -> None:
    wants = tmp_path / "wants"
    wants.write_text(json.dumps([{"role": "queue.a", "entry": f"{ROLES}.never", "args": {}}]))
    side.up(RoleSpec("session", f"{ROLES}.asking", {"wants": str(wants)}))
    row = side.until(lambda rows: rows.get("queue.a", {}).get("state") == "failed", "failed")["queue.a"]
    assert row["pid"] is None
    assert row["reason"] == "exit 20: no such controller: plug one in"


def test_bring_up_of_a_role_that_can_never_work_tells_why_and_leaves_nothing(side: LiveSide) -> None:
    with pytest.raises(Refused, match=r"^no such controller: plug one in$"):
        side.up(steady("usb"), RoleSpec("session", f"{ROLES}.never"))
    assert not side.runtime.root.exists()
    assert not all_living(side.runtime)


def test_a_missing_module_is_told_by_name_and_nothing_is_left(side: LiveSide) -> None:
    with pytest.raises(Refused, match=r"cannot import tests\.unit\.roles\.nowhere"):
        side.up(RoleSpec("usb", f"{ROLES}.nowhere"))
    assert not side.runtime.root.exists()


def test_deaths_before_ready_back_off_and_are_forgotten_when_it_is_ready(side: LiveSide, tmp_path: Path) -> None:
    until = tmp_path / "until"
    wants = tmp_path / "wants"
    wants.write_text(json.dumps([{"role": "queue.a", "entry": f"{ROLES}.early", "args": {"until": str(until)}}]))
    side.up(RoleSpec("session", f"{ROLES}.asking", {"wants": str(wants)}), backoff_floor_s=0.02)
    row = side.until(lambda rows: rows.get("queue.a", {}).get("restarts", 0) >= 3, "three restarts")["queue.a"]
    assert row["state"] == "starting"
    assert row["last_exit"] == "exit 10: Gone: not yet"
    until.touch()
    side.until(lambda rows: rows["queue.a"]["state"] == "running", "running")


def test_a_role_that_dies_at_once_after_ready_does_not_spin_and_status_says_why(side: LiveSide, tmp_path: Path) -> None:
    wants = tmp_path / "wants"
    wants.write_text(json.dumps([{"role": "queue.a", "entry": f"{ROLES}.brief", "args": {}}]))
    side.up(RoleSpec("session", f"{ROLES}.asking", {"wants": str(wants)}), backoff_floor_s=2.0)
    # After which death we look is the machine's business; how long each pause is, test_supervise_core's.
    told = re.compile(r"exit 10: died \d+ times in a row within 1 s of ready: started again in [1-9]\d* s")
    row = side.until(lambda rows: told.fullmatch(rows.get("queue.a", {}).get("reason", "")), "its reason")["queue.a"]
    assert (row["state"], row["phase"], row["pid"]) == ("starting", "waiting", None)


def test_a_dynamic_role_that_is_wanted_no_more_is_ended_and_retired(side: LiveSide, tmp_path: Path) -> None:
    wants, mark = tmp_path / "wants", tmp_path / "mark"
    queue = {"role": "queue.a", "entry": f"{ROLES}.steady", "args": {"mark": str(mark)}}
    wants.write_text(json.dumps([queue]))
    side.up(RoleSpec("session", f"{ROLES}.asking", {"wants": str(wants)}))
    side.until(lambda rows: rows.get("queue.a", {}).get("state") == "running", "the queue")
    replacement = tmp_path / "other"
    replacement.write_text("[]")
    replacement.replace(wants)
    side.until(lambda rows: "queue.a" not in rows, "its end")
    assert mark.read_text() == "queue.a\n"
    assert living(side.runtime, "queue.a") is None


def test_the_dynamic_set_is_known_to_a_new_watchdog_before_session_speaks(side: LiveSide, tmp_path: Path) -> None:
    wants = tmp_path / "wants"
    queue = {"role": "queue.a", "entry": f"{ROLES}.steady", "args": {}}
    wants.write_text(json.dumps([queue]))
    side.up(RoleSpec("session", f"{ROLES}.asking", {"wants": str(wants)}))
    before = side.until(lambda rows: rows.get("queue.a", {}).get("state") == "running", "the queue")
    wants.unlink()
    os.kill(before[WATCHDOG]["pid"], signal.SIGKILL)
    side.until_replaced(before, WATCHDOG)
    after = side.until(lambda rows: rows.get("queue.a", {}).get("state") == "running", "the queue adopted")
    assert after["queue.a"]["pid"] == before["queue.a"]["pid"]


def test_a_job_of_a_role_runs_beside_it_and_its_end_is_told(side: LiveSide, tmp_path: Path) -> None:
    side.up(RoleSpec("usb", f"{ROLES}.jobber", {"mark": str(tmp_path / "mark")}))
    assert (tmp_path / "mark").read_text() != str(side.rows()["usb"]["pid"])


def test_restart_drains_and_kill_kills(side: LiveSide) -> None:
    side.up(steady("usb"))
    for how, exit_text in (("restart", "exit 0"), ("kill", "killed by signal 9")):
        before = side.rows()
        told = ask(side.runtime, WATCHDOG, how, {"role": "usb"})
        assert told == {"role": "usb", "pid": before["usb"]["pid"], "generation": before["usb"]["generation"]}
        assert side.until_replaced(before, "usb")["usb"]["last_exit"] == exit_text


@pytest.mark.parametrize("role", [WATCHDOG, SPAWNER])
def test_supervision_itself_can_be_restarted(side: LiveSide, role: str) -> None:
    side.up(steady("usb"))
    before = side.rows()
    ask(side.runtime, WATCHDOG, "restart", {"role": role})
    assert side.until_replaced(before, role)["usb"]["pid"] == before["usb"]["pid"]


def test_an_unknown_role_is_refused_with_the_names_of_the_known(side: LiveSide) -> None:
    side.up(steady("usb"))
    with pytest.raises(Refused, match=r"^cat: no such role here: the roles are usb, watchdog, spawner$") as refused:
        ask(side.runtime, WATCHDOG, "restart", {"role": "cat"})
    assert refused.value.status is Exit.BAD_INPUT


def test_down_ends_session_first_and_usb_last_and_leaves_nothing(side: LiveSide, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    side.up(*(steady(role, mark=str(mark)) for role in ("usb", "source.a", "session")))
    take_down(side.runtime)
    assert mark.read_text().split() == ["session", "source.a", "usb"]
    assert not side.runtime.root.exists()
    assert side.spawners[0].wait(5.0) == 0


@pytest.mark.parametrize("role", ["usb", WATCHDOG, SPAWNER])
def test_down_goes_on_whoever_is_killed_while_it_runs(side: LiveSide, tmp_path: Path, role: str) -> None:
    mark = tmp_path / "mark"
    side.up(*(steady(name, mark=str(mark)) for name in ("usb", "source.a", "session")))
    before = side.rows()
    ask(side.runtime, WATCHDOG, "down")
    os.kill(before[role]["pid"], signal.SIGKILL)
    take_down(side.runtime)
    assert set(mark.read_text().split()) == {"session", "source.a", "usb"}
    assert not side.runtime.root.exists()


def test_down_of_a_side_whose_processes_are_all_dead_still_retires_its_roles(side: LiveSide, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    side.up(*(steady(role, mark=str(mark)) for role in ("usb", "session")))
    _kill_everything(side)
    take_down(side.runtime)
    assert mark.read_text().split() == ["session", "usb"]
    assert not side.runtime.root.exists()


def test_up_after_the_death_of_supervision_adopts_the_roles_that_live(side: LiveSide) -> None:
    side.up(steady("usb"), steady("session"))
    before = side.rows()
    twin = before["twin"]["pid"]
    for pid in (twin, before[SPAWNER]["pid"], before[WATCHDOG]["pid"]):
        os.kill(pid, signal.SIGKILL)
    side.spawners[0].wait(5.0)
    side.up(steady("usb"), steady("session"))
    assert pids(side.rows(), SPAWNER, WATCHDOG, "twin") == pids(before, SPAWNER, WATCHDOG, "twin")


def test_down_does_not_wait_for_a_supervision_that_died_when_it_was_looked_for(
    side: LiveSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    side.up(steady("usb"))
    _kill_everything(side)
    looks = iter([True])  # it lived at the first look
    monkeypatch.setattr("tools.cli.side.supervised", lambda runtime: next(looks, None) or supervised(runtime))
    started = time.monotonic()
    take_down(side.runtime)
    assert time.monotonic() - started < limits.READY_S / 2
    assert not side.runtime.root.exists()


def test_down_ends_a_role_that_was_forgotten_with_the_watchdogs_memory(side: LiveSide, tmp_path: Path) -> None:
    wants = tmp_path / "wants"
    wants.write_text(json.dumps([{"role": "queue.a", "entry": f"{ROLES}.steady", "args": {}}]))
    side.up(RoleSpec("session", f"{ROLES}.asking", {"wants": str(wants)}))
    side.until(lambda rows: rows.get("queue.a", {}).get("state") == "running", "the queue")
    queue = living(side.runtime, "queue.a")
    assert queue is not None
    kill(record for record in all_living(side.runtime) if record.role != "queue.a")
    side.spawners[0].wait(5.0)
    until_alone = [record for record in all_living(side.runtime) if record.role != "queue.a"]
    assert await_deaths(until_alone, 5.0)
    memory_path(side.runtime).unlink()
    take_down(side.runtime)
    assert start_ticks(queue.pid) != queue.start_ticks, "it lives on with nobody to end it"


def test_what_cannot_be_retired_is_named_and_down_can_be_said_again(side: LiveSide) -> None:
    side.up(RoleSpec("usb", f"{ROLES}.sticky"))
    for _ in range(2):
        with pytest.raises(Refused, match=r"usb: exit 10: retire: OSError: .*Device or resource busy") as refused:
            take_down(side.runtime)
        assert refused.value.status is Exit.FAULT
        assert failures_path(side.runtime).exists()
        assert not all_living(side.runtime)


def test_descriptors_kept_by_the_spawner_survive_it_and_reach_the_successor(side: LiveSide) -> None:
    side.up(RoleSpec("usb", f"{ROLES}.keeper"))
    before = side.rows()
    assert ask(side.runtime, "usb", "status")["found"] == ""
    os.kill(before[SPAWNER]["pid"], signal.SIGKILL)
    after = side.until_replaced(before, SPAWNER)
    os.kill(after["usb"]["pid"], signal.SIGKILL)
    side.until_replaced(after, "usb")
    assert ask(side.runtime, "usb", "status")["found"] == f"kept by {before['usb']['pid']}"


def _kill_everything(side: LiveSide) -> None:
    kill(all_living(side.runtime))
    for spawner in side.spawners:
        spawner.wait(5.0)
    assert await_deaths(all_living(side.runtime), 5.0)
    with pytest.raises(Gone):
        ask(side.runtime, WATCHDOG, "status", timeout_s=0.1)
