"""Errors of sources as the gadget's users see them (issue 4, item 2): that errno, that I/O, and nothing else disturbed.

Both sides are replug's, all exports of one host: somebody reads and writes an honest one all the while.
"""

import contextlib
import errno
import mmap
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bus.runtime import Runtime, Side, living
from common.log import human
from tests.e2e.hostile import Watch
from tests.e2e.test_exports import STARTED_S
from tests.unit.test_source_http import Server
from tools.demo import inside

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
MIB, BLOCK = 1 << 20, 4096
SIZE = 4 * MIB
FAULTS = {"EIO": "read", "ENOSPC": "write", "ETIMEDOUT": "read", "ENODATA": "read"}
GADGET, HOST = Runtime(Side.GADGET), Runtime(Side.HOST)


class Disks:
    """Both sides up, with exports that can be made to fail; `devices` by name of the export."""

    def __init__(self, work: Path, server: Server) -> None:
        self.work, self.server = work, server
        self.small, self.narrow = work / "small", work / "narrow"
        self.devices: dict[str, str] = {}
        (work / "switch").mkdir()
        for place in (self.small, self.narrow):
            place.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=True)
        for path in (*map(self.image, ("good", "cut", "below")), *map(self.image, FAULTS), self.image("flush")):
            path.write_bytes(os.urandom(SIZE))
        with (self.small / "full.img").open("wb") as sparse:
            sparse.truncate(SIZE)

    def image(self, name: str) -> Path:
        return self.work / f"{name}.img"

    def switch(self, name: str) -> Path:
        return self.work / "switch" / name

    def sources(self) -> list[str]:
        def fault(name: str, error: str, op: str) -> str:
            return f"{name}=fault:{self.switch(name)}?error={error}&ops={op}&over={self.image(name)}"

        return [
            *(str(self.image(name)) for name in ("good", "cut")),
            *(fault(name, name, op) for name, op in FAULTS.items()),
            fault("flush", "EIO", "flush"),
            str(self.small / "full.img"),
            f"overlay=overlay:{self.narrow}/map?over={self.image('below')}",
            f"web={self.server.url}",
        ]

    def find(self) -> bool:
        exports = {e["name"]: e for e in inside.status(Side.GADGET)["exports"] if e["state"] == "live"}
        self.devices = {name: e["device"] for name, e in exports.items()}
        return len(self.devices) == len(self.sources()) and all(map(_openable, self.devices.values()))


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disks]:
    server = Server()
    server.bytes = os.urandom(SIZE)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    work = tmp_path_factory.mktemp("disks")
    disks = Disks(work, server)
    serve = None
    try:
        up = inside.replug("gadget", "up")
        assert up.returncode == 0, up.stderr
        with (work / "serve.log").open("w") as log:
            command = [sys.executable, "-m", "tools.cli", "host", "serve", *disks.sources()]
            serve = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        limit_s = inside.DEADLINE_S + STARTED_S * len(disks.sources())
        inside.wait_for("all devices to be live", disks.find, 0.5, limit_s)
        yield disks
    finally:
        print((work / "serve.log").read_text()[-2000:])
        if serve is not None:
            serve.send_signal(signal.SIGINT)
            serve.wait(60)
        inside.replug("gadget", "down", "--force")
        subprocess.run(["umount", disks.small, disks.narrow], check=True)
        server.shutdown()
    inside._see_nothing_left()


@pytest.fixture
def honest(disks: Disks) -> Iterator[None]:
    """Meanwhile the good disk is read and written without an error, and no process of either side is another after."""
    over, done, faults = threading.Event(), [0], list[str]()
    watches = [Watch(GADGET, "usb"), Watch(HOST, "usb")]

    def run() -> None:
        model = bytearray(disks.image("good").read_bytes()[:MIB])
        try:
            with Disk(disks.devices["good"]) as disk:
                while not over.is_set():
                    at = done[0] % 64 * 16384
                    if done[0] % 2:
                        model[at : at + 8192] = os.urandom(8192)
                        disk.write(at, model[at : at + 8192])
                    assert disk.read(at, 16384) == model[at : at + 16384], f"other bytes at {at}"
                    done[0] += 1
        except (OSError, AssertionError) as error:
            faults.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    inside.wait_for("the first honest I/O", lambda: done[0] or faults)
    yield
    at = done[0]
    inside.wait_for("more honest I/O", lambda: done[0] > at + 4 or faults)
    over.set()
    thread.join(60)
    assert not faults and not thread.is_alive(), faults
    for watch in watches:
        watch.unharmed()
        assert watch.refused() == {}, "a source's error is no broken protocol"


class Disk:
    """A device, past the page cache."""

    def __init__(self, device: str) -> None:
        read_only = Path("/sys/block", Path(device).name, "ro").read_text().strip() == "1"
        self._fd = os.open(device, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_DIRECT)

    def __enter__(self) -> "Disk":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def read(self, offset: int, size_bytes: int) -> bytes:
        with mmap.mmap(-1, size_bytes) as buffer:
            assert os.preadv(self._fd, [buffer], offset) == size_bytes
            return buffer[:]

    def write(self, offset: int, data: bytes | bytearray) -> None:
        with mmap.mmap(-1, len(data)) as buffer:
            buffer[:] = bytes(data)
            assert os.pwritev(self._fd, [buffer], offset) == len(data)

    def flush(self) -> None:
        os.fsync(self._fd)


def _openable(device: str) -> bool:
    """The node comes a moment before its disk."""
    with contextlib.suppress(OSError):
        os.close(os.open(device, os.O_RDONLY))
        return True
    return False


def error_of(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as raised:
        call()
    return raised.value.errno


def told_at_source(name: str) -> str:
    return "\n".join(human(line) for line in HOST.log_path(f"source.{name}").read_text().splitlines())


@pytest.mark.parametrize("name", FAULTS)
def test_the_gadget_sees_exactly_the_errno_of_the_source_while_it_lasts(disks: Disks, honest: None, name: str) -> None:
    data = disks.image(name).read_bytes()[:8192]
    with Disk(disks.devices[name]) as disk:
        act: Callable[[], object] = lambda: disk.read(0, 8192)  # noqa: E731
        if FAULTS[name] == "write":
            act = lambda: disk.write(0, data)  # noqa: E731
        act()
        disks.switch(name).touch()
        assert error_of(act) == getattr(errno, name)
        disks.switch(name).unlink()
        act()
        assert disk.read(0, 8192) == data


def test_a_full_file_system_under_an_image_is_enospc_and_what_was_there_stays(disks: Disks, honest: None) -> None:
    written: dict[int, bytes] = {}
    with Disk(disks.devices["full"]) as disk:

        def fill() -> None:
            for at in range(0, SIZE, 65536):
                data = os.urandom(65536)
                disk.write(at, data)
                written[at] = data

        assert error_of(fill) == errno.ENOSPC
        assert 4 < len(written) <= 16, "a tmpfs of 1 MiB"
        assert all(disk.read(at, 65536) == data for at, data in written.items())
        subprocess.run(["mount", "-o", "remount,size=8m", disks.small], check=True)
        disk.write(max(written) + 65536, written[0])
        assert all(disk.read(at, 65536) == data for at, data in written.items())


def test_an_image_cut_short_under_us_is_eio_behind_the_cut_and_itself_before_it(disks: Disks, honest: None) -> None:
    before = disks.image("cut").read_bytes()
    os.truncate(disks.image("cut"), SIZE // 2)
    with Disk(disks.devices["cut"]) as disk:
        assert error_of(lambda: disk.read(SIZE // 2, BLOCK)) == errno.EIO
        assert error_of(lambda: disk.read(SIZE // 2 - BLOCK, 2 * BLOCK)) == errno.EIO
        assert error_of(lambda: disk.write(SIZE - BLOCK, bytes(BLOCK))) == errno.EIO, "else the rest would be zeroes"
        assert error_of(lambda: disk.read(SIZE // 2, BLOCK)) == errno.EIO
        assert disk.read(SIZE // 2 - 65536, 65536) == before[SIZE // 2 - 65536 : SIZE // 2]


def test_a_web_object_that_breaks_off_or_is_replaced_fails_and_is_never_a_mix(disks: Disks, honest: None) -> None:
    """ECONNRESET and ESTALE travel to the gadget, where the block layer has no name for them: its users see EIO."""
    server, before = disks.server, disks.server.bytes
    with Disk(disks.devices["web"]) as disk:
        server.mood, server.ill = "reset", 1000
        assert error_of(lambda: disk.read(MIB, BLOCK)) == errno.EIO
        assert f"errno {errno.ECONNRESET}" in told_at_source("web")
        server.ill = 0
        assert disk.read(MIB, BLOCK) == before[MIB : MIB + BLOCK]
        server.bytes, server.etag = bytes(SIZE), '"two"'
        assert error_of(lambda: disk.read(2 * MIB, BLOCK)) == errno.EIO
        assert f"errno {errno.ESTALE}" in told_at_source("web")


def test_an_overlay_on_a_full_file_system_is_enospc_and_goes_on_once_there_is_room(disks: Disks, honest: None) -> None:
    """Its map is on that file system too: nothing of what was acknowledged may go with what did not fit."""
    below = disks.image("below").read_bytes()
    written: dict[int, bytes] = {}
    with Disk(disks.devices["overlay"]) as disk:

        def fill() -> None:
            for at in range(0, SIZE, 65536):
                data = os.urandom(65536)
                disk.write(at, data)
                disk.flush()
                written[at] = data

        assert error_of(fill) == errno.ENOSPC
        assert written, "a tmpfs of 1 MiB"
        disk.flush()
        subprocess.run(["mount", "-o", "remount,size=8m", disks.narrow], check=True)
        disk.write(max(written) + 65536, written[0])
        disk.flush()
        assert all(disk.read(at, 65536) == data for at, data in written.items())
        assert disk.read(SIZE - 65536, 65536) == below[-65536:]
    assert disks.image("below").read_bytes() == below


def test_a_failed_flush_is_eio_and_that_export_takes_no_write_any_more(disks: Disks, honest: None) -> None:
    """What was acknowledged may be lost: nothing after it may look as if all was well."""
    with Disk(disks.devices["flush"]) as disk:
        disk.write(0, bytes(BLOCK))
        disks.switch("flush").touch()
        assert error_of(disk.flush) == errno.EIO
        disks.switch("flush").unlink()
        assert error_of(lambda: disk.write(BLOCK, bytes(BLOCK))) == errno.EIO
        assert error_of(disk.flush) == errno.EIO
        assert disk.read(0, BLOCK) == bytes(BLOCK)
    states = {export["name"]: export["state"] for export in inside.status(Side.HOST)["exports"]}
    assert states.pop("flush") == "failed" and set(states.values()) == {"live"}


def test_a_failed_export_stays_failed_when_its_source_is_killed(disks: Disks) -> None:
    """The successor's fdatasync would succeed: the kernel has dropped the pages, and marked them clean."""
    source = living(HOST, "source.flush")
    assert source is not None
    os.kill(source.pid, signal.SIGKILL)
    with Disk(disks.devices["flush"]) as disk:
        assert error_of(lambda: disk.write(BLOCK, bytes(BLOCK))) == errno.EIO
        assert error_of(disk.flush) == errno.EIO
        assert disk.read(0, BLOCK) == bytes(BLOCK)
    successor = living(HOST, "source.flush")
    assert successor is not None and successor.pid != source.pid
    [state] = [e["state"] for e in inside.status(Side.HOST)["exports"] if e["name"] == "flush"]
    assert state == "failed"
