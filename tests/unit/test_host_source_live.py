"""A source as a process of its own, on real lanes: its bytes, its death and successor, the death of its usb."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bus.arena import Arena
from bus.control import ask
from bus.direct import DirectContext, DirectRouter
from bus.envelope import Body, Kind
from bus.lane import LaneServer
from bus.loop import Loop
from bus.runtime import Runtime, Side, boottime_ns, read_record
from common.wire import Op
from host.source.identity import of_file

BLOCK = 4096
SIZE = 64 * BLOCK
SCRIPT = """
import json, sys
from pathlib import Path
from bus.role import Birth, live
from bus.runtime import Runtime, Side
from host.source.role import start
runtime = Runtime(Side.HOST, "live", Path(sys.argv[1]))
live(Birth(runtime, "source.disk", int(sys.argv[2]), json.loads(sys.argv[3])), start)
"""


class Warnings:
    def warning(self, text: str) -> None:
        print(text)


class Usb:
    """One incarnation of usb as the source sees it: a lane and an arena."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.generation = runtime, boottime_ns()
        self.arena = Arena.create(runtime, "usb.source.disk", self.generation, 1 << 20)
        self.loop = Loop()
        self.hellos: list[tuple[int, Body]] = []
        self.completed: dict[int, int] = {}
        self.lane = LaneServer(
            self.loop,
            DirectContext(),
            Warnings(),
            "usb",
            self.generation,
            runtime.endpoint("usb", "data"),
            self._arrived,
            self._message,
        )

    def _arrived(self, role: str, generation: int, hello: Body) -> None:
        self.hellos.append((generation, hello))
        note = {"note": "arena", "owner": "usb.source.disk", "generation": self.generation}
        self.lane.send(role, Kind.NOTE, note)

    def _message(self, role: str, kind: Kind, body: Body) -> None:
        assert kind is Kind.COMPLETIONS
        self.completed.update(dict(body))

    def ask(self, *items: list[int]) -> None:
        assert self.lane.send("source.disk", Kind.REQUESTS, list(items))

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Run the loop until it is so; 20 s at most."""
        deadline = time.monotonic() + 20

        def look() -> None:
            assert time.monotonic() < deadline, f"{what}: not within 20 s; completed: {self.completed}"
            if condition():
                self.loop.stop()

        self.loop.before_wait(look)
        self.loop.every(0.1, lambda: None)
        self.loop._code = None
        self.loop.run()
        self.loop._before_wait.remove(look)

    def die(self) -> None:
        assert isinstance(self.lane.end, DirectRouter)
        self.lane.end.close()


class Bench:
    def __init__(self, base: Path) -> None:
        self.base, self.image = base, base / "disk.img"
        self.image.write_bytes(os.urandom(SIZE))
        self.identity = ""
        self.runtime = Runtime(Side.HOST, "live", base)
        self.runtime.create()
        self.processes: list[subprocess.Popen[bytes]] = []

    def start_source(self, before: str = "") -> "subprocess.Popen[bytes]":
        args = (
            f'{{"name": "disk", "path": "{self.image}", "export_id": 17, "block_size": {BLOCK}, '
            f'"size_bytes": {SIZE}, "read_only": false, "identity": "{self.identity}"}}'
        )
        command = [sys.executable, "-c", before + SCRIPT, str(self.base), str(boottime_ns()), args]
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
        self.processes.append(process)
        return process


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    for process in bench.processes:
        process.kill()
        process.wait()


@pytest.fixture
def usb(bench: Bench) -> Iterator[Usb]:
    usb = Usb(bench.runtime)
    yield usb
    usb.die()


def test_source_says_what_it_has_and_moves_bytes_between_file_and_arena(bench: Bench, usb: Usb) -> None:
    bench.start_source()
    usb.until(lambda: usb.hellos, "HELLO")
    assert usb.hellos[0][1] == {"export_id": 17, "block_size": BLOCK, "size_bytes": SIZE, "read_only": False}
    usb.arena.memory[:BLOCK] = b"w" * BLOCK
    usb.ask([1, Op.WRITE, 0, 5, 1, 0], [2, Op.READ, 8192, 9, 2, 0])
    usb.ask([3, Op.FLUSH, 0, 0, 0, 0])
    usb.until(lambda: len(usb.completed) == 3, "three completions")
    assert usb.completed == {1: 0, 2: 0, 3: 0}
    on_disk = bench.image.read_bytes()
    assert on_disk[5 * BLOCK : 6 * BLOCK] == b"w" * BLOCK
    assert usb.arena.memory[8192 : 8192 + 2 * BLOCK] == on_disk[9 * BLOCK : 11 * BLOCK]


def test_successor_of_a_killed_source_takes_the_lock_and_says_hello(bench: Bench, usb: Usb) -> None:
    first = bench.start_source()
    usb.until(lambda: usb.hellos, "HELLO")
    first.kill()
    first.wait()
    bench.start_source()
    usb.until(lambda: len(usb.hellos) == 2, "HELLO of the successor")
    assert usb.hellos[1][0] > usb.hellos[0][0]
    usb.ask([7, Op.READ, 0, 0, 1, 0])
    usb.until(lambda: usb.completed, "its completion")
    assert usb.arena.memory[:BLOCK] == bench.image.read_bytes()[:BLOCK]


def test_source_goes_on_with_a_new_usb_and_its_new_arena(bench: Bench, usb: Usb) -> None:
    source = bench.start_source()
    usb.until(lambda: usb.hellos, "HELLO")
    usb.ask(*([number, Op.READ, 0, 0, 1, 0] for number in range(1, 100)))
    usb.die()
    second = Usb(bench.runtime)
    second.until(lambda: second.hellos, "HELLO to the new usb")
    second.ask([1, Op.READ, 4096, 3, 1, 0])
    second.until(lambda: second.completed, "its completion")
    assert second.completed == {1: 0}, "sequences of the dead usb must not be completed to this one"
    assert second.arena.memory[4096:8192] == bench.image.read_bytes()[3 * BLOCK : 4 * BLOCK]
    assert not usb.arena.path.exists()
    second.die()
    assert source.poll() is None


def test_source_asked_to_drain_ends_with_status_0(bench: Bench, usb: Usb) -> None:
    source = bench.start_source()
    usb.until(lambda: usb.hellos, "HELLO")
    source.send_signal(signal.SIGTERM)
    assert source.wait(10) == 0


def test_source_tells_its_status(bench: Bench, usb: Usb) -> None:
    source = bench.start_source()
    usb.until(lambda: usb.hellos, "HELLO")
    status = ask(bench.runtime, "source.disk", "status")
    assert (status["path"], status["state"], status["running"], status["pid"]) == (
        str(bench.image),
        "live",
        0,
        source.pid,
    )


def test_second_source_for_the_same_file_ends_as_one_that_can_never_work(bench: Bench, usb: Usb) -> None:
    bench.start_source()
    usb.until(lambda: usb.hellos, "HELLO")
    bench.runtime.record_path("source.disk").unlink()  # as another instance's would be: its own name, the same file
    second = bench.start_source()
    assert second.wait(20) == 20
    assert "already served" in bench.runtime.reason_path("source.disk").read_text()


def test_source_of_a_missing_file_says_so_and_never_works(bench: Bench) -> None:
    bench.image.unlink()
    assert bench.start_source().wait(20) == 20
    reason = bench.runtime.reason_path("source.disk").read_text()
    assert reason == f"{bench.image}: No such file or directory: check the path and its permissions"
    assert read_record(bench.runtime, "source.disk") is not None


FAILING = "import os; os.fdatasync = lambda fd: (_ for _ in ()).throw(OSError(5, 'Input/output error'))"


def test_failed_flush_stays_failed_when_the_source_is_killed_and_its_disk_is_well_again(bench: Bench, usb: Usb) -> None:
    first = bench.start_source(FAILING)
    usb.until(lambda: usb.hellos, "HELLO")
    usb.ask([1, Op.FLUSH, 0, 0, 0, 0])
    usb.until(lambda: 1 in usb.completed, "the failed FLUSH")
    assert usb.completed[1] == errno.EIO
    first.kill()
    first.wait()
    bench.start_source()
    usb.until(lambda: len(usb.hellos) == 2, "HELLO of the successor")
    usb.ask([2, Op.FLUSH, 0, 0, 0, 0], [3, Op.WRITE, 0, 0, 1, 0], [4, Op.READ, 0, 0, 1, 0])
    usb.until(lambda: len(usb.completed) == 4, "three completions")
    assert usb.completed == {1: errno.EIO, 2: errno.EIO, 3: errno.EIO, 4: 0}
    status = ask(bench.runtime, "source.disk", "status")
    assert (status["state"], status["reason"][:25]) == ("failed", "flush: Input/output error")


def test_another_file_in_its_place_is_refused_by_the_successor(bench: Bench, usb: Usb) -> None:
    with bench.image.open("rb") as image:
        bench.identity = of_file(image.fileno())
    first = bench.start_source()
    usb.until(lambda: usb.hellos, "HELLO")
    first.kill()
    first.wait()
    other = bench.image.with_name("other")
    other.write_bytes(bytes(SIZE))
    other.replace(bench.image)
    assert bench.start_source().wait(20) == 20
    assert bench.runtime.reason_path("source.disk").read_text().endswith(": serve it anew, as another disk")


def status(bench: Bench) -> dict[str, object]:
    return dict(ask(bench.runtime, "source.disk", "status"))


def test_bytes_not_flushed_are_known_to_the_successor_of_a_killed_source_and_gone_after_a_flush(
    bench: Bench, usb: Usb
) -> None:
    first = bench.start_source()
    usb.until(lambda: usb.hellos, "HELLO")
    usb.ask([1, Op.WRITE, 0, 5, 2, 0], [2, Op.READ, 0, 9, 1, 0])
    usb.until(lambda: len(usb.completed) == 2, "both completions")
    assert status(bench)["unflushed_bytes"] == 2 * BLOCK
    first.kill()
    first.wait()
    bench.start_source()
    usb.until(lambda: len(usb.hellos) == 2, "HELLO of the successor")
    assert status(bench)["unflushed_bytes"] == 2 * BLOCK
    asked = ask(bench.runtime, "source.disk", "flush")
    usb.until(lambda: status(bench)["flushed"] == asked["asked"], "the flush that a command asked for")
    assert status(bench)["unflushed_bytes"] == 0 and status(bench)["generation"] == asked["generation"]
