"""The ublk binding on the real driver: I/O, kills at every stage, recovery, removal. No bus, no roles, no USB.

The server is a process forked from here that keeps its disk in shared memory (which outlives it), built on
nothing but gadget.ublk. Skipped, with the reason, where there is no /dev/ublk-control.
"""

import contextlib
import ctypes
import errno
import fcntl
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

from common.errors import Gone
from gadget.ublk import device as device_module
from gadget.ublk.abi import BlockOp, DeviceState, Feature, IoFlag
from gadget.ublk.control import CONTROL_PATH, RECOVERABLE, Control, DeviceParams, Plan, plan
from gadget.ublk.device import QueueDevice, settle_queue_limits
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
BLKRRPART = 0x125F  # linux/fs.h

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

    def expect(self, wanted: str, deadline_s: float = DEADLINE_S) -> str:
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
    if linger:
        pid = os.fork()
        if pid == 0:
            signal.pause()
        say(f"child {pid}")
    loop(device, arena, shared, say)


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


# -- I/O -----------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_back_and_lies_where_it_should(lab: Lab) -> None:
    lab.live()
    fd = opened()
    try:
        for offset, size_bytes in (
            (0, BLOCK),
            (MAX_IO, MAX_IO),
            (SIZE - BLOCK, BLOCK),
            (2 * MAX_IO, 4 * MAX_IO),
        ):
            data = pattern(offset, size_bytes)
            assert write_at(fd, offset, data) == size_bytes
            assert lab.shared.disk[offset : offset + size_bytes] == data
            assert read_at(fd, offset, size_bytes) == data
    finally:
        os.close(fd)


def test_fsync_arrives_as_flush_and_a_dsync_write_with_fua(lab: Lab) -> None:
    lab.live()
    fd = opened()
    try:
        write_at(fd, 0, bytes(BLOCK))
        assert (lab.shared["flushes"], lab.shared["fua"]) == (0, 0)
        os.fsync(fd)
        assert lab.shared["flushes"] == 1
        write_at(fd, 0, bytes(BLOCK), os.RWF_DSYNC)
        assert lab.shared["fua"] == 1
    finally:
        os.close(fd)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_an_error_reaches_the_writer_with_its_errno_and_nobody_else(lab: Lab, code: int) -> None:
    lab.live()
    fd = opened()
    try:
        lab.shared["write_errno"] = code
        with pytest.raises(OSError, match=os.strerror(code)) as caught:
            write_at(fd, 0, bytes(BLOCK))
        assert caught.value.errno == code
        assert read_at(fd, 0, BLOCK) == bytes(BLOCK)
        lab.shared["write_errno"] = 0
        assert write_at(fd, 0, bytes(BLOCK)) == BLOCK
    finally:
        os.close(fd)


# -- recovery ------------------------------------------------------------------------------------------------


def test_kill_with_an_idle_tag_left_is_recovered_in_time_and_the_reader_never_notices(lab: Lab) -> None:
    for offset in range(0, SIZE, MAX_IO):
        lab.shared.disk[offset : offset + MAX_IO] = pattern(offset, MAX_IO)
    server = lab.live()
    reader = lab.child(read_whole_disk)
    for stop in range(4):
        reader.expect(f"read {stop * 10 * MAX_IO}")
        lab.shared["parked"] = 1
        server.expect("holding 1")
        killed = time.monotonic()
        server.kill()
        lab.shared["parked"] = 0
        server = lab.server()
        server.expect("plan RECOVER")
        server.expect("live")
        taken_s = time.monotonic() - killed
        print(f"recovered in {taken_s * 1000:.0f} ms")
        assert taken_s < RECOVERY_S
    reader.expect("all right")
    assert reader.wait() == 0


def test_a_kill_with_every_tag_in_flight_goes_unnoticed_where_limits_are_not_settled(
    lab: Lab, control: Control
) -> None:
    server = lab.live()
    Path(f"/sys/block/ublkb{DEV_ID}/queue/io_timeout").write_text("1000")  # 30000 otherwise, too long for a test
    lab.shared["parked"] = 1
    writer = lab.child(write_many_at_once)
    server.expect(f"holding {DEPTH}")
    server.kill()
    lab.shared["parked"] = 0
    killed = time.monotonic()
    while time.monotonic() < killed + 0.3:
        told(
            errno.EBUSY,
            lambda: control.start_user_recovery(DEV_ID),
            "ublk START_USER_RECOVERY of device 48: ",
        )
        time.sleep(0.02)
    lab.live()
    print(f"recovered in {(time.monotonic() - killed) * 1000:.0f} ms")
    writer.expect("all written")


def test_kill_under_full_load_is_recovered_in_time_once_limits_are_settled(lab: Lab) -> None:
    server = lab.live()
    lab.child(lambda say: settle_queue_limits(DEV_ID, DEPTH)).wait()
    lab.shared["parked"] = 1
    writer = lab.child(write_many_at_once)
    server.expect(f"holding {DEPTH - 1}")
    killed = time.monotonic()
    server.kill()
    lab.shared["parked"] = 0
    lab.live()
    taken_s = time.monotonic() - killed
    print(f"recovered in {taken_s * 1000:.0f} ms")
    assert taken_s < RECOVERY_S
    writer.expect("all written")
    assert lab.shared.disk[: 2 * DEPTH * BLOCK] == b"".join(pattern(n, BLOCK) for n in range(2 * DEPTH))
    queue = Path(f"/sys/block/ublkb{DEV_ID}/queue")
    assert (queue / "nr_requests").read_text() == f"{DEPTH - 1}\n", "the limit survives recovery"
    assert "[none]" in (queue / "scheduler").read_text()


@pytest.mark.parametrize("stage", ["added", "begun", "fetched"])
def test_killed_before_the_disk_exists_it_is_dead_and_made_again(lab: Lab, control: Control, stage: str) -> None:
    first = lab.server(stop_at=stage)
    first.expect(stage)
    first.kill()
    info = control.info(DEV_ID)
    assert (info.state, info.mark) == (DeviceState.DEAD, MARK)
    second = lab.server()
    second.expect("plan RECREATE")
    second.expect("live")


@pytest.mark.parametrize("stage", ["begun", "fetched", "live"])
def test_killed_during_recovery_the_next_one_recovers(lab: Lab, stage: str) -> None:
    lab.shared.disk[:BLOCK] = pattern(1, BLOCK)
    lab.live().kill()
    second = lab.server(stop_at=stage)
    second.expect(stage)
    second.kill()
    third = lab.server()
    third.expect("plan RECOVER")
    if stage == "begun":
        third.expect("recovery had begun")
    third.expect("live")
    fd = opened()
    assert read_at(fd, 0, BLOCK) == pattern(1, BLOCK)
    os.close(fd)


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moment_from_the_first_start_on_the_disk_comes_back_whole(lab: Lab, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(8):  # some of these die before there is a disk
        server = lab.server()
        time.sleep(chance.uniform(0, 0.08))
        server.kill()
    server = lab.live()
    lab.child(lambda say: settle_queue_limits(DEV_ID, DEPTH)).wait()
    writer = lab.child(lambda say: write_and_verify(say, seed))
    writer.expect("round 0")
    for _ in range(12):
        time.sleep(chance.uniform(0, 0.12))
        server.kill()
        server = lab.server()
    server.expect("live")
    os.kill(writer.pid, signal.SIGTERM)
    writer.expect("verified", 2 * DEADLINE_S)


def test_a_forked_child_of_the_server_does_not_block_recovery(lab: Lab) -> None:
    server = lab.server(linger=True)
    lingering = int(server.expect("child ").split()[1])
    server.expect("live")
    try:
        server.kill()
        assert "ublkc" not in " ".join(links(lingering)), "the child holds the device"
        lab.server().expect("live", RECOVERY_S)
    finally:
        os.kill(lingering, signal.SIGKILL)


def links(pid: int) -> list[str]:
    descriptors = Path(f"/proc/{pid}/fd")
    return [os.readlink(entry) for entry in descriptors.iterdir()] + [Path(f"/proc/{pid}/maps").read_text()]


# -- what commands are told ----------------------------------------------------------------------------------


def told(code: int, command: Callable[[], object], words: str) -> None:
    with pytest.raises(OSError, match=words) as caught:
        command()
    assert caught.value.errno == code, f"{errno.errorcode[caught.value.errno or 0]}, not {errno.errorcode[code]}"


def test_start_user_recovery_is_told_ebusy_while_the_owner_lives(lab: Lab, control: Control) -> None:
    lab.live()
    told(errno.EBUSY, lambda: control.start_user_recovery(DEV_ID), "ublk START_USER_RECOVERY of device 48: ")


def test_second_start_user_recovery_is_told_einval_and_recovery_goes_on(lab: Lab, control: Control) -> None:
    lab.live().kill()
    retry(lambda: control.start_user_recovery(DEV_ID), errno.EBUSY)
    told(errno.EINVAL, lambda: control.start_user_recovery(DEV_ID), "ublk START_USER_RECOVERY of device 48: ")
    lab.server().expect("live")


def test_start_user_recovery_of_a_device_made_without_it_is_told_einval(lab: Lab, control: Control) -> None:
    info = control.add(DEV_ID, DEPTH, MAX_IO, MARK, flags=0)
    assert plan(info, MARK) is Plan.FOREIGN
    told(errno.EINVAL, lambda: control.start_user_recovery(DEV_ID), "ublk START_USER_RECOVERY of device 48: ")


def test_commands_for_a_missing_device_are_told_enodev(control: Control) -> None:
    assert control.find(DEV_ID) is None
    commands: list[Callable[[int], object]] = [
        control.info,
        control.get_params,
        control.delete,
        control.delete_async,
        control.stop,
        control.start_user_recovery,
        lambda dev_id: control.start(dev_id, 1),
        lambda dev_id: control.end_user_recovery(dev_id, 1),
        lambda dev_id: control.set_params(dev_id, PARAMS),
    ]
    for command in commands:
        told(errno.ENODEV, lambda command=command: command(DEV_ID), "ublk [A-Z_0-9]+ of device 48: ")  # type: ignore[misc]
    told(errno.ENOENT, lambda: QueueDevice(DEV_ID, DEPTH), "No such file")


def test_the_char_device_opens_once(lab: Lab) -> None:
    lab.live()
    told(errno.EBUSY, lambda: QueueDevice(DEV_ID, DEPTH), "Device or resource busy")


def test_info_gives_back_what_was_added(lab: Lab, control: Control) -> None:
    server = lab.live()
    info = control.info(DEV_ID)
    assert (info.dev_id, info.depth, info.max_io_bytes, info.hw_queues) == (DEV_ID, DEPTH, MAX_IO, 1)
    assert (info.state, info.pid, info.mark) == (DeviceState.LIVE, server.pid, MARK)
    assert info.flags & RECOVERABLE == RECOVERABLE
    assert control.get_params(DEV_ID) == PARAMS
    assert plan(info, MARK + 1) is Plan.FOREIGN


def test_features_include_what_we_need(control: Control) -> None:
    assert Feature.USER_RECOVERY | Feature.USER_RECOVERY_REISSUE | Feature.CMD_IOCTL_ENCODE in control.features()


def test_a_taken_id_is_told_eexist_and_a_started_device_takes_no_parameters(lab: Lab, control: Control) -> None:
    lab.live()
    told(errno.EEXIST, lambda: control.add(DEV_ID, DEPTH, MAX_IO, 0), "ublk ADD_DEV of device 48: ")
    told(errno.EACCES, lambda: control.set_params(DEV_ID, PARAMS), "ublk SET_PARAMS of device 48: ")
    told(errno.EEXIST, lambda: control.start(DEV_ID, os.getpid()), "ublk START_DEV of device 48: ")
    told(
        errno.EBUSY,
        lambda: control.end_user_recovery(DEV_ID, os.getpid()),
        "ublk END_USER_RECOVERY of device 48: ",
    )


def test_a_block_size_above_the_page_is_told_einval(lab: Lab, control: Control) -> None:
    control.add(DEV_ID, DEPTH, MAX_IO, MARK)
    control.set_params(DEV_ID, DeviceParams(SIZE, mmap.PAGESIZE, MAX_IO))
    too_large = DeviceParams(SIZE, 2 * mmap.PAGESIZE, MAX_IO)
    told(errno.EINVAL, lambda: control.set_params(DEV_ID, too_large), "ublk SET_PARAMS of device 48: ")


def test_a_command_that_does_not_end_is_told_etimedout_and_closes_the_control(lab: Lab, control: Control) -> None:
    control.add(DEV_ID, DEPTH, MAX_IO, MARK)
    control.set_params(DEV_ID, PARAMS)
    impatient = Control(timeout_s=0.05)
    told(errno.ETIMEDOUT, lambda: impatient.start(DEV_ID, os.getpid()), "io_uring: no completion in 0.05 s")
    with pytest.raises(Gone, match="ublk control: closed"):
        impatient.info(DEV_ID)


# -- partitions, stop, removal -------------------------------------------------------------------------------


def write_partition_table(shared: Shared) -> None:
    first, blocks = 16, 64  # in logical blocks
    entry = bytes([0, 0, 0, 0, 0x83, 0, 0, 0]) + first.to_bytes(4, "little") + blocks.to_bytes(4, "little")
    shared.disk[:512] = bytes(446) + entry + bytes(48) + b"\x55\xaa"


def partitions() -> list[str]:
    return [entry.name for entry in Path(f"/sys/block/ublkb{DEV_ID}").glob(f"ublkb{DEV_ID}p*")]


def test_start_reads_nothing_and_scans_no_partitions(lab: Lab) -> None:
    write_partition_table(lab.shared)
    lab.live()
    fd = opened()
    told(errno.EINVAL, lambda: fcntl.ioctl(fd, BLKRRPART), "Invalid argument")
    os.close(fd)
    assert partitions() == []
    if not Path("/run/udev/control").exists():  # udev may read a new disk
        assert lab.shared["reads"] == 0


def test_with_the_capability_start_would_have_scanned(lab: Lab) -> None:
    write_partition_table(lab.shared)
    lab.server(trusted=True).expect("live")
    assert partitions() == [f"ublkb{DEV_ID}p1"]
    assert lab.shared["reads"] > 0


def test_stop_ends_the_servers_fetches_and_leaves_a_dead_device(lab: Lab, control: Control) -> None:
    server = lab.live()
    control.stop(DEV_ID)
    server.expect("stopped")
    assert server.wait() == 0
    assert (control.info(DEV_ID).state, control.info(DEV_ID).pid) == (DeviceState.DEAD, -1)
    assert not os.path.exists(DISK)
    control.stop(DEV_ID)
    control.delete(DEV_ID)
    assert control.find(DEV_ID) is None


def test_waiting_io_fails_with_eio_when_a_device_without_server_is_removed(lab: Lab, control: Control) -> None:
    server = lab.live()
    lab.shared["parked"] = 1
    reader = lab.child(read_whole_disk)
    server.expect("holding 1")
    server.kill()
    control.delete_async(DEV_ID)
    assert "OSError: [Errno 5]" in reader.expect("failed: ")


def test_async_delete_returns_while_the_disk_is_held_open_and_the_id_is_free_after(lab: Lab, control: Control) -> None:
    server = lab.live()
    fd = opened()
    try:
        server.kill()
        control.delete_async(DEV_ID)
        assert f"ublkc{DEV_ID}" not in devices()
        assert not os.path.exists(DISK)
        told(errno.ENOENT, lambda: control.info(DEV_ID), "ublk GET_DEV_INFO2 of device 48: ")
        told(errno.EEXIST, lambda: control.add(DEV_ID, DEPTH, MAX_IO, 0), "ublk ADD_DEV of device 48: ")
        # Not EIO: del_gendisk sets the size to 0, and a reader that trusts a short read calls this the end.
        assert os.preadv(fd, [mmap.mmap(-1, BLOCK)], 0) == 0
        told(errno.ENOSPC, lambda: write_at(fd, 0, bytes(BLOCK)), "No space left on device")
    finally:
        os.close(fd)
    until(lambda: control.find(DEV_ID) is None, "the id to be free")
    lab.server().expect("live")
