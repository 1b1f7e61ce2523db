"""Kill points: free when not armed, and at the nth arrival exactly what was asked for, told before it is done."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common import trace
from common.errors import Refused


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(os.fspath(tmp_path / "heard"))
        end.settimeout(5)
        yield end


def in_child(work: Callable[[], None]) -> int:
    """Pid of a child that does `work` and then exits with 7."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(7)
        finally:
            os._exit(8)
    return pid


def passes(times: int, **fields: object) -> Callable[[], None]:
    def work() -> None:
        trace.arm(fields)
        for _ in range(times):
            trace.point("other.step")
            trace.point("role.step")

    return work


def test_point_that_is_not_armed_does_nothing() -> None:
    trace.arm(None)
    trace.point("role.step")


def test_kill_happens_at_the_nth_arrival_and_is_told_before(heard: socket.socket) -> None:
    arm = {"name": "role.step", "act": "kill", "nth": 3, "tell": heard.getsockname()}
    early = in_child(passes(2, **arm))
    assert os.waitstatus_to_exitcode(os.waitpid(early, 0)[1]) == 7
    pid = in_child(passes(3, **arm))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert heard.recv(100) == f"role.step {pid}".encode()


def test_stopped_process_goes_on_after_sigcont_and_is_not_stopped_again() -> None:
    pid = in_child(passes(2, name="role.step", act="stop"))
    assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
    os.kill(pid, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_successor_with_the_same_arguments_does_not_act_again(tmp_path: Path) -> None:
    once = tmp_path / "once"
    once.touch()
    ends = [os.waitpid(in_child(passes(1, name="role.step", act="kill", once=str(once))), 0)[1] for _ in range(2)]
    assert [os.waitstatus_to_exitcode(end) for end in ends] == [-signal.SIGKILL, 7]


def test_kill_happens_though_nobody_listens(tmp_path: Path) -> None:
    pid = in_child(passes(1, name="role.step", act="kill", tell=str(tmp_path / "nobody")))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize(
    "fields",
    [{}, {"name": "a"}, {"name": "a", "act": "burn"}, {"name": "a", "act": "kill", "nth": 0},
     {"name": "a", "act": "delay", "delay_ms": 60_001}, {"name": "a", "act": "kill", "stray": 1}],
)  # fmt: skip
def test_what_is_not_a_kill_point_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(Refused, match="not a kill point"):
        trace.arm(fields)


def test_longest_delay_is_taken() -> None:
    trace.arm({"name": "a", "act": "delay", "delay_ms": 60_000})
    trace.arm(None)


def test_recording_holds_each_point_in_order_with_its_time_and_then_ends() -> None:
    assert trace.record(True) == []
    trace.point("role.first")
    trace.point("role.second")
    records = trace.record(False)
    trace.point("role.third")
    assert [name for name, _ in records] == ["role.first", "role.second"]
    assert 0 < records[0][1] <= records[1][1]
    assert trace.record(False) == []


def test_recording_is_bounded() -> None:
    trace.record(True)
    for _ in range(trace.RECORDS + 1):
        trace.point("role.step")
    assert len(trace.record(False)) == trace.RECORDS
