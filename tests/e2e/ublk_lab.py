"""A ublk server of a test's own, its disk in shared memory, and users of that disk. No bus, no roles, no USB.

The server is a process forked from the test, built on nothing but gadget.ublk; its memory outlives it. `parked`, it
answers nothing: that is how a host that is not there looks from the kernel. Skipped, with the reason, where there is no
/dev/ublk-control. For tests/e2e/test_ublk_*.py.
"""

import contextlib
import ctypes
import errno
import mmap
import os
import random
import select
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from gadget.ublk import device as device_module
from gadget.ublk.abi import BlockOp, Feature, IoFlag
from gadget.ublk.control import CONTROL_PATH, Control, DeviceParams, Plan, plan
from gadget.ublk.device import QueueDevice
from gadget.ublk.mark import ownership_mark

DEV_ID = 48  # high enough not to meet a device of somebody else's
EXPORT_ID = 7
MARK = ownership_mark("test", EXPORT_ID)
DEPTH = 8
BLOCK = 4096
MAX_IO = 128 * 1024
SIZE = 8 << 20
PARAMS = DeviceParams(SIZE, BLOCK, MAX_IO)
DISK = f"/dev/ublkb{DEV_ID}"
CHARS = Path("/sys/class/ublk-char")
RECOVERY_S = 2.0  # kill to I/O: 30 s is what the kernel's own timeout would take
DEADLINE_S = 20.0  # for what should happen at once

Say = Callable[[str], None]
T = TypeVar("T")


class Shared:
    """Memory of the test and all its servers: the disk's bytes, and a few words of control and counters."""

    WORDS = ("parked", "write_errno", "reads", "writes", "flushes", "fua")

    def __init__(self) -> None:
        self.disk = mmap.mmap(-1, SIZE)
        self._words = memoryview(mmap.mmap(-1, 4096)).cast("q")

    def __getitem__(self, name: str) -> int:
        return self._words[self.WORDS.index(name)]

    def __setitem__(self, name: str, value: int) -> None:
        self._words[self.WORDS.index(name)] = value


class Child:
    """A forked process that runs `work(say)`; what it says can be awaited here, line by line."""

    def __init__(self, work: Callable[[Say], None]) -> None:
        ours, theirs = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(ours)
            status = 1
            try:
                work(lambda text: void(os.write(theirs, f"{text}\n".encode())))
                status = 0
            finally:
                if status:
                    os.write(theirs, ("failed: " + traceback.format_exc().replace("\n", " | ") + "\n").encode())
                os._exit(status)  # never back into pytest
        os.close(theirs)
        self._pipe, self._pidfd = ours, os.pidfd_open(self.pid)
        self._text, self._seen = "", list[str]()
        self.status: int | None = None

    def expect(self, wanted: str | tuple[str, ...], deadline_s: float = DEADLINE_S) -> str:
        """The next line that begins with `wanted`; AssertionError with everything known if it does not come."""
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        poll.register(self._pidfd, select.POLLIN)
        deadline = time.monotonic() + deadline_s
        while True:
            while "\n" in self._text:
                line, self._text = self._text.split("\n", 1)
                self._seen.append(line)
                if line.startswith(wanted):
                    return line
            ready = [fd for fd, _ in poll.poll(max(0, int((deadline - time.monotonic()) * 1000)))]
            if self._pipe in ready and (data := os.read(self._pipe, 65536)):
                self._text += data.decode()
            else:
                why = "it died" if ready else f"nothing in {deadline_s} s"
                raise AssertionError(f"waited for {wanted!r}: {why}; it said {self._seen}; devices {devices()}")

    def kill(self) -> None:
        """SIGKILL, and wait until it is dead."""
        if self.status is None:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            self.wait()

    def wait(self, deadline_s: float = DEADLINE_S) -> int:
        """Its exit status as waitpid gives it."""
        if self.status is None:  # else the pidfd is closed
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            if not poll.poll(int(deadline_s * 1000)):
                raise AssertionError(f"pid {self.pid} lives after {deadline_s} s; it said {self._seen}; {devices()}")
            self.status = os.waitpid(self.pid, 0)[1]
            os.close(self._pidfd)
            os.close(self._pipe)
        return self.status


def void(_: object) -> None:
    """Make a statement of an expression."""


def devices() -> list[str]:
    return sorted(entry.name for entry in CHARS.glob("*"))


@dataclass
class Lab:
    """What one test has: shared memory, and everything it started."""

    shared: Shared
    children: list[Child]

    def child(self, work: Callable[[Say], None]) -> Child:
        child = Child(work)
        self.children.append(child)
        return child

    def server(self, stop_at: str = "", trusted: bool = False, linger: bool = False) -> Child:
        """Start (or recover, it decides by itself) the server. `stop_at`: a stage to wait at until killed."""
        return self.child(lambda say: serve(self.shared, say, stop_at, trusted, linger))

    def live(self) -> Child:
        server = self.server()
        server.expect("live")
        return server

    def clean(self) -> None:
        for child in self.children:
            if child.status is None:
                os.kill(child.pid, signal.SIGKILL)
        remover = Child(remove)  # a process of its own: if this hangs, the test fails and does not hang with it
        self.children.append(remover)
        remover.expect("removed")
        for child in self.children:
            child.wait()
        until(lambda: not (CHARS / f"ublkc{DEV_ID}").exists(), "the device to be gone")


def remove(say: Say) -> None:
    with Control() as control:
        try:
            control.delete_async(DEV_ID)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
    say("removed")


def until(ready: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    """For the few things that raise no event."""
    deadline = time.monotonic() + deadline_s
    while not ready():
        assert time.monotonic() < deadline, f"waited {deadline_s} s for {what}; devices {devices()}"
        time.sleep(0.002)


def retry(attempt: Callable[[], T], *codes: int) -> T:
    """Again while it is told one of `codes`: the caller's business, which the binding leaves to it."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            return attempt()
        except OSError as error:
            if error.errno not in codes or time.monotonic() > deadline:
                raise
        time.sleep(0.002)


def told(code: int, command: Callable[[], object], words: str) -> None:
    with pytest.raises(OSError, match=words) as caught:
        command()
    assert caught.value.errno == code, f"{errno.errorcode[caught.value.errno or 0]}, not {errno.errorcode[code]}"


# -- the server ----------------------------------------------------------------------------------------------


def serve(shared: Shared, say: Say, stop_at: str, trusted: bool, linger: bool) -> None:
    def stage(name: str) -> None:
        say(name)
        if name == stop_at:
            signal.pause()

    if trusted:  # what a careless server would do
        setattr(device_module, "without_sys_admin", contextlib.nullcontext)  # noqa: B010
    with Control() as control:
        step = plan(control.find(DEV_ID), MARK)
        say(f"plan {step.name}")
        if step is Plan.RECREATE:
            control.delete_async(DEV_ID)  # not `delete`, which would wait for a user that holds a stopped disk
        if step is Plan.RECOVER:
            begin_recovery(control, say)
        else:
            retry(lambda: control.add(DEV_ID, DEPTH, MAX_IO, MARK), errno.EEXIST)
            stage("added")
            control.set_params(DEV_ID, PARAMS)
    stage("begun")
    device = retry(lambda: QueueDevice(DEV_ID, DEPTH), errno.EBUSY, errno.ENOENT)
    arena = mmap.mmap(-1, DEPTH * MAX_IO)
    base = ctypes.addressof(ctypes.c_char.from_buffer(arena))
    device.fetch_all(lambda tag: base + tag * MAX_IO)
    stage("fetched")
    threading.Thread(target=lambda: go_live(step, stage), daemon=True).start()
    if linger and os.fork() == 0:
        say(f"child {os.getpid()}")  # by itself: now it has let go of what a fork is to let go of
        signal.pause()
    loop(device, arena, shared, say)


def is_newer(control: Control) -> bool:
    """Seen: 7.3 answers two commands otherwise than 6.12. Told apart by a feature, as no release is asked for."""
    return Feature.QUIESCE in control.features()


def begin_recovery(control: Control, say: Say) -> None:
    try:
        retry(lambda: control.start_user_recovery(DEV_ID), errno.EBUSY)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        say("recovery had begun")


def go_live(step: Plan, stage: Say) -> None:
    with Control() as control:
        (control.end_user_recovery if step is Plan.RECOVER else control.start)(DEV_ID, os.getpid())
    stage("live")


def loop(device: QueueDevice, arena: mmap.mmap, shared: Shared, say: Say) -> None:
    poll = select.poll()
    poll.register(device.eventfd, select.POLLIN)
    held: list[tuple[int, int, int, int, int]] = []
    while not device.stopped:
        poll.poll(10 if held else None)
        before = len(held)
        held.extend(device.requests())
        if not shared["parked"]:
            for request in held:
                device.commit(request[0], execute(request, arena, shared))
            held.clear()
            device.submit()
        elif len(held) != before:
            say(f"holding {device.in_flight}")
    device.close()
    say("stopped")


def execute(request: tuple[int, int, int, int, int], arena: mmap.mmap, shared: Shared) -> int:
    tag, op, sector, sectors, flags = request
    at, slot, length = sector * 512, tag * MAX_IO, sectors * 512
    shared["fua"] += bool(flags & IoFlag.FUA)
    if op == BlockOp.READ:
        shared["reads"] += 1
        arena[slot : slot + length] = shared.disk[at : at + length]
        return length
    if op == BlockOp.WRITE:
        shared["writes"] += 1
        if shared["write_errno"]:
            return -shared["write_errno"]
        shared.disk[at : at + length] = arena[slot : slot + length]
        return length
    shared["flushes"] += op == BlockOp.FLUSH
    return 0


# -- users of the disk ---------------------------------------------------------------------------------------


def pattern(seed: int, size_bytes: int) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


def opened(flags: int = os.O_RDWR | os.O_DIRECT) -> int:
    return os.open(DISK, flags | os.O_CLOEXEC)


def write_at(fd: int, offset: int, data: bytes, flags: int = 0) -> int:
    buffer = mmap.mmap(-1, len(data))  # page-aligned, as O_DIRECT wants it
    buffer[:] = data
    return os.pwritev(fd, [buffer], offset, flags)


def read_at(fd: int, offset: int, size_bytes: int) -> bytes:
    buffer = mmap.mmap(-1, size_bytes)
    assert os.preadv(fd, [buffer], offset) == size_bytes
    return buffer[:]


def read_whole_disk(say: Say) -> None:
    fd = opened()
    for offset in range(0, SIZE, MAX_IO):
        assert read_at(fd, offset, MAX_IO) == pattern(offset, MAX_IO), f"difference at {offset}"
        say(f"read {offset}")
    say("all right")


def write_many_at_once(say: Say) -> None:
    """More writers than the queue has tags."""
    failed: list[str] = []

    def one(number: int) -> None:
        fd = opened()
        try:
            write_at(fd, number * BLOCK, pattern(number, BLOCK))
        except OSError as error:
            failed.append(str(error))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(2 * DEPTH)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed
    say("all written")


def write_and_verify(say: Say, seed: int) -> None:
    """Overwrite and read back until SIGTERM, then say so."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    fd, number = opened(), 0
    chance = random.Random(seed)
    while not ended.is_set():
        offset = chance.randrange(SIZE // MAX_IO) * MAX_IO
        data = pattern(number, MAX_IO)
        assert write_at(fd, offset, data) == MAX_IO
        assert read_at(fd, offset, MAX_IO) == data, f"difference at {offset} in round {number}"
        say(f"round {number}")
        number += 1
    say(f"verified {number}")


# -- fixtures ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def driver() -> None:
    if not os.path.exists(CONTROL_PATH):
        with contextlib.suppress(FileNotFoundError):
            subprocess.run(["modprobe", "ublk_drv"], check=False)
    if not os.path.exists(CONTROL_PATH):
        pytest.skip(f"no {CONTROL_PATH}: this kernel has no ublk_drv, run in the guest")


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab(Shared(), [])
    try:
        yield lab
    finally:
        lab.clean()
    assert f"ublkc{DEV_ID}" not in devices()
    assert not os.path.exists(DISK)


@pytest.fixture
def control() -> Iterator[Control]:
    with Control(timeout_s=DEADLINE_S) as control:
        yield control
