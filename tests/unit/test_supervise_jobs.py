"""Jobs of roles: ordered, told how they ended, and done again when nobody can tell."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from threading import Timer

import pytest

from bus.runtime import Runtime, Side, take_name
from common.errors import Gone, WireError
from tools.supervise.birth import take_name_in_turn
from tools.supervise.jobs import Job, Jobs
from tools.supervise.plan import RoleSpec

SPEC = RoleSpec("queue.a", "gadget.ublk.role")
EXIT_0, EXIT_20, KILLED = 0, 20 << 8, 9


@dataclass
class Bench:
    ordered: list[int] = field(default_factory=list)
    told: list[tuple[str, bool, str]] = field(default_factory=list)
    reason: str | None = None

    def __post_init__(self) -> None:
        self.jobs = Jobs(self._order, self._done, lambda pid: None)

    def _order(self, job: Job) -> None:
        self.ordered.append(job.serial)

    def _done(self, job: Job, ok: bool, reason: str) -> None:
        self.told.append((job.function, ok, reason))

    def run(self, pid: int, status: int | None) -> bool:
        """The last one ordered is born and ends."""
        self.jobs.spawned(self.ordered[-1], pid)
        return self.jobs.died(pid, status, lambda name: self.reason)


def test_role_is_told_that_its_job_ended_well() -> None:
    bench = Bench()
    bench.jobs.ask(SPEC, "settle")
    assert bench.run(7, EXIT_0)
    assert bench.told == [("settle", True, "")]


def test_role_is_told_why_its_job_failed() -> None:
    bench = Bench(reason="settle: OSError: no such disk")
    bench.jobs.ask(SPEC, "settle")
    bench.run(7, EXIT_20)
    assert bench.told == [("settle", False, "exit 20: settle: OSError: no such disk")]


def test_job_that_was_killed_has_failed() -> None:
    bench = Bench()
    bench.jobs.ask(SPEC, "settle")
    bench.run(7, KILLED)
    assert bench.told == [("settle", False, "killed by signal 9")]


def test_job_whose_spawner_died_before_it_is_done_again_and_its_role_hears_only_the_second_end() -> None:
    bench = Bench()
    bench.jobs.ask(SPEC, "settle")
    assert bench.run(7, None)
    assert (bench.told, len(set(bench.ordered))) == ([], 2), "ordered anew, under another serial"
    assert bench.run(8, EXIT_0)
    assert bench.told == [("settle", True, "")]


def test_job_that_left_a_reason_has_failed_though_its_spawner_is_dead() -> None:
    bench = Bench(reason="settle: OSError: no such disk")
    bench.jobs.ask(SPEC, "settle")
    bench.run(7, None)
    [(_, ok, reason)] = bench.told
    assert not ok and reason.endswith("no such disk")


def test_job_that_is_ordered_when_no_spawner_is_there_is_ordered_again_by_the_next() -> None:
    bench = Bench()
    bench.jobs.ask(SPEC, "settle")
    bench.run(7, None)
    bench.jobs.order_again()
    assert bench.ordered[-1] == bench.ordered[-2]


@pytest.mark.parametrize("function", ["prepare", "start", "retire", "two words", 7])
def test_what_is_part_of_a_roles_life_or_no_name_is_no_job(function: object) -> None:
    bench = Bench()
    with pytest.raises(WireError, match="is not a job"):
        bench.jobs.ask(SPEC, function)
    assert bench.ordered == []


def test_a_retirement_waits_for_one_of_the_same_role_that_a_dead_watchdog_had_ordered(tmp_path: Path) -> None:
    runtime = Runtime(Side.GADGET, "t", tmp_path)
    runtime.create()
    other = take_name(runtime, SPEC.role, 1)
    with pytest.raises(Gone):
        take_name(runtime, SPEC.role, 2)
    Timer(0.2, os.close, (other,)).start()
    os.close(take_name_in_turn(runtime, SPEC.role, 2))


def test_a_retirement_that_would_wait_for_ever_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.limits.RETIRE_S", 0.05)
    runtime = Runtime(Side.GADGET, "t", tmp_path)
    runtime.create()
    other = take_name(runtime, SPEC.role, 1)
    with pytest.raises(Gone):
        take_name_in_turn(runtime, SPEC.role, 2)
    os.close(other)
