"""A source that cannot be killed: its file lies on a file system that is frozen (issue 3, item 4).

A write to such a file waits uninterruptibly (D state), as it does for a disk or a server that has gone away. SIGKILL
takes effect when the wait is over; what it waited with may land then. So until it is dead it has no successor.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bus.runtime import Runtime, Side, living
from common import limits
from tests.e2e.v0_host import await_event
from tools.demo import inside

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
BLOCK, BLOCKS = 4096, 4
IMAGE_BYTES, OTHER_BYTES = 4 << 20, 1 << 20
ROLE = "source.image"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An ext4 of its own, which nobody else waits for when it is frozen."""
    work = tmp_path_factory.mktemp("frozen")
    disk, place = work / "disk", work / "mnt"
    with disk.open("wb") as file:
        file.truncate(4 * IMAGE_BYTES)
    place.mkdir()
    run("mkfs.ext4", "-q", "-F", disk)
    run("mount", "-o", "loop", disk, place)
    yield place
    run("umount", place)


@pytest.fixture(scope="module")
def bench(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[inside.Bench]:
    other = tmp_path_factory.mktemp("other") / "other.img"
    (place / "image.img").write_bytes(bytes(IMAGE_BYTES))
    other.write_bytes(bytes(OTHER_BYTES))
    with inside.both_sides(place / "image.img", other) as both:
        yield both


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, timeout=60)


@contextmanager
def frozen(place: Path) -> Iterator[None]:
    run("fsfreeze", "-f", place)
    try:
        yield
    finally:
        run("fsfreeze", "-u", place)


def content(version: int, number: int) -> bytes:
    return bytes([version, number]) * (BLOCK // 2)


def begin_write(device: str, version: int, number: int) -> "subprocess.Popen[bytes]":
    command = ["dd", f"of={device}", f"bs={BLOCK}", f"seek={number}", "oflag=direct", "conv=notrunc", "iflag=fullblock"]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert writer.stdin is not None
    writer.stdin.write(content(version, number))
    writer.stdin.close()
    return writer


def write(device: str, version: int, *numbers: int) -> None:
    for writer in [begin_write(device, version, number) for number in numbers]:
        assert writer.wait(60) == 0


def row() -> dict[str, Any]:
    """Of our source, as `replug status` has it."""
    [found] = [row for row in inside.status(Side.HOST)["processes"] if row["role"] == ROLE]
    return dict(found)


def threads(pid: int) -> set[str]:
    """The letters of proc_pid_stat(5): those of a process end one by one, its first perhaps long before its last."""
    with contextlib.suppress(OSError):
        stats = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/stat")]
        return {text.rpartition(")")[2].split()[0] for text in stats}
    return set()


def ended(pid: int) -> bool:
    return threads(pid) <= {"Z", "X"}


def stuck_in_a_write(bench: inside.Bench, version: int) -> "tuple[int, list[subprocess.Popen[bytes]]]":
    """Write to every block while the file system is frozen, and kill the source that waits. Returns it, and them."""
    source = living(Runtime(Side.HOST), ROLE)
    assert source is not None
    writers = [begin_write(bench.image_device, version, number) for number in range(BLOCKS)]
    await_event("the source to wait for the frozen file system", lambda: "D" in threads(source.pid))
    os.kill(source.pid, signal.SIGKILL)
    await_event("stuck", lambda: row()["state"] == "stuck", limits.DEATH_S + 30)
    return source.pid, writers


def test_a_killed_source_in_d_state_is_stuck_and_gets_no_successor_until_it_is_dead(
    bench: inside.Bench, place: Path
) -> None:
    write(bench.image_device, 1, *range(BLOCKS))
    with frozen(place):
        pid, writers = stuck_in_a_write(bench, 2)
        told = row()
        assert (told["pid"], told["state"]) == (pid, "stuck")
        assert "does not die" in told["reason"]
        status = inside.status(Side.HOST)
        assert status["state"] == "degraded"
        assert {export["name"]: export["state"] for export in status["exports"]} == {"image": "parked", "other": "live"}
        write(bench.scratch_device, 1, *range(BLOCKS))  # another export does not wait with it
        assert not ended(pid) and row()["pid"] == pid, "nothing has taken its place"
        assert [writer.poll() for writer in writers] == [None] * BLOCKS, "their I/O waits"
    await_event("a successor", lambda: row()["state"] == "running")
    assert row()["pid"] != pid and ended(pid)
    assert [writer.wait(60) for writer in writers] == [0] * BLOCKS
    assert (place / "image.img").read_bytes()[: BLOCKS * BLOCK] == b"".join(content(2, n) for n in range(BLOCKS))


def test_what_it_waited_with_never_lands_over_newer_data(bench: inside.Bench, place: Path) -> None:
    with frozen(place):
        pid, writers = stuck_in_a_write(bench, 3)
    for number, writer in enumerate(writers):
        assert writer.wait(60) == 0
        write(bench.image_device, 4, number)
    assert ended(pid), "whoever could still write is dead before the first of its requests is answered"
    assert (place / "image.img").read_bytes()[: BLOCKS * BLOCK] == b"".join(content(4, n) for n in range(BLOCKS))
