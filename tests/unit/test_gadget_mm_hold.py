"""Who holds the memory of a usb that dies: made at its birth, found by its record, gone when its successor says so."""

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bus.runtime import Runtime, Side
from gadget.usb import mm_hold

DEADLINE_S = 10.0


@dataclass(frozen=True)
class Owner:
    """A process that made its hold, has a thread since, and waits to be killed. `kept` was handed to it."""

    pid: int
    kept: int
    told: str


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    runtime = Runtime(Side.GADGET, "holding", tmp_path)
    runtime.create()
    yield runtime
    for each in mm_hold.left(runtime, "usb"):
        each.end()


@pytest.fixture
def owner(runtime: Runtime) -> Iterator[Owner]:
    yield from owned(runtime, 7)


def owned(runtime: Runtime, generation: int) -> Iterator[Owner]:
    kept, theirs = os.pipe()
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(kept)
            landed = mm_hold.hold(runtime, "usb", generation, {"ep0": theirs})
            threading.Thread(target=signal.pause, daemon=True).start()
            comm = Path("/proc/self/comm").read_text().strip()
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            os.write(tell, f"{comm} {len(blocked)} {os.get_inheritable(landed['ep0'])}".encode())
            signal.pause()
        finally:
            os._exit(1)
    os.close(theirs)
    os.close(tell)
    told = os.read(ready, 100).decode()
    os.close(ready)
    yield Owner(pid, kept, told)
    kill(pid)
    os.close(kept)


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def maps(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def test_it_outlives_its_owner_with_the_memory_and_without_the_descriptors(runtime: Runtime, owner: Owner) -> None:
    [held] = mm_hold.left(runtime, "usb")
    assert comm(held.pid) == mm_hold.COMM and held.record.name == "usb.mm@7"
    assert maps(held.pid) == maps(owner.pid), "the same address space"
    kill(owner.pid)
    assert maps(held.pid), "the address space has outlived its owner"
    assert select.select([owner.kept], [], [], DEADLINE_S)[0] and os.read(owner.kept, 1) == b"", (
        "a copy of the fd lives"
    )


def test_its_owner_is_as_it_was(owner: Owner) -> None:
    ours = Path("/proc/self/comm").read_text().strip()
    assert owner.told == f"{ours} 0 False", "name, blocked signals, and the descriptor close-on-exec"


def test_only_kill_reaches_it_and_its_end_is_awaited(runtime: Runtime, owner: Owner) -> None:
    [held] = mm_hold.left(runtime, "usb")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        os.kill(held.pid, number)
    assert mm_hold.left(runtime, "usb") == [held]
    held.end()
    assert mm_hold.left(runtime, "usb") == [] and not held.record.exists()
    os.kill(owner.pid, 0)
    held.end()  # a second time is no error


def test_a_successor_does_not_take_its_own_for_one_that_was_left(runtime: Runtime, owner: Owner) -> None:
    assert [held.record.name for held in mm_hold.left(runtime, "usb", but=8)] == ["usb.mm@7"]
    assert mm_hold.left(runtime, "usb", but=7) == []
    assert mm_hold.left(runtime, "usb.other") == []


def test_a_record_whose_process_died_or_whose_pid_is_anothers_is_forgotten(runtime: Runtime) -> None:
    records = runtime.root / "mm"
    records.mkdir()
    for name, pid in (("usb.mm@1", 0), ("usb.mm@2", os.getpid()), ("usb.mm@3", 1 << 22)):
        (records / name).write_bytes(pid.to_bytes(4, "little"))
    (records / "usb.mm@4").write_bytes(b"")
    assert mm_hold.left(runtime, "usb") == []
    assert list(records.iterdir()) == []


SPAWNED = """
import os, sys
from pathlib import Path
from bus.runtime import Runtime, Side
from gadget.usb import mm_hold
mm_hold.hold(Runtime(Side.GADGET, "holding", Path(sys.argv[2])), "usb", 1, {})
"""


def test_one_whose_record_is_lost_is_found_by_its_command_line_which_names_the_directory(runtime: Runtime) -> None:
    for root, base in ((runtime.root, runtime.base), (Path("/elsewhere"), runtime.base)):
        subprocess.run([sys.executable, "-c", SPAWNED, root, str(base)], check=True, timeout=60)
        [held] = mm_hold.left(runtime, "usb")
        held.record.unlink()
        assert [each.pid for each in mm_hold.found(runtime, "usb")] == ([held.pid] if root == runtime.root else [])
        held.end()
    assert mm_hold.found(runtime, "usb") == []


def test_found_looks_past_the_one_that_is_our_own(runtime: Runtime) -> None:
    subprocess.run([sys.executable, "-c", SPAWNED, runtime.root, str(runtime.base)], check=True, timeout=60)
    [held] = mm_hold.left(runtime, "usb")
    assert mm_hold.found(runtime, "usb", but=1) == []
    held.end()
