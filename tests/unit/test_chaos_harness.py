"""The judges of chaos: which line of the kernel is a fault, what a sleep is, what was promised, what is told.

Shows issue 3, item 9.
"""

import errno
import itertools
import os
import random
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bus.runtime import Runtime, Side, run_state
from common.errors import Gone
from tests.chaos import guests, sleep, stages
from tests.chaos.budgets import (
    COLD_START,
    FAULT_FREE,
    Promise,
    guest_limits,
    judged,
    native_limits,
    promised,
    report,
)
from tests.chaos.document import Page
from tests.chaos.events import Cut, Event, Kill, Sleep, Stop, Suspend, Terminate, Unplug, WholeSide
from tests.chaos.kernel_log import EXPECTED, refusing, text_of, unexpected
from tests.chaos.pulse import STALL_S, Pulse, stood_still
from tests.chaos.results import Results
from tests.chaos.scenario import cells, draw, every, pairs, sleeps_in, table, told
from tests.chaos.sleep import Freeze
from tests.chaos.stages import At, Stage, Way, killed
from tests.native.disk import ModelCable

ROLES = [
    *((Side.GADGET, role) for role in ("queue.a", "queue.b", "usb", "session", "watchdog", "spawner")),
    *((Side.HOST, role) for role in ("source.a", "source.b", "usb", "session", "watchdog", "spawner")),
]


# -- the kernel's log --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "line",
    [
        "Buffer I/O error on dev ublkb0, logical block 3, async page read",
        "I/O error, dev ublkb0, sector 8 op 0x1:(WRITE) flags 0x8800 phys_seg 1 prio class 0",
        "EXT4-fs error (device ublkb1): ext4_find_entry:1683: inode #2: comm ls: reading directory lblock 0",
        "EXT4-fs (ublkb1): failed to convert unwritten extents",
        "JBD2: Error -5 detected when updating journal superblock for ublkb1-8.",
        "Aborting journal on device ublkb1-8.",
        "Buffer I/O error on device ublkb0, logical block 1",
        "block ublkb0: no capacity change but an error from 1 to 2",
        "ublkb0: unable to read partition table",
        "ublk_drv: ublk_ctrl_start_dev failed",
        "usb 1-1: usbfs: process 77 (python3) did not claim interface 0 before use",
        "usb 1-1: Device is not authorized for usage: I/O error",
        "usb 1-1: device firmware changed",
        "usb usb1-port1: over-current condition",
        "INFO: task replug:gadget.usb:77 blocked for more than 120 seconds.",
        "task:replug:gadget.u state:D stack:0     pid:77    tgid:77    ppid:1      flags:0x00004006",
        "Call Trace:",
        "RIP: 0010:ffs_epfile_io+0x1d3/0x6a0 [usb_f_fs]",
        " ? ffs_epfile_io+0x1d3/0x6a0 [usb_f_fs]",
        "BUG: kernel NULL pointer dereference, address: 0000000000000008",
        "WARNING: CPU: 0 PID: 77 at drivers/usb/gadget/udc/core.c:286 usb_ep_queue+0x1",
        "general protection fault, probably for non-canonical address done.",
        "Out of memory: Killed process 77 (python)",
        "lines of the log were overwritten before they were read",
    ],
)
def test_a_line_of_a_fault_is_not_expected_whatever_it_names(line: str) -> None:
    assert unexpected([line]) == [line]


@pytest.mark.parametrize(
    "line",
    [
        "usb 1-1: new high-speed USB device number 12 using dummy_hcd",
        "usb 1-1: reset high-speed USB device number 12 using dummy_hcd",
        "usb 1-1: USB disconnect, device number 12",
        "usb 1-1: New USB device found, idVendor=1209, idProduct=0001, bcdDevice= 6.12",
        "usb 1-1: authorized to connect",
        "read descriptors",
        "read strings",
    ],
)
def test_a_line_of_what_we_struck_is_expected(line: str) -> None:
    assert unexpected([line]) == []


GAVE_UP_LINES = """Freezing user space processes failed after 2.002 seconds (2 tasks refusing to freeze, wq_busy=0):
task:python          state:D stack:0     pid:355   tgid:200   ppid:1      flags:0x00004006
Call Trace:
 <TASK>
 __schedule+0x4e0/0xbf0
 </TASK>
task:{second}        state:D stack:0     pid:356   tgid:200   ppid:1      flags:0x00004006
Call Trace:
 <TASK>
RIP: 0033:0x7f9082188261
 </TASK>
OOM killer enabled.
Restarting tasks ... done.""".splitlines()


def test_a_task_of_the_load_that_waited_for_the_frozen_disk_is_expected_and_only_where_the_freezer_names_it() -> None:
    dump = [line.format(second="fio main") for line in GAVE_UP_LINES]
    assert unexpected(dump) == []
    assert unexpected(dump[1:6]) == dump[1:6], "the same stack without the freezer"
    assert unexpected([*dump, *dump[1:6]]) == dump[1:6], "more stacks than tasks that refused"
    assert unexpected([*dump, "BUG: soft lockup"]) == ["BUG: soft lockup"]


def test_a_role_that_did_not_freeze_is_a_fault() -> None:
    dump = [line.format(second="replug:usb") for line in GAVE_UP_LINES]
    assert unexpected(dump) == [dump[6]]


def test_each_expected_line_has_a_reason() -> None:
    assert all(len(reason) > 5 for reason in EXPECTED.values())


def test_a_record_of_the_kernel_is_its_text_without_fields_and_dictionary() -> None:
    assert text_of("6,339,5140900,-;NET: Registered\n SUBSYSTEM=net\n DEVICE=+pci:0\n") == ["NET: Registered"]
    assert text_of("4,1,2,-;first\\x0asecond; third\n") == ["first", "second; third"]


# -- sleep -------------------------------------------------------------------------------------------------------------
SLEPT = Freeze(succeeded=1, failed=0, gap_s=5.0, refused=())
GAVE_UP = Freeze(succeeded=0, failed=1, gap_s=2.0, refused=("python",))


@pytest.mark.parametrize("freeze", [SLEPT, GAVE_UP])
def test_tasks_that_froze_are_a_sleep(freeze: Freeze) -> None:
    assert freeze.complaint() is None


@pytest.mark.parametrize(
    ("freeze", "why"),
    [
        (Freeze(0, 0, 2.0, ()), "the kernel counts 0 freezes"),
        (Freeze(1, 0, 0.2, ()), "a task of ours ran after 0.200 s"),
        (Freeze(0, 1, 0.2, ("python",)), "a task of ours ran after 0.200 s"),
        (Freeze(0, 1, 2.0, ("python", "replug:gadget.u")), "tasks of replug did not freeze: replug:gadget.u"),
        (Freeze(0, 1, 2.0, ()), "names no task"),
        (Freeze(0, 1, 0.2, (), aborted=True), "the machine was woken up"),
    ],
)
def test_a_freeze_that_froze_nobody_of_ours_is_none(freeze: Freeze, why: str) -> None:
    assert why in (freeze.complaint() or "")


def test_the_kernel_is_asked_once_to_freeze(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A second attempt, right after the first gave up, would be another sleep than the one that is judged."""
    (tmp_path / "state").touch()
    monkeypatch.setattr(sleep, "POWER", tmp_path)
    attempts = []

    def busy(fd: int, data: bytes) -> int:
        attempts.append(data)
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(os, "write", busy)
    sleep._freeze()
    assert attempts == [b"freeze"]


@pytest.mark.parametrize("wakes", [0, 3, 1000])
def test_a_freeze_that_a_wake_up_ended_is_tried_again_and_not_for_ever(
    wakes: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sleep, "POWER", tmp_path)
    answers = itertools.chain(itertools.repeat(Freeze(0, 1, 0.1, (), aborted=True), wakes), [SLEPT])
    monkeypatch.setattr(sleep, "_attempt", lambda: next(answers))
    if wakes < 10:
        assert sleep.freeze_tasks() == SLEPT
    else:
        with pytest.raises(RuntimeError, match="freezer: the machine was woken up"):
            sleep.freeze_tasks()


def test_whom_the_freezer_names_is_read_from_the_log() -> None:
    lines = [
        "Freezing user space processes failed after 2.003 seconds (1 tasks refusing to freeze, wq_busy=0):",
        "task:python3 main    state:D stack:0     pid:301   tgid:290   ppid:1      flags:0x00004006",
        "Call Trace:",
    ]
    assert refusing(lines) == ("python3 main",)


def test_a_strike_while_this_machine_stood_still_is_told_from_one_that_froze_it() -> None:
    assert not stood_still(STALL_S, slept=False)
    assert stood_still(STALL_S + 0.1, slept=False)
    assert not stood_still(5.5, slept=True), "the freezer's own"
    assert stood_still(STALL_S + 6.1, slept=True)
    assert sleeps_in((Suspend(Sleep.FREEZER),))
    assert sleeps_in((At(Stage(Side.HOST, "usb", "somewhere", Way.IO), Suspend(Sleep.FREEZER)),))
    assert not sleeps_in((Suspend(Sleep.ROOT_HUB),))


def test_a_pulse_tells_how_long_it_was_not_let_run() -> None:
    with closing(Pulse()) as pulse:
        pulse.begin()
        assert pulse.gap_s == 0.0
        pulse._last -= 7.0  # as if it had not run since
        end = time.monotonic() + 10.0
        while pulse.gap_s < 7.0:
            assert time.monotonic() < end, "it looks"
            time.sleep(0.001)


# -- what may be struck ------------------------------------------------------------------------------------------------
def test_nothing_sleeps_in_a_native_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """/sys/power there is that of the machine somebody works at."""
    monkeypatch.setattr(sleep, "POWER", tmp_path)
    choose = random.Random(1)
    struck = [
        *every(ROLES, ModelCable.sleeps),
        *(at.event for at in cells(ROLES, ModelCable.sleeps)),
        *(strike for _ in range(2000) for strike in draw(choose, ROLES, ModelCable.sleeps)),
    ]
    assert not [strike for strike in struck if isinstance(strike, Suspend)]
    for kind in Sleep:
        with pytest.raises(RuntimeError, match=f"the models have no {kind.value} that could sleep"):
            ModelCable().sleep(kind)
    assert list(tmp_path.iterdir()) == []


def test_in_a_guest_both_sleeps_are_struck_alone_and_at_every_stage_and_drawn() -> None:
    sleeps, choose = tuple(Sleep), random.Random(1)
    drawn = {strike for _ in range(2000) for strike in draw(choose, ROLES, sleeps)}
    table = cells(ROLES, sleeps)
    for kind in sleeps:
        assert every(ROLES, sleeps).count(Suspend(kind)) == 1
        assert {at.stage for at in table if at.event == Suspend(kind)} == {at.stage for at in table}
        assert Suspend(kind) in drawn


def test_supervision_is_stopped_too() -> None:
    choose = random.Random(1)
    drawn = {strike for _ in range(2000) for strike in draw(choose, ROLES, ())}
    for side in Side:
        for role in ("watchdog", "spawner"):
            assert Stop(side, role) in every(ROLES, ())
            assert Stop(side, role) in drawn


def test_twin_whole_side_and_sigterm_are_drawn_and_those_with_many_victims_alone() -> None:
    choose = random.Random(1)
    drawn = [draw(choose, ROLES, ()) for _ in range(4000)]
    for side in Side:
        for strike in (Kill(side, "twin"), WholeSide(side)):
            assert strike in every(ROLES, ())
            assert {len(struck) for struck in drawn if strike in struck} == {1}
        assert any(Terminate(side, "usb") in struck for struck in drawn)
        assert not any(Terminate(side, "watchdog") in struck for struck in drawn), "that ends its side"


def test_whose_process_is_another_after_an_event() -> None:
    running = [*ROLES, *((side, "twin") for side in Side)]
    assert killed(Kill(Side.HOST, "spawner"), running) == {(Side.HOST, "spawner"), (Side.HOST, "twin")}
    assert killed(Kill(Side.HOST, "twin"), running) == {(Side.HOST, "twin")}
    assert killed(Terminate(Side.HOST, "usb"), running) == {(Side.HOST, "usb")}
    assert killed(Stop(Side.HOST, "usb"), running) == killed(Suspend(Sleep.FREEZER), running) == set()
    assert killed(WholeSide(Side.HOST), running) == {key for key in running if key[0] is Side.HOST}


def test_two_kills_at_once_are_of_two_roles_and_in_the_table() -> None:
    for first, second in pairs(ROLES):
        assert {first, second} <= set(every(ROLES, ()))
        assert first != second
        assert (first, second) in table(ROLES, ())
    assert len({told(struck) for struck in table(ROLES, ())}) == len(table(ROLES, ())), "each has a name of its own"


# -- what was promised -------------------------------------------------------------------------------------------------
def at(side: Side, role: str, way: Way) -> At:
    return At(Stage(side, role, "somewhere", way), None)


@pytest.mark.parametrize(
    ("struck", "promise"),
    [
        ([Kill(Side.GADGET, "queue.a")], Promise.GADGET_DATA),
        ([at(Side.GADGET, "usb", Way.IO)], Promise.GADGET_DATA),
        ([at(Side.GADGET, "usb", Way.BIRTH)], None),  # two deaths, one after the other
        ([Kill(Side.HOST, "source.a")], Promise.HOST_DATA),
        ([Kill(Side.HOST, "session")], Promise.NO_DATA),
        ([Kill(Side.GADGET, "spawner")], Promise.NO_DATA),
        ([Unplug(Cut.UNBIND)], Promise.CABLE),
        ([Unplug(Cut.RESET)], Promise.RESET),
        ([Stop(Side.GADGET, "usb")], None),
        ([Suspend(Sleep.FREEZER)], None),
        ([Kill(Side.GADGET, "usb"), Kill(Side.HOST, "usb")], None),
    ],
)
def test_what_is_promised_is_for_one_event(struck: list[At], promise: Promise | None) -> None:
    assert promised(struck) is promise


def test_native_promises_are_the_budgets_of_the_design() -> None:
    limits = native_limits({FAULT_FREE: [0.010, 0.030, 0.020]})
    assert limits[Promise.GADGET_DATA] == 0.1
    assert limits[Promise.HOST_DATA] == 0.5
    assert limits[Promise.CABLE] == pytest.approx(1.6), "out for 0.3 s, enumerated within 0.3 s, then 1 s"
    assert limits[Promise.NO_DATA] == 0.060, "twice the longest gap of the same run"
    assert Promise.NO_DATA not in native_limits({}), "without such a gap nothing can be said"


def test_in_a_guest_the_measure_is_a_cold_start_of_the_same_run() -> None:
    assert guest_limits({COLD_START: [1.0, 1.4, 9.0]}) == {Promise.GADGET_DATA: 1.4}
    assert guest_limits({}) == {}


def test_one_pause_at_the_limit_keeps_it_and_one_above_misses_it() -> None:
    limits = {Promise.GADGET_DATA: 0.1}
    [kept] = judged([(Promise.GADGET_DATA, 0.1)], limits)
    assert (kept.above, kept.outcome) == (0, "kept")
    [missed] = judged([(Promise.GADGET_DATA, pause) for pause in (0.05, 0.06, 0.101)], limits)
    assert (missed.above, missed.outcome) == (1, "MISSED by the longest")
    [worse] = judged([(Promise.GADGET_DATA, pause) for pause in (0.05, 0.2, 0.3)], limits)
    assert (worse.above, worse.outcome) == (2, "MISSED, by the median too")


def test_the_report_names_what_was_missed_and_how_often() -> None:
    verdicts = judged(
        [(Promise.GADGET_DATA, 0.2), (Promise.GADGET_DATA, 0.05), (Promise.HOST_DATA, 0.2)], native_limits({})
    )
    told = report(verdicts, {FAULT_FREE: [0.02]})
    assert "| death of gadget queue, usb | 100 | 2 | 125 / 200 | 1 | MISSED, by the median too |" in told
    assert "| death of host usb, source | 500 | 1 | 200 / 200 | 0 | kept |" in told
    assert told.endswith("budgets: MISSED: death of gadget queue, usb")
    assert report(verdicts[1:], {}).endswith("budgets: kept")


def test_a_promise_without_a_measure_is_not_said_to_be_kept() -> None:
    [one] = judged([(Promise.NO_DATA, 0.2)], {})
    assert one.outcome == "not promised here"


def test_results_of_a_run_that_was_ended_are_judged_with_the_rest(tmp_path: Path) -> None:
    first = Results(tmp_path / "a.jsonl")
    first.add("kill -9 gadget usb", "", 0.25, Promise.GADGET_DATA)
    first.measure(COLD_START, 1.5)
    again = Results(tmp_path / "a.jsonl")
    assert again.promised == [(Promise.GADGET_DATA, 0.25)]
    assert again.measured == {COLD_START: [1.5]}


# -- several guests ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("ends", "status"),
    [
        ([0], 0),
        (["a cell", 0], 1),  # the rest was struck, but one failed
        ([1], 1),  # it could not start, say
        (["a cell", 1], 1),
        (["a cell"] * guests.FAILURES, 1),
    ],
)
def test_a_run_of_guests_is_a_success_only_if_all_was_struck_and_nothing_failed(
    ends: list[int | str], status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    left = iter(ends)

    def guest(part: int, parts: int) -> int:
        end = next(left)
        if isinstance(end, str):
            Results(tmp_path / "cells.1.jsonl").add_failure(
                f"kill {len(Results(tmp_path / 'cells.1.jsonl').failures)}", "", end
            )
            return 1
        return end

    (tmp_path / "cells.1.jsonl").touch()
    monkeypatch.setattr(guests, "WHERE", tmp_path)
    monkeypatch.setattr(guests, "_guest", guest)
    monkeypatch.setenv("JOBS", "1")
    assert guests.main() == status
    assert next(left, None) is None, "every guest that was needed"


# -- the page ----------------------------------------------------------------------------------------------------------
def test_no_cell_of_the_page_is_empty_and_those_not_run_are_named(tmp_path: Path) -> None:
    results = Results(tmp_path / "a.jsonl")
    results.add("suspend, root hub", "gadget usb at usb.answer.arrived", 1.0)
    results.add_failure("kill -9", "gadget usb at usb.answer.arrived", "wrong\nlogs")
    text = Page(results, native=False).text()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(cell.strip() for row in rows for cell in row.strip("|").split("|"))
    assert "| 1000 |" in text
    assert "**failed**" in text
    assert "- kill -9 at gadget usb at usb.answer.arrived: wrong" in text
    assert "- SIGSTOP at gadget usb at usb.answer.arrived" in text, "one that was not run"


def test_the_native_page_says_why_nothing_sleeps_there() -> None:
    text = Page(Results(), native=True).text()
    assert "the models have nothing that could sleep" in text
    assert not [line for line in text.splitlines() if line.startswith("- suspend")]


_LEADERLESS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
print("begun", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_process_is_dead_when_its_last_thread_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen at SEED=20261130 N=1015, natively: the next strike hit a role of which one thread was still dying."""
    monkeypatch.setattr(stages, "REACH_S", 0.3)
    process = subprocess.Popen([sys.executable, "-c", _LEADERLESS], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"begun\n"
    while run_state(process.pid) != "Z":
        assert process.poll() is None
    with pytest.raises(RuntimeError, match="is Z, not dead"):
        stages.await_state(process.pid, "dead")
    process.kill()
    stages.await_state(process.pid, "dead")
    process.communicate()


@pytest.mark.parametrize("first", [True, False])
def test_a_stage_that_is_reached_while_it_is_armed_is_reached(first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen at SEED=19 N=1067, natively: it struck the session before that had answered, which nobody could then."""
    struck: list[Event] = []

    def ask(_runtime: Runtime, _role: str, _method: str, point: dict[str, Any]) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mouth:
            if first:
                mouth.sendto(b"session.saved 77", point["tell"])
                heard.wait()
                raise Gone("session: no answer to 'trace'")
        place.append(point["tell"])

    def strike(event: Unplug) -> None:
        struck.append(event)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mouth:
            mouth.sendto(b"session.saved 77", place[0])

    heard, place = threading.Event(), list[str]()
    monkeypatch.setattr(stages, "ask", ask)
    monkeypatch.setattr(Unplug, "strike", strike)
    assert Stage(Side.GADGET, "session", "session.saved", Way.RESET).reach("kill") == 77
    heard.set()
    assert struck == ([] if first else [Unplug(Cut.RESET)])
