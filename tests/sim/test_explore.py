"""All single kills of the small workload; that a fault is found so; what the exploring machine promises of itself.

Pairs of kills are many hundred thousand: `make explore`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.branches import Kill, Places, Replay, Seen
from tests.sim.explore import EQUAL, WELL, Results, judged, product
from tests.sim.processes import JOB, Process
from tests.sim.state import digest
from tests.sim.steady import SteadyRun

ROOT = Path(__file__).parents[2]
PLACES = 400  # at least, in a run without a kill


def explore(out: Path, **said: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: it forks, and this one may have threads."""
    environment = {**os.environ, "OUT": str(out), "JOBS": "1", "KILLS": "1", **said}
    command = [sys.executable, "-m", "tests.sim.explore"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.timeout(320)
@pytest.mark.parametrize("slow", ["", "WRITE"])
def test_whoever_dies_at_whichever_step_the_small_workload_ends_well(slow: str, tmp_path: Path) -> None:
    done = explore(tmp_path / "results", SLOW=slow)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    results = Results(tmp_path / "results", product())
    assert len(results.done) >= PLACES, done.stdout
    lines = results.lines()
    assert {line["end"] for line in lines} == {WELL}
    assert {line["first"] for line in lines} == set(results.done)
    killed = {line["killed"][0].split(" before ")[0] for line in lines}
    assert killed == {"gadget usb", "gadget session", "gadget queue", "host usb", "host session", "host source"}


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("fault", "slow", "share"), [("replay_forgotten", "", "5/30"), ("no_fence", "WRITE", "0/4")])
def test_a_deliberate_fault_is_found_and_its_path_finds_it_again(
    fault: str, slow: str, share: str, tmp_path: Path
) -> None:
    found = explore(tmp_path / "results", FAULT=fault, SLOW=slow, SHARE=share)
    assert found.returncode == 1, found.stdout + found.stderr
    failed = [line for line in Results(tmp_path / "results", product()).lines() if line["end"] not in (WELL, EQUAL)]
    assert failed and f"again: make explore AT={failed[0]['path']}" in found.stdout
    again = explore(tmp_path / "none", FAULT=fault, SLOW=slow, AT=failed[0]["path"])
    assert again.returncode == 1
    assert again.stdout.splitlines()[-1] == f"{failed[0]['path']}: {failed[0]['end']}"
    assert explore(tmp_path / "none", SLOW=slow, AT=failed[0]["path"]).returncode == 0, "without the fault it ends well"


@pytest.mark.timeout(120)
def test_after_one_kill_each_later_step_has_another(tmp_path: Path) -> None:
    done = explore(tmp_path / "results", KILLS="2", SHARE="450/1000")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = Results(tmp_path / "results", product()).lines()
    second = {int(line["path"].split(",")[1].split(".")[0]) for line in lines if len(line["killed"]) == 2}
    assert [line["killed"] for line in lines if len(line["killed"]) == 1] != []
    assert second == set(range(451, max(second) + 1)) and max(second) > PLACES + 150


def test_results_of_a_first_place_that_was_not_explored_to_its_end_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "results"
    results = Results(path, "these sources")
    results.add(first=1, path="1", killed=["host usb before reap"], end=WELL)
    results.add(first=2, path="2", killed=["host usb before reap"], end=WELL)
    results.add(done=1)
    again = Results(path, "these sources")
    assert again.done == {1}
    assert [line["path"] for line in again.lines()] == ["1"]
    assert [json.loads(line) for line in path.read_text().splitlines()][-1] == {"done": 1}


def test_results_of_other_sources_are_forgotten(tmp_path: Path) -> None:
    results = Results(tmp_path / "results", "these sources")
    results.add(first=1, path="1", killed=["host usb before reap"], end=WELL)
    results.add(done=1)
    assert Results(tmp_path / "results", "those sources").done == frozenset()
    assert Results(tmp_path / "results", "those sources").lines() == []


def test_a_path_names_the_choices_that_are_not_the_first() -> None:
    assert str(Kill(57, "host usb", "reap", [0, 1, 0])) == "57.0.1"
    assert str(Kill(57, "host usb", "reap", [0, 0])) == "57"


def test_a_state_is_known_to_whoever_has_as_many_kills_left_or_fewer() -> None:
    seen = Seen(64)
    assert not seen.note(7, kills_left=1)
    assert seen.note(7, kills_left=1)
    assert seen.note(7, kills_left=0)
    assert not seen.note(7, kills_left=2)
    assert not seen.note(8, kills_left=0)
    assert not seen.note(8, kills_left=1), "whoever had none left has not gone through what one more can do"


# -- states ----------------------------------------------------------------------------------------------------------
class KilledAt(Places):
    """One kill, when `role` of `side` is about to do `what` for the `nth` time. `state`: when all are back."""

    def __init__(self, side: str, role: str, what: str, nth: int) -> None:
        super().__init__(anybody=False)
        self._who, self._what, self._left = (side, role), what, nth
        self.state: int | None = None

    def dies(self, process: Process, what: str) -> bool:
        if (process.side, process.role) != self._who or what != self._what:
            return False
        self._left -= 1
        return self._left == 0

    def choose(self, options: int) -> int:
        return 0

    def born(self) -> None:
        if self._left <= 0 and self.state is None and self.run is not None and self.run.all_live():
            self.state = digest(self.run)


def state_after(side: str, role: str, what: str, nth: int) -> int:
    guide = KilledAt(side, role, what, nth)
    run = guide.run = SteadyRun(guide)
    assert judged(run) == WELL
    assert guide.state is not None
    return guide.state


def test_kills_that_leave_the_same_behind_come_to_the_same_state() -> None:
    """What it has submitted dies with it."""
    third, fourth = (state_after("gadget", "usb", "aio PREAD", nth) for nth in (3, 4))
    assert third == fourth


def test_kills_that_leave_something_else_behind_do_not() -> None:
    """A write that had been done is not a write that had not."""
    queued, done = (state_after("host", "source.a1", what, 1) for what in (JOB, "bus send"))
    assert queued != done
    assert state_after("host", "source.a1", JOB, 1) == queued, "the same run has the same states"


class Heard(Replay):
    """A branch whose words after the state that is digested are kept, and how long after it."""

    def __init__(self, place: int) -> None:
        super().__init__(str(place))
        self.state: int | None = None
        self.future: list[tuple[float, str]] = []

    def born(self) -> None:
        run = self.run
        if run is None or not self.kills or self.state is not None or not run.all_live():
            return
        self.state, began, say = digest(run), run.world.now, run.world.say

        def heard(text: str) -> None:
            self.future.append((round(run.world.now - began, 6), text))
            say(text)

        run.world.say = heard  # type: ignore[method-assign]


def test_what_comes_to_the_same_state_has_the_same_future() -> None:
    """Else a branch that is not gone through might have ended badly."""
    futures: dict[int, list[list[tuple[float, str]]]] = {}
    for place in range(140, 155):
        guide = Heard(place)
        run = guide.run = SteadyRun(guide)
        assert judged(run) == WELL
        assert guide.state is not None and guide.future
        futures.setdefault(guide.state, []).append(guide.future)
    assert len(futures) < 15, "none of these met"
    assert len(futures) > 1
    for same in futures.values():
        assert all(future == same[0] for future in same)


def test_a_run_without_a_kill_has_the_places_that_a_path_counts() -> None:
    replay = Replay("")
    run = replay.run = SteadyRun(replay)
    assert judged(run) == WELL
    assert replay.count >= PLACES and replay.path == ""
