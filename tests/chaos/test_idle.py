"""An idle side costs next to nothing: wake-ups, CPU, memory. Real processes over modelled kernels."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bus.runtime import Runtime, Side
from common import limits
from tests.native.bench import await_, bench
from tests.native.disk import ModelDisk
from tools.bench import usage
from tools.supervise.launch import all_living

WINDOW_S = 10.0  # two beats of each role
WAKES_A_SECOND, CORE_SHARE, PSS_MIB = 2.0, 0.01, 80.0
# Wake-ups of one STATUS exchange, which comes once a second: a timer, a note there and back (ZeroMQ's thread and the
# loop each time), and the transfer's end. The gadget's: an event, and calls to the model where the kernel's are none.
STATUS_WAKES = {"host.session": 4, "host.usb": 4, "gadget.usb": 4}


def processes() -> dict[str, int]:
    return {f"{side}.{record.role}": record.pid for side in Side for record in all_living(Runtime(side))}


def pss_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def sleeps(pid: int) -> int:
    """Of all its threads: each began with a wake-up. Being interrupted by another process is none, and not counted."""
    tasks = [(task / "status").read_text().splitlines() for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int(line.split()[1]) for lines in tasks for line in lines if line.startswith("voluntary_ctxt_switches"))


def policies(pid: int) -> frozenset[int]:
    return frozenset(os.sched_getscheduler(int(task.name)) for task in Path(f"/proc/{pid}/task").iterdir())


@dataclass(frozen=True)
class Rest:
    """What a process spends in a second of idleness, and its memory."""

    wakes: float
    cpu_s: float
    pss_mib: float
    policies: frozenset[int]  # of all its threads


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Rest]]:
    """By side and role, of all twelve processes."""
    file = tmp_path_factory.mktemp("idle") / "disk.img"
    file.write_bytes(bytes(16 << 20))
    with bench([file]) as here:
        disk = ModelDisk(here.devices[0])
        assert disk.read(memoryview(bytearray(4096)), 0) == 4096  # it has worked before it rests
        disk.close()
        await_(lambda: len(processes()) == 12, "all processes of both sides")
        # The ends of the start: settling, partitions. Then from between two beats to between two beats.
        time.sleep(limits.BEAT_S + limits.BEAT_S / 2 - time.monotonic() % limits.BEAT_S)
        pids = processes()
        slept = {role: sleeps(pid) for role, pid in pids.items()}
        before, began = usage.all_spent(pids), time.monotonic()
        time.sleep(WINDOW_S)  # what is measured is that nothing happens
        took = time.monotonic() - began
        spent = usage.since(before, usage.all_spent(pids))
        wakes = {role: (sleeps(pid) - slept[role]) / took for role, pid in pids.items()}
        yield {
            role: Rest(wakes[role], spent[role].cpu_s / took, pss_mib(pid), policies(pid)) for role, pid in pids.items()
        }


def test_each_process_wakes_less_than_twice_a_second_status_set_apart(idle: dict[str, Rest]) -> None:
    wakes = {role: rest.wakes - STATUS_WAKES.get(role, 0) for role, rest in idle.items()}
    assert {role: count for role, count in wakes.items() if count >= WAKES_A_SECOND} == {}


def test_each_process_uses_less_than_a_hundredth_of_a_core(idle: dict[str, Rest]) -> None:
    assert {role: rest.cpu_s for role, rest in idle.items() if rest.cpu_s >= CORE_SHARE} == {}


def test_gadget_side_with_one_export_stays_below_80_mib(idle: dict[str, Rest]) -> None:
    parts = {role: rest.pss_mib for role, rest in idle.items() if role.startswith("gadget.")}
    assert len(parts) == 6
    assert 10 < sum(parts.values()) < PSS_MIB, parts


def test_roles_that_are_ready_let_who_wakes_them_finish(idle: dict[str, Rest]) -> None:
    roles = {role: rest.policies for role, rest in idle.items() if role.split(".")[1] in ("usb", "queue", "source")}
    assert len(roles) == 4 and set(roles.values()) == {frozenset({os.SCHED_BATCH})}
