"""Looking at processes from outside: the dead are told from the living, whatever has become of their numbers.

On a real kernel of the series we run on: newer ones have another errno for it.
"""

import os
import subprocess
import sys

import pytest

from bus.runtime import ProcessRecord, start_ticks
from tools.supervise.launch import await_deaths, kill, open_pidfd

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]
LEADER = """
import os, subprocess, sys
child = subprocess.Popen(["sleep", "60"], stdin=-3, stdout=-3)
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_a_dead_session_leader_whose_children_live_on_is_dead() -> None:
    """Its number is still their session id: pidfd_open says EINVAL, not ESRCH, and a command fell over it."""
    leader = subprocess.Popen(
        [sys.executable, "-c", LEADER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert leader.stdout is not None
    child = int(leader.stdout.readline())
    record = ProcessRecord("spawner", leader.pid, start_ticks(leader.pid) or 0, 1)
    heir = ProcessRecord("usb", child, start_ticks(child) or 0, 1)
    try:
        leader.kill()
        leader.communicate()
        assert os.getsid(child) == record.pid
        assert open_pidfd(record) is None
        kill([record])
        assert await_deaths([record], 1)
    finally:
        kill([heir])
