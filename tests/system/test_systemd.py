"""Our units under a real systemd, which is process 1 of a pid namespace in the guest: what it does at each death.

Both sides run as services, joined by dummy_hcd, with one disk that a reader keeps open all the time. Run by
`make system`, not by `make test`: a guest needs minutes for it.
"""

import mmap
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bus.runtime import Runtime, Side, read_record, recorded_roles

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not Path("/lib/systemd/systemd").exists(), reason="this machine has no systemd to copy"),
]
UNITS = Path("/run/systemd/system")
GADGET = "replug-gadget.service"
DEVICE = Path("/dev/ublkb0")
DATA = os.urandom(4 << 20)


class Systemd:
    """A system manager with nothing to run but what a test starts."""

    def __init__(self, log: Path) -> None:
        UNITS.mkdir(parents=True, exist_ok=True)
        (UNITS / "empty.target").write_text("[Unit]\nDefaultDependencies=no\n")
        (UNITS / "systemd-journald.service").symlink_to("/dev/null")
        command = ["unshare", "--pid", "--fork", "--mount", "--mount-proc", "/lib/systemd/systemd", "--system"]
        with log.open("w") as file:
            self._outer = subprocess.Popen(
                [*command, "--unit=empty.target", "--log-target=console", "--show-status=no"],
                env={**os.environ, "container": "guest"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        self.log = log
        self.until(lambda: self.do("is-system-running").stdout.strip() == "running", "systemd")

    @property
    def _pid(self) -> str:
        return Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().strip()

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """In its namespaces, where pids are those of the records."""
        inside = ["nsenter", "-t", self._pid, "-p", "-m", *command]
        return subprocess.run(inside, capture_output=True, text=True, timeout=280)

    def do(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return self.run("systemctl", *words)

    def show(self, name: str, unit: str = GADGET) -> str:
        return self.do("show", "--value", "-p", name, unit).stdout.strip()

    def until(self, condition: Callable[[], object], what: str, limit_s: float = 120) -> None:
        deadline = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {limit_s} s for {what}: {self.log.read_text()[-3000:]}")
            time.sleep(0.2)

    def kill(self, number: signal.Signals, *roles: str) -> None:
        pids = [str(record.pid) for role in roles if (record := read_record(Runtime(Side.GADGET), role)) is not None]
        assert len(pids) == len(roles)
        assert self.run("/bin/kill", f"-{int(number)}", *pids).returncode == 0

    @contextmanager
    def holding(self, device: Path) -> Iterator[None]:
        """A process that its own processes can see has it open."""
        shell = ["sh", "-c", f"exec 3<{device}; echo; exec cat"]
        holder = subprocess.Popen(["nsenter", "-t", self._pid, "-p", "-m", *shell], stdin=-1, stdout=-1)
        assert holder.stdin is not None and holder.stdout is not None
        holder.stdout.readline()  # it has it
        try:
            yield
        finally:
            holder.communicate()

    def end(self) -> None:
        self.do("stop", "replug-host.service", GADGET)
        self.run("/bin/kill", "-9", "-1")
        self._outer.kill()
        self._outer.wait(10)


@pytest.fixture(scope="module")
def systemd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Systemd]:
    work = tmp_path_factory.mktemp("systemd")
    program = Path("/usr/bin/replug")
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -P -m tools.cli "$@"\n')
    program.chmod(0o755)
    Path("/etc/replug").mkdir(exist_ok=True)
    (work / "disk.img").write_bytes(DATA)
    Path("/etc/replug/replug.toml").write_text(f'[host]\nsource = ["{work}/disk.img"]\n')
    for side, more in ((GADGET, "[Service]\nWatchdogSec=20\n"), ("replug-host.service", "")):
        shutil.copy(ROOT / "packaging/systemd" / side, "/lib/systemd/system")
        drop_in = UNITS / f"{side}.d"
        drop_in.mkdir(parents=True)
        (drop_in / "test.conf").write_text(f"[Unit]\nDefaultDependencies=no\n{more}")
    manager = Systemd(work / "log")
    yield manager
    manager.end()


@pytest.fixture(scope="module")
def device(systemd: Systemd) -> Iterator[int]:
    """The disk, held open from here on: if it ever became another, this descriptor would fail."""
    for unit in (GADGET, "replug-host.service"):
        started = systemd.do("start", unit)
        assert started.returncode == 0, f"{unit}: {started.stderr}: {systemd.log.read_text()[-3000:]}"
    fds: list[int] = []

    def opened() -> bool:
        try:
            fds.append(os.open(DEVICE, os.O_RDONLY | os.O_DIRECT))
        except OSError:
            return False
        return True

    systemd.until(opened, f"{DEVICE}")
    yield fds[0]
    os.close(fds[0])


def generations() -> dict[str, int]:
    runtime = Runtime(Side.GADGET)
    return {role: r.generation for role in recorded_roles(runtime) if (r := read_record(runtime, role)) is not None}


def reads_well(fd: int) -> None:
    with mmap.mmap(-1, 65536) as page:  # O_DIRECT wants an aligned buffer, and asks the other side each time
        assert os.preadv(fd, [page], 1 << 20) == len(page)
        assert page[:] == DATA[1 << 20 : (1 << 20) + len(page)]


def test_the_service_is_active_without_a_main_process_and_tells_its_status(systemd: Systemd, device: int) -> None:
    reads_well(device)
    assert systemd.show("ActiveState") == "active"
    assert systemd.show("MainPID") == "0"
    systemd.until(lambda: systemd.show("StatusText") == "3 processes, all running", "the status")
    assert systemd.show("OOMPolicy") == "continue"


@pytest.mark.parametrize("role", ["watchdog", "spawner", "twin", "session", "usb"])
def test_a_killed_process_is_respawned_and_systemd_takes_no_notice(systemd: Systemd, device: int, role: str) -> None:
    before = generations()
    systemd.kill(signal.SIGKILL, role)
    systemd.until(lambda: generations()[role] > before[role], f"a successor of {role}")
    reads_well(device)
    assert systemd.show("ActiveState") == "active"
    assert systemd.show("NRestarts") == "0"


def test_all_processes_killed_at_once_are_started_again_and_the_disk_is_the_same(systemd: Systemd, device: int) -> None:
    before = generations()
    assert systemd.do("kill", "--kill-whom=all", "--signal=KILL", GADGET).returncode == 0
    reads_well(device)
    systemd.until(lambda: systemd.show("ActiveState") == "active", "the service")
    assert systemd.show("NRestarts") == "1"
    after = generations()
    assert all(after[role] > before[role] for role in before)


def test_a_supervision_that_hangs_is_replaced_and_what_it_supervised_goes_on(systemd: Systemd, device: int) -> None:
    before = generations()
    systemd.kill(signal.SIGSTOP, "twin", "spawner", "watchdog")
    reads_well(device)
    systemd.until(lambda: systemd.show("NRestarts") == "2", "the watchdog of systemd")
    systemd.until(lambda: systemd.show("ActiveState") == "active", "the service", 240)
    after = generations()
    assert {role for role in before if after[role] == before[role]} == {"session", "usb"} | queues(before)
    reads_well(device)


def queues(generations: dict[str, int]) -> set[str]:
    return {role for role in generations if role.startswith("queue.")}


def test_a_stop_while_the_disk_is_in_use_is_refused_and_changes_nothing(systemd: Systemd, device: int) -> None:
    before = generations()
    with systemd.holding(DEVICE):
        systemd.do("stop", GADGET)
        assert systemd.show("ActiveState") == "failed"
        reads_well(device)
        assert systemd.do("start", GADGET).returncode == 0
        assert systemd.show("ActiveState") == "active"
    assert generations() == before


def test_a_stop_leaves_nothing(systemd: Systemd, device: int) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, device)  # the fixture closes that number
    os.close(null)
    for unit in ("replug-host.service", GADGET):
        assert systemd.do("stop", unit).returncode == 0
        assert systemd.show("ActiveState", unit) == "inactive"
    assert not DEVICE.exists()
    assert not Path("/run/replug").exists()
