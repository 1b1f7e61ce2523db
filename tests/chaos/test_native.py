"""Both sides as real processes under a verifying workload, the kernels modelled: each event of the table, and pairs.

After each fault I/O flows within seconds, no other process has another pid, no request has failed, every byte read is
what was written last, the models have seen nothing that a kernel would not take; at the end the host's files are as
acknowledged, and `down` leaves nothing. The long run is `make chaos-native`.

Shows issue 3, items 8 and 9.
"""

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bus.runtime import Runtime, Side
from tests.chaos.__main__ import BLOCKS, Planned, Run
from tests.chaos.events import Cut, Key, Kill, Stop, Terminate, Unplug, pid_of
from tests.chaos.results import Results
from tests.chaos.scenario import draw, every
from tests.chaos.stages import At, Stage, Way, stages
from tests.chaos.workload import BLOCK, Violation, Workload
from tests.native.__main__ import images, on_models, strike_all
from tests.native.bench import Bench, await_, bench
from tests.native.disk import ModelDisk
from tests.native.wire import call
from tools.demo import inside
from tools.supervise.launch import all_living, await_deaths, kill

_FLOW = 20  # completions


def survive(place: Path, chosen: Callable[[list[Key]], Planned], seed: int = 1, v0: bool = False) -> Run:
    """Both sides up, all of `chosen` one after the other, down, and the files judged."""
    files, run = images(place), Run(seed, Results(), 20.0, on_models)
    with bench(files, seed, v0) as here:
        strike_all(run, here, chosen)
    run.judge_files(files)
    assert run.verified_bytes > sum(BLOCKS) * BLOCK, "more was checked than the files at the end"
    return run


@contextmanager
def loaded(place: Path) -> Iterator[tuple[Bench, list[Workload]]]:
    """Both sides up and busy; at the end every request has ended well, and the files are what was acknowledged."""
    files = images(place)
    with bench(files) as here:
        loads = [Workload(d, b, 1, 3, ModelDisk) for d, b in zip(here.devices, BLOCKS, strict=True)]
        flow(loads)
        try:
            yield here, loads
            for load in loads:
                load.stop(20.0)
        except (Violation, AssertionError) as error:
            raise AssertionError(f"{error}\n{here.last_words()}") from error
        assert here.complaints() == []
    for load, file in zip(loads, files, strict=True):
        load.judge_file(file)


def flow(loads: list[Workload]) -> None:
    marks = [load.completed for load in loads]

    def flows() -> bool:
        for load in loads:
            if load.violation is not None:
                raise load.violation
        return all(load.completed >= mark + _FLOW for load, mark in zip(loads, marks, strict=True))

    await_(flows, "I/O to flow")


def events(kind: type) -> Callable[[list[Key]], Planned]:
    return lambda roles: [(event,) for event in every(roles, ()) if isinstance(event, kind)]


def deaths_at(*sides: Side) -> Callable[[list[Key]], Planned]:
    return lambda roles: [(At(stage, None),) for stage in stages(roles) if stage.side in sides]


def pairs(seed: int, count: int) -> Callable[[list[Key]], Planned]:
    def chosen(roles: list[Key]) -> Planned:
        choose = random.Random(seed)
        drawn = (draw(choose, roles, ()) for _ in itertools.count())
        return list(itertools.islice((events for events in drawn if len(events) == 2), count))

    return chosen


def test_every_role_is_killed_and_no_other_changes(tmp_path: Path) -> None:
    survive(tmp_path, events(Kill))


def test_every_role_is_stopped_for_a_moment_and_none_is_replaced(tmp_path: Path) -> None:
    survive(tmp_path, events(Stop))


def test_every_role_is_asked_to_end_and_another_takes_its_place(tmp_path: Path) -> None:
    survive(tmp_path, events(Terminate))


def test_cable_out_and_in_unbind_and_reset_three_times_each(tmp_path: Path) -> None:
    survive(tmp_path, lambda roles: [(Unplug(cut),) for cut in Cut] * 3)


@pytest.mark.parametrize("side", list(Side))
def test_each_role_dies_at_each_of_its_stages(tmp_path: Path, side: Side) -> None:
    survive(tmp_path, deaths_at(side))


@pytest.mark.parametrize("seed", [1, 2])
def test_two_at_once(tmp_path: Path, seed: int) -> None:
    survive(tmp_path, pairs(seed, 20), seed)


def test_with_a_v0_gadget_kills_and_cables_are_survived_too(tmp_path: Path) -> None:
    survive(tmp_path, lambda roles: [*events(Kill)(roles), *events(Unplug)(roles)], v0=True)


def test_killed_gadget_usb_leaves_the_device_at_its_address(tmp_path: Path) -> None:
    with loaded(tmp_path) as (_, loads):
        before = call("address")
        for _ in range(3):
            Kill(Side.GADGET, "usb").strike()
            flow(loads)
        assert call("address") == before != 0
        assert call("counts")["enumerations"] == 1
        assert call("counts")["halts"] >= 3, "each successor told the host in band"


def test_usb_killed_with_every_keeper_of_its_descriptors_enumerates_anew_and_goes_on(tmp_path: Path) -> None:
    with loaded(tmp_path) as (_, loads):
        before = call("address")
        keepers = [r for r in all_living(Runtime(Side.GADGET)) if r.role in ("usb", "spawner", "twin")]
        kill(keepers)
        await_(lambda: call("address") not in (0, before), "another address")
        flow(loads)


def test_gadget_side_killed_as_a_whole_takes_its_devices_back(tmp_path: Path) -> None:
    with loaded(tmp_path) as (here, loads):
        dead = all_living(Runtime(Side.GADGET))
        kill(dead)
        assert await_deaths(dead, 5.0)
        assert all(load.violation is None for load in loads), "I/O waits"
        here.bring_up(Side.GADGET)
        flow(loads)
        assert sorted(call("ublk_numbers")) == [0, 1], "the same devices, and no others"


def test_host_side_killed_as_a_whole_goes_on(tmp_path: Path) -> None:
    with loaded(tmp_path) as (here, loads):
        dead = all_living(Runtime(Side.HOST))
        kill(dead)
        assert await_deaths(dead, 5.0)
        here.bring_up(Side.HOST)
        flow(loads)


def test_queue_that_is_stopped_when_killed_is_replaced_and_never_two_own_the_device(tmp_path: Path) -> None:
    with loaded(tmp_path) as (_, loads):
        [queue, *_] = [role for side, role in inside.pids() if side is Side.GADGET and role.startswith("queue.")]
        pid = pid_of(Side.GADGET, queue)
        os.kill(pid, signal.SIGSTOP)
        os.kill(pid, signal.SIGKILL)
        await_(lambda: inside.pids().get((Side.GADGET, queue)) not in (None, pid), "a successor")
        flow(loads)


def test_a_byte_that_is_wrong_on_the_host_is_found(tmp_path: Path) -> None:
    files = images(tmp_path)
    with bench(files) as here:
        load = Workload(here.devices[0], BLOCKS[0], 1, 3, ModelDisk)
        flow([load])
        with files[0].open("r+b") as file:
            file.write(b"\xff" * (BLOCKS[0] * BLOCK))
        await_(lambda: load.violation, "the workload to see it")
        assert "should be version" in str(load.violation)
        with pytest.raises(Violation):
            load.stop(20.0)


def test_a_process_that_changes_though_nobody_struck_it_is_told(tmp_path: Path) -> None:
    class Sly(Kill):
        def strike(self) -> None:
            Kill(Side.HOST, "session").strike()
            super().strike()
            await_(lambda: (Side.HOST, "session") in inside.pids(), "its successor")

    with pytest.raises(Violation, match=r"other processes changed too: .*session"):
        survive(tmp_path, lambda roles: [(Sly(Side.GADGET, "session"),)])


def test_a_run_that_is_ended_leaves_no_process() -> None:
    with tempfile.TemporaryDirectory() as short:  # sockets lie in it: their paths have a limit
        _end_a_run(Path(short))


def _end_a_run(place: Path) -> None:
    env = {**os.environ, "TMPDIR": os.fspath(place), "N": "1000", "SEED": "1"}
    with subprocess.Popen([sys.executable, "-m", "tests.native"], env=env, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        told = next(line for line in run.stdout if "paused" in line)
        assert _of(place), f"both sides run: {told}"
        run.terminate()
        assert run.wait(30.0) == 128 + signal.SIGTERM
    assert _of(place) == []


def _of(place: Path) -> list[str]:
    """The processes that were started for a run in `place`."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"REPLUG_RUNTIME={place}".encode() in environ.read_bytes():
                found.append((environ.parent / "comm").read_text().strip())
    return found


def test_a_stage_that_is_not_reached_is_no_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.chaos.stages.REACH_S", 1.0)
    nowhere = At(Stage(Side.GADGET, "usb", "usb.nowhere", Way.IO), None)
    with pytest.raises(Violation, match=r"usb\.nowhere: not reached within 1 s"):
        survive(tmp_path, lambda roles: [(nowhere,)])
