"""With Debian's libzmq a role asks the system's databases for nothing: their files may be on the disk it serves."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.unit.test_packaging_boot import debian, environment

ROOT = Path(__file__).parents[2]
DATABASES = Path("/etc/nsswitch.conf")
# Says whether the file was opened by a child that makes its first context; inotify(7): IN_OPEN is 0x20.
_PROGRAM = """\
import ctypes, os, sys
import zmq
from bus import network
if sys.argv[1] == "begun":
    network.begin()
libc = ctypes.CDLL(None)
watch = libc.inotify_init1(os.O_NONBLOCK)
assert libc.inotify_add_watch(watch, sys.argv[2].encode(), 0x20) >= 0
pid = os.fork()
if pid == 0:
    zmq.Context()
    os._exit(0)
os.waitpid(pid, 0)
try:
    print("asked" if os.read(watch, 4096) else "not asked", flush=True)
except BlockingIOError:
    print("not asked", flush=True)
os._exit(0)
"""


def child_of(spawner: str) -> str:
    variables = environment(debian())
    variables["HOME"] = "/"  # else Python itself asks, for where that is
    variables["PYTHONPATH"] = f"{ROOT}:{variables['PYTHONPATH']}"
    command = ["/usr/bin/python3.11", "-c", _PROGRAM, spawner, str(DATABASES)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(not os.access(DATABASES, os.R_OK), reason=f"{DATABASES}: this machine has none to be asked")
def test_a_role_whose_spawner_has_begun_asks_no_database_of_the_system() -> None:
    assert child_of("not begun") == "asked", "this libzmq does not ask: then nothing is shown here"
    assert child_of("begun") == "not asked"
