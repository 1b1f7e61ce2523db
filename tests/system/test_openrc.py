"""The OpenRC script of the gadget side under a real openrc-run: started twice, asked, stopped, asked again.

Debian's openrc is laid over the guest's own files; OpenRC is not its init. Run by `make system`.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.runtime import Runtime, Side
from tools.demo.inside import _see_nothing_left
from tools.supervise.launch import all_living

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
DEBIAN = ROOT / ".setup/debian/root"
STATES = ("starting", "started", "stopping", "inactive", "wasinactive", "failed", "hotplugged", "daemons", "options",
          "exclusive", "scheduled", "init.d", "tmp")  # fmt: skip


@pytest.fixture(scope="module")
def openrc() -> Iterator[None]:
    if "lowerdir=/lower" not in Path("/proc/mounts").read_text():
        pytest.skip("it writes into /sbin, /lib and /etc: wants the guest, where they are forgotten")
    for name in ("sbin", "lib"):
        subprocess.run(["cp", "-a", "--", f"{DEBIAN / name}/.", f"/{name}/"], check=True, timeout=60)
    Path("/etc/init.d").mkdir(exist_ok=True)
    shutil.copy(ROOT / "packaging/openrc/replug-gadget", "/etc/init.d/replug-gadget")
    program = Path("/usr/bin/replug")
    program.write_text(f'#!/bin/sh\ncd {ROOT} && exec {sys.executable} -m tools.cli "$@"\n')
    program.chmod(0o755)
    for state in STATES:  # as its own boot makes them
        Path("/run/openrc", state).mkdir(parents=True)
    Path("/run/openrc/softlevel").touch()  # else OpenRC says that it did not boot this machine
    yield
    service("stop")
    program.unlink()


def service(action: str) -> "subprocess.CompletedProcess[str]":
    command = ["/sbin/rc-service", "--nodeps", "replug-gadget", action]
    environment = {**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90)


def test_a_side_is_started_asked_stopped_and_may_be_asked_when_it_is_down(openrc: None) -> None:
    gadget = Runtime(Side.GADGET)
    down = service("status")
    assert down.returncode == 5 and "has not been started" not in down.stdout + down.stderr
    started = service("start")
    assert started.returncode == 0, started.stdout + started.stderr
    pids = all_living(gadget)
    assert pids
    assert service("start").returncode == 0
    assert all_living(gadget) == pids, "a start that was said again is not a restart"
    up = service("status")
    assert up.returncode in (0, 1) and "usb" in up.stdout, up.stdout + up.stderr
    stopped = service("stop")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert not gadget.root.exists() and not all_living(gadget)
    _see_nothing_left()
    assert service("status").returncode == 5
