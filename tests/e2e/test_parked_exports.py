"""Parked exports on the real kernel (issue 4, items 1 and 5): a host that rebooted over unflushed writes, ways out.

The host is the tests' own, so that it can be of any boot.
"""

import contextlib
import errno
import mmap
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bus.runtime import Runtime, Side, living
from common import limits
from common.wire import ExportRecord
from common.wire_v1 import ExportFlag, ExportV1
from tests.e2e.v0_host import await_event
from tests.e2e.v1_host import V1Host
from tools.cli.look import look
from tools.demo import inside
from tools.supervise.launch import all_living, await_deaths, kill

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
RECORD = ExportRecord(0x5EED, 4096, 8 << 20)
QUEUE = "queue.00005eed"


class Boots:
    """Hosts of one disk, each of another boot, one at a time."""

    def __init__(self) -> None:
        self.number = 0
        self.host: V1Host | None = None
        self._silent = threading.Event()
        self._heart: threading.Thread | None = None

    def next(self) -> V1Host:
        """Another boot of the host; its hand-shake is done when this returns."""
        self.leave()
        self.number += 1
        self.host = V1Host(RECORD)
        self.host.boot_id = bytes([self.number]) * 16
        await_event("the gadget to answer", self._answers)  # its usb and session may have been killed just now
        self.host.online()
        self._silent.clear()
        self._heart = threading.Thread(target=self._beat, args=(self.host,), daemon=True)
        self._heart.start()
        return self.host

    def _answers(self) -> bool:
        assert self.host is not None
        try:
            self.host.status()
        except OSError:
            return False
        return True

    def _beat(self, host: V1Host) -> None:
        """STATUS, so that the gadget does not take the silence for a lost link."""
        while not self._silent.wait(0.5):
            with contextlib.suppress(OSError):
                host.status()

    def leave(self) -> None:
        if self.host is not None and self._heart is not None:
            self._silent.set()
            self._heart.join()
            self.host.leave()
            self.host = None


@pytest.fixture(scope="module")
def gadget() -> Iterator[Runtime]:
    up = inside.replug("gadget", "up", "--serial", "test1")
    assert up.returncode == 0, up.stderr
    yield Runtime(Side.GADGET)
    inside.replug("gadget", "down", "--force")
    inside._see_nothing_left()


@pytest.fixture(scope="module")
def boots(gadget: Runtime) -> Iterator[Boots]:
    boots = Boots()
    yield boots
    boots.leave()


@pytest.fixture
def readers() -> Iterator[ThreadPoolExecutor]:
    """A read that waits for ever must not hide what failed: nobody waits for it, `gadget down --force` ends it."""
    pool = ThreadPoolExecutor()
    yield pool
    pool.shutdown(wait=False)


def export() -> dict[str, Any]:
    return next(iter(look(Runtime(Side.GADGET))["exports"]), {})


def await_export(what: str, **fields: Any) -> dict[str, Any]:
    now: dict[str, Any] = {}

    def there() -> bool:
        nonlocal now
        now = export()
        return all(now.get(name) == value for name, value in fields.items())

    try:
        await_event(what, there)
    except AssertionError as error:
        raise AssertionError(f"{error}, it is {now}") from None
    return now


def opened() -> int:
    """The device, O_DIRECT: what is acknowledged has been at the host, and nothing else flushes."""

    def attempt() -> int | None:
        try:
            return os.open(export()["device"], os.O_RDWR | os.O_DIRECT)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENXIO):
                raise
            return None

    fd = await_event("the device", attempt)
    assert fd is not None
    return fd


def write(fd: int, byte: int) -> None:
    buffer = mmap.mmap(-1, 4096)
    buffer.write(bytes([byte]) * 4096)
    assert os.pwritev(fd, [buffer], 0) == 4096


def read(fd: int) -> bytes:
    buffer = mmap.mmap(-1, 4096)
    assert os.preadv(fd, [buffer], 0) == 4096
    return buffer[:]


def submitted(readers: ThreadPoolExecutor, fd: int) -> Future[bytes]:
    """A read that the queue has and that waits. Our own look for partitions may be waiting there already."""
    before = export()["in_flight"]
    waiting: Future[bytes] = readers.submit(read, fd)
    await_event("the read to wait", lambda: export().get("in_flight", 0) > before)
    return waiting


def kill_all_that_know(gadget: Runtime) -> None:
    """kill -9 of usb, session and queue at once, and wait for their successors."""
    roles = ("usb", "session", QUEUE)
    before = {role: living(gadget, role) for role in roles}
    for record in before.values():
        assert record is not None
        os.kill(record.pid, signal.SIGKILL)

    def replaced() -> bool:
        now = {role: living(gadget, role) for role in roles}
        return all(now[role] is not None and now[role] != before[role] for role in roles)

    await_event("successors of usb, session and queue", replaced)


def test_status_counts_what_is_acknowledged_and_not_flushed(boots: Boots) -> None:
    boots.next()
    fd = opened()
    write(fd, 1)
    write(fd, 2)
    assert export()["unflushed_bytes"] == 8192
    os.fdatasync(fd)
    assert export()["unflushed_bytes"] == 0
    os.close(fd)


def test_a_host_that_rebooted_over_flushed_writes_goes_on(boots: Boots) -> None:
    boots.next()
    fd = opened()
    assert len(read(fd)) == 4096
    os.close(fd)


def test_a_host_that_rebooted_over_unflushed_writes_is_parked_although_all_that_knew_were_killed(
    gadget: Runtime, boots: Boots, readers: ThreadPoolExecutor
) -> None:
    fd = opened()
    write(fd, 3)
    kill_all_that_know(gadget)
    boots.next()
    parked = await_export("the export to be parked", state="parked", needs_operator=True)
    assert "has rebooted over 4.0K acknowledged and not flushed" in parked["reason"]
    assert inside.replug("status", "--side", "gadget").returncode == 1
    waiting = submitted(readers, fd)
    kill_all_that_know(gadget)  # whoever comes next knows it too
    await_export("the export to be parked still", state="parked", needs_operator=True)
    await_event("the read to wait with the new queue", lambda: export().get("in_flight", 0) > 0)
    assert not waiting.done()
    resumed = inside.replug("export", "resume", "disk")
    assert resumed.returncode == 0, resumed.stderr
    assert waiting.result(60) == bytes(4096), "what the new host has"
    assert await_export("the export to be live", state="live")["unflushed_bytes"] == 0
    os.close(fd)


def test_what_is_not_held_back_cannot_be_resumed_or_failed(boots: Boots) -> None:
    for action in ("resume", "fail"):
        refused = inside.replug("export", action, "disk")
        assert refused.returncode == 2 and refused.stderr.startswith("replug: disk: live"), refused.stderr
    assert inside.replug("export", "fail", "nobody").returncode == 2


def test_a_parked_export_that_is_failed_ends_its_io_and_gets_a_new_device_only_when_resumed(
    gadget: Runtime, boots: Boots, readers: ThreadPoolExecutor
) -> None:
    fd = opened()
    write(fd, 4)
    boots.next()
    device = await_export("the export to be parked", state="parked", needs_operator=True)["device"]
    waiting = submitted(readers, fd)
    failed = inside.replug("export", "fail", device)
    assert failed.returncode == 0, failed.stderr
    with pytest.raises(OSError) as caught:
        waiting.result(60)
    assert caught.value.errno == errno.EIO
    assert not Path("/sys/block", Path(device).name).exists()
    boots.next()
    assert "by the operator" in await_export("the export to stay failed", state="failed")["reason"]
    resumed = inside.replug("export", "resume", "disk")
    assert resumed.returncode == 0, resumed.stderr
    await_export("the export to be live", state="live")
    assert os.preadv(fd, [mmap.mmap(-1, 4096)], 0) == 0, "who had the old device open has nothing"
    os.close(fd)
    fd = opened()
    assert read(fd) == bytes(4096)
    os.close(fd)


def test_what_the_host_flushed_before_it_was_unplugged_is_there_after_its_reboot(boots: Boots) -> None:
    fd = opened()
    write(fd, 5)
    assert export()["unflushed_bytes"] == 4096
    host = boots.host
    assert host is not None
    for flags in (ExportFlag.EJECTED, ExportFlag.EJECTED | ExportFlag.FLUSHED):
        host.exports = (ExportV1(RECORD, flags, name="disk"),)
        host.announce()
        await_event("the ejection to be in force", lambda: host.status().active)
    ejected = await_export("the export to be ejected", state="parked", unflushed_bytes=0)
    assert ejected["reason"] == "ejected at the host, everything is flushed there"
    boots.next()
    assert read(fd) == bytes(4096)
    os.close(fd)


def test_a_gadget_that_lost_its_runtime_directory_takes_no_host_for_one_that_has_everything(
    gadget: Runtime, boots: Boots
) -> None:
    """The devices outlive it, and with it goes who knows what was not flushed: a reboot meanwhile would be missed."""
    fd = opened()
    write(fd, 6)
    boots.leave()
    everyone = all_living(gadget)
    kill(everyone)
    assert await_deaths(everyone, limits.DEATH_S)
    for entry in gadget.root.iterdir():
        if not entry.is_mount():  # FunctionFS
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    up = inside.replug("gadget", "up", "--serial", "test1")
    assert up.returncode == 0, up.stderr
    boots.next()
    parked = await_export("the export to be parked", state="parked", needs_operator=True)
    assert parked["reason"].startswith("the runtime directory was lost")
    resumed = inside.replug("export", "resume", "disk")
    assert resumed.returncode == 0, resumed.stderr
    await_export("the export to be live", state="live")
    assert read(fd) == bytes(4096), "what this host has"
    boots.next()
    await_export("the export to be live", state="live")
    assert read(fd) == bytes(4096), "once accepted, every later boot is told by the ledger again"
    os.close(fd)


def test_a_limit_fails_an_export_that_is_parked_for_longer_although_the_session_was_killed(
    gadget: Runtime, boots: Boots, readers: ThreadPoolExecutor
) -> None:
    limited = inside.replug("export", "limit", "disk", "3s")
    assert limited.returncode == 0, limited.stderr
    fd = opened()
    boots.leave()
    waiting: Future[bytes] = readers.submit(read, fd)
    record = living(gadget, "session")
    assert record is not None
    os.kill(record.pid, signal.SIGKILL)
    with pytest.raises(OSError) as caught:
        waiting.result(60)
    assert caught.value.errno == errno.EIO
    assert "limit of 3 s" in await_export("the export to be failed", state="failed")["reason"]
    os.close(fd)
