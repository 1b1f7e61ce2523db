"""What the board of tests/system/test_boot.py does once it has started from its replug disk; then it powers off.

Runs on the board with nothing but the installed replug and Python. Each process of the gadget side is killed in turn,
with the page cache dropped, so that the next look at the root file system needs a successor.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, "/usr/lib/replug")

from bus.runtime import Runtime, Side, living, read_record, recorded_roles

LIMIT_S = 300.0  # a spawner that is executed reads all of Python over the emulated cable
STALL_S = 20.0
RESULT = Path("/var/lib/proof")


def mounted_on(place: str) -> str:
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return os.path.realpath([source for source, where, *_ in lines if where == place][-1])  # it may be named by a link


class Sentry(threading.Thread):
    """Tells on the console where each process of the side is, if the disk does not answer for STALL_S.

    All that it reads is in memory: what is on the disk cannot be read then.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.began: float | None = None
        self._console = open("/dev/console", "w")  # noqa: SIM115
        self.start()

    def run(self) -> None:
        while True:
            time.sleep(1)
            if self.began is not None and time.monotonic() - self.began > STALL_S:
                self.began = None
                for pid in (name for name in os.listdir("/proc") if name.isdigit()):
                    self._tell(pid)

    def _tell(self, pid: str) -> None:
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            if name.startswith(("replug", "ffs-mm")):
                for task in os.listdir(f"/proc/{pid}/task"):
                    where = Path(f"/proc/{pid}/task/{task}/stack").read_text().split("\n")
                    call = Path(f"/proc/{pid}/task/{task}/syscall").read_text().strip()
                    self._console.write(f"proof: stalled: {name} {pid} {task} {call}: {' < '.join(where)}\n")
                    self._console.flush()


def touches_the_disk(name: str) -> None:
    """Write through to the host's file and read back from there."""
    sentry.began = time.monotonic()
    data = os.urandom(256 << 10)
    with (RESULT / name).open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    Path("/proc/sys/vm/drop_caches").write_text("3")
    assert (RESULT / name).read_bytes() == data
    sentry.began = None


def successor(runtime: Runtime, role: str, dead: int) -> int:
    deadline = time.monotonic() + LIMIT_S
    while True:
        record = read_record(runtime, role)
        if record is not None and record.pid != dead and Path(f"/proc/{record.pid}").exists():
            return record.pid
        assert time.monotonic() < deadline, f"{role}: no successor within {LIMIT_S:g} s"
        time.sleep(0.05)


def both_supervisors(runtime: Runtime) -> dict[str, int]:
    """Spawner and twin at once: nothing is left that could fork, so the watchdog executes one, from this very disk."""
    dead = {role: record.pid for role in ("spawner", "twin") if (record := read_record(runtime, role)) is not None}
    for pid in dead.values():
        os.kill(pid, signal.SIGKILL)
    return {role: successor(runtime, role, pid) for role, pid in dead.items()}


def logs_to_the_console() -> None:
    """Until the power is off: a shutdown that goes wrong is told by who is spared there, as our processes are."""
    logs = [str(path) for side in Side for path in Runtime(side).root.glob("log/*.log")]
    follow = ["@tail", "-qFn0", *logs]
    with open("/dev/console", "w") as console:
        tail = subprocess.Popen(follow, executable="/usr/bin/tail", stdout=console, start_new_session=True)
    Path("/sys/fs/cgroup/cgroup.procs").write_text(str(tail.pid))


def main() -> None:
    logs_to_the_console()
    RESULT.mkdir(parents=True, exist_ok=True)
    told: dict[str, Any] = {"root": mounted_on("/"), "killed": {}}
    runtime = Runtime(Side.GADGET)
    for role in recorded_roles(runtime):
        record = living(runtime, role)
        if record is None:
            continue  # a job, long done
        name = Path(f"/proc/{record.pid}/cmdline").read_bytes()[:1].decode()
        os.kill(record.pid, signal.SIGKILL)
        began = time.monotonic()
        touches_the_disk(role)
        told["killed"][role] = {
            "spared": name == "@",
            "pause_ms": round((time.monotonic() - began) * 1000),
            "successor": successor(runtime, role, record.pid),
        }
        if role == "spawner":  # what was its twin is it now, and forks the next
            successor(runtime, "twin", told["killed"][role]["successor"])
        print(f"proof: {role}: {told['killed'][role]}", flush=True)
    told["both"] = both_supervisors(runtime)
    (RESULT / "told.json").write_text(json.dumps(told))
    with contextlib.suppress(OSError):
        os.sync()


def last_words() -> None:
    """For whoever reads the console of a proof that failed."""
    for path in sorted([*Runtime(Side.GADGET).root.glob("log/*"), *Runtime(Side.GADGET).root.glob("reason/*")]):
        print(f"proof: {path.name}: {path.read_text()[-1500:]}", flush=True)


sentry = Sentry()
try:
    main()
except BaseException:
    last_words()
    raise
