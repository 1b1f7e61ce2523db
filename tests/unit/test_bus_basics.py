"""Names, records, envelopes, arenas, fd messages: the small parts of the bus."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import fds, runtime
from bus.arena import Arena, slot_bytes
from bus.envelope import Envelope, Kind
from bus.loop import Loop
from bus.runtime import Runtime, Side
from common import limits
from common.errors import Gone, Refused, WireError


@pytest.fixture
def home() -> Iterator[Runtime]:
    """Not in tmp_path: that is often too long for the name of a socket."""
    place = Runtime(Side.GADGET, "default", Path(tempfile.mkdtemp(prefix="rp-")) / "r")
    place.create()
    yield place
    shutil.rmtree(place.root.parent.parent, ignore_errors=True)


FIRST_THREAD_ENDS = """
import ctypes, os, platform, sys, threading
threading.Thread(target=sys.stdin.read).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[platform.machine()], 0)  # exit(2): of this thread alone
"""


def test_a_process_lives_until_its_last_thread_has_ended() -> None:
    """As one that was killed and has a thread in D state: it still holds what is its own, and may yet write."""
    process = subprocess.Popen([sys.executable, "-c", FIRST_THREAD_ENDS], stdin=subprocess.PIPE)
    born, deadline = runtime.start_ticks(process.pid), time.monotonic() + 20
    while runtime.run_state(process.pid) != "Z":
        assert time.monotonic() < deadline, "waited 20 s for the end of its first thread"
        time.sleep(0.01)
    assert born is not None and runtime.start_ticks(process.pid) == born
    assert process.stdin is not None
    process.stdin.close()
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        assert time.monotonic() < deadline, "waited 20 s for its death"
        time.sleep(0.01)
    assert runtime.start_ticks(process.pid) is None, "a zombie is dead"
    process.wait()


def test_runtime_directory_is_for_its_user_only(home: Runtime) -> None:
    assert home.root.stat().st_mode & 0o777 == 0o700
    home.create()
    home.remove()
    assert not home.root.exists() and not home.root.parent.exists()


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", "a b", "a" * (limits.MAX_NAME + 1)])
def test_a_name_that_could_leave_its_directory_is_refused(name: str) -> None:
    with pytest.raises(Refused, match="not a name"):
        runtime.check_name(name)


def test_the_longest_name_is_taken() -> None:
    assert runtime.check_name("a" * limits.MAX_NAME)


def test_a_socket_path_too_long_for_the_kernel_is_refused(tmp_path: Path) -> None:
    place = Runtime(Side.HOST, "default", tmp_path / ("x" * 90))
    with pytest.raises(Refused, match="too long"):
        place.endpoint("usb", "control")


def test_a_name_has_one_owner_and_is_free_after_its_death(home: Runtime) -> None:
    code = (
        "import sys,pathlib; from bus.runtime import *\n"
        f"take_name(Runtime(Side.GADGET,'default',pathlib.Path({str(home.base)!r})),'usb',5)\n"
        "print('taken',flush=True); sys.stdin.read()"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert owner.stdout is not None and owner.stdout.readline() == b"taken\n"
        with pytest.raises(Gone, match="held by another process"):
            runtime.take_name(home, "usb", 6)
        record = runtime.living(home, "usb")
        assert record is not None and (record.pid, record.generation) == (owner.pid, 5)
    finally:
        owner.kill()
        owner.communicate()
    assert runtime.living(home, "usb") is None
    os.close(runtime.take_name(home, "usb", 6))


def test_a_record_of_a_reused_pid_is_nobody(home: Runtime) -> None:
    os.close(runtime.take_name(home, "usb", 6))
    path = home.record_path("usb")
    path.write_text(path.read_text().replace('"start_ticks": ', '"start_ticks": 1'))
    assert runtime.living(home, "usb") is None


def test_torn_record_is_nobody(home: Runtime) -> None:
    home.record_path("usb").write_text('{"role": "usb", "pi')
    assert runtime.read_record(home, "usb") is None


def test_a_reason_is_read_once(home: Runtime) -> None:
    runtime.write_reason(home, "usb", "the ground\nmoved")
    assert runtime.take_reason(home, "usb") == "the ground moved"
    assert runtime.take_reason(home, "usb") is None


def test_envelope_survives_the_wire() -> None:
    envelope = Envelope(Kind.REQUESTS, "queue.a", 1 << 62, 7, [[1, 2, 3], None, "x", b"y", {"k": True}])
    assert Envelope.decode(envelope.encode()) == envelope


@given(data=st.binary(max_size=200))
def test_any_bytes_are_an_envelope_or_the_one_error(data: bytes) -> None:
    with pytest.raises(WireError):
        Envelope.decode(data)


@pytest.mark.parametrize(
    "fields",
    [
        ["note", "a", 0, 0],
        ["nonsense", "a", 0, 0, None],
        ["note", "", 0, 0, None],
        ["note", "a" * 65, 0, 0, None],
        ["note", "a", -1, 0, None],
        ["note", "a", True, 0, None],
        ["note", "a", 0, 1 << 63, None],
        [["note"], "a", 0, 0, None],
    ],
)
def test_an_envelope_with_a_wrong_field_is_refused(fields: list[object]) -> None:
    with pytest.raises(WireError):
        Envelope.decode(msgpack.packb(fields))


def test_an_envelope_at_the_limit_passes_and_one_past_it_does_not() -> None:
    overhead = len(Envelope(Kind.NOTE, "a", 1, 1, b"x" * 40000).encode()) - 40000
    fits = Envelope(Kind.NOTE, "a", 1, 1, b"x" * (limits.MAX_ENVELOPE - overhead))
    assert Envelope.decode(fits.encode()) == fits
    with pytest.raises(WireError, match="more than"):
        Envelope(Kind.NOTE, "a", 1, 1, b"x" * (limits.MAX_ENVELOPE - overhead + 1)).encode()
    with pytest.raises(WireError, match="more than"):
        Envelope.decode(fits.encode() + b"x")


def test_both_ends_of_an_arena_see_the_same_bytes(home: Runtime) -> None:
    ours = Arena.create(home, "queue.a", 5, 8192)
    theirs = Arena.attach(home, "queue.a", 5)
    ours.memory[4096:4100] = b"data"
    assert bytes(theirs.memory[4096:4100]) == b"data"
    assert theirs.size_bytes == 8192


def test_a_new_generation_has_a_fresh_arena_and_the_old_one_lives_only_where_it_is_mapped(home: Runtime) -> None:
    old = Arena.create(home, "queue.a", 5, 4096)
    old.memory[:3] = b"old"
    new = Arena.create(home, "queue.a", 6, 4096)
    assert bytes(new.memory[:3]) == b"\0\0\0"
    assert bytes(old.memory[:3]) == b"old"
    with pytest.raises(Gone, match="was replaced"):
        Arena.attach(home, "queue.a", 5)


def test_a_slot_has_room_for_whole_packets_and_whole_pages() -> None:
    assert slot_bytes(128 * 1024) == 128 * 1024
    assert slot_bytes(512) == 4096


def test_descriptors_travel_and_are_close_on_exec() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reader, writer = os.pipe()
    fds.send(left, {"order": "keep"}, (writer,))
    message, received = fds.receive(right)
    assert message == {"order": "keep"} and len(received) == 1
    assert not os.get_inheritable(received[0])
    os.write(received[0], b"x")
    assert os.read(reader, 1) == b"x"
    left.close()
    with pytest.raises(Gone, match="end of file"):
        fds.receive(right)
    with pytest.raises(Gone):
        fds.send(right, {})


def test_descriptors_of_a_malformed_message_are_closed() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = len(os.listdir("/proc/self/fd"))
    reader, writer = os.pipe()
    socket.send_fds(left, [b"\xc1"], [writer])
    os.close(writer)
    with pytest.raises(WireError):
        fds.receive(right)
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert len(os.listdir("/proc/self/fd")) == before


def beats_of(head_start_s: float, interval_s: float) -> list[float]:
    """When, by the monotonic clock, a loop beat that began so much after now."""
    loop, moments = Loop(), list[float]()

    def beat() -> None:
        moments.append(loop.now())
        if len(moments) == 4:
            loop.stop()

    loop.after(head_start_s, lambda: loop.beat(interval_s, beat))
    loop.run()
    return moments


def test_beats_of_all_loops_come_at_the_same_moments() -> None:
    """Whoever hears many beats is to be woken once for all of them (tests/chaos/test_idle.py counts)."""
    interval_s = 0.2
    for head_start_s in (0.03, 0.08, 0.13, 0.18):
        # A busy machine makes some of them late, but never early, and not all of them.
        assert min(moment % interval_s for moment in beats_of(head_start_s, interval_s)) < 0.04


def test_threads_that_end_between_two_looks_leave_a_dead_process_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen at `gadget down` of 32 exports: ESRCH from the stat of a thread that had just gone."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # a zombie
    real = Path.read_text

    def gone(path: Path) -> str:
        if "/task/" in str(path):
            raise ProcessLookupError(3, "No such process")
        return real(path)

    monkeypatch.setattr(Path, "read_text", gone)
    monkeypatch.setattr(Path, "exists", lambda path: bool(gone(path)))  # what a glob asks
    try:
        assert runtime.start_ticks(pid) is None
    finally:
        os.waitpid(pid, 0)
