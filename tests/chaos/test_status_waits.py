"""`replug status` tells the truth while exports wait: for a cable, a host, another disk, a process that cannot end.

As test_status_truth, of which this is the rest: real processes over modelled kernels, each fault held open for
the look.
"""

import ctypes
import errno
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bus.control import ask
from bus.runtime import Runtime, Side, living
from tests.chaos.truth import both_well, meanwhile, now, recent, row, seen, well
from tests.native.__main__ import images
from tests.native.bench import Bench, await_, bench
from tests.native.disk import ModelDisk
from tests.native.wire import call
from tools.cli.look import ask_all, look
from tools.cli.side import take_down
from tools.cli.sources import look_at
from tools.demo import inside

_PTRACE_DETACH, _PTRACE_SEIZE, _PTRACE_O_TRACEEXIT = 17, 0x4206, 0x40  # linux/ptrace.h


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return images(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def here(files: list[Path]) -> Iterator[Bench]:
    with bench(files) as up:
        yield up


@pytest.fixture(autouse=True)
def healthy(here: Bench) -> Iterator[None]:
    """Before and after each fault both sides are well, and say nothing of what was."""
    both_well()
    yield
    both_well()


# -- the link --------------------------------------------------------------------------------------------------------
@contextmanager
def cable_out() -> Iterator[None]:
    call("plug", False)
    try:
        yield
    finally:
        call("plug", True)


@contextmanager
def unbound() -> Iterator[None]:
    call("unbind")
    try:
        yield
    finally:
        call("bind")


@pytest.mark.parametrize("cut", [cable_out, unbound])
def test_the_link_is_lost(cut: Callable[[], AbstractContextManager[None]]) -> None:
    began = now()
    with cut():
        for side in Side:
            document = seen(side, lambda d: d["link"]["state"] != "online", "the link to be lost")
            assert recent(document["link"]["since"], began)
            assert {r["state"] for r in document["processes"]} == {"running"}, "no process is blamed"
            assert {export["state"] for export in document["exports"]} == {"parked"}
            assert {export["since"] for export in document["exports"]} == {document["link"]["since"]}
            why = rf"(link (parked|absent)|no gadget) since {began.strftime('%Y-%m-%dT%H:')}\d\d:\d\d\+00:00.*"
            assert all(re.fullmatch(why, export["reason"]) for export in document["exports"]), document["exports"]


def test_a_reset_of_the_port_is_over_at_once_and_both_sides_say_since_when_the_link_is_the_new_one() -> None:
    began = now()
    call("reset")
    for side in Side:
        document = seen(
            side, lambda d: well(d) and recent(d["link"]["since"], began), f"the link of {side} to be a new one"
        )
        assert {r["restarts"] for r in document["processes"]} == {0}, "no process was replaced for it"


# -- another host, or the same one with other disks ------------------------------------------------------------------
def test_a_host_that_comes_back_without_a_disk_leaves_it_parked(here: Bench, files: list[Path]) -> None:
    whole = here.plans[Side.HOST]
    began = now()
    with host_with(here, files[:1]):
        document = seen(
            Side.GADGET, lambda d: [e["state"] for e in d["exports"]] == ["live", "parked"], "one disk to be parked"
        )
        [_, b] = document["exports"]
        assert b["reason"] == "the host does not serve it at present"
        assert meanwhile(b["since"], began)
        assert (document["state"], document["link"]["state"]) == ("healthy", "online"), "nothing is wrong here"
        assert [e["state"] for e in look(Runtime(Side.HOST))["exports"]] == ["live"]
    assert here.plans[Side.HOST] == whole


def test_a_disk_that_comes_back_smaller_stays_parked(here: Bench, files: list[Path]) -> None:
    size = files[1].stat().st_size
    began = now()
    with host_with(here, files, lambda: os.truncate(files[1], size // 2)):
        document = seen(
            Side.GADGET, lambda d: [e["state"] for e in d["exports"]] == ["live", "parked"], "one disk to be parked"
        )
        device = rf"the device has {size} in blocks of \d+: another disk;"
        told = rf"the host announces {size // 2} bytes in blocks of \d+, {device}"
        assert re.match(told, document["exports"][1]["reason"]), document["exports"][1]["reason"]
        assert meanwhile(document["exports"][1]["since"], began)


@contextmanager
def host_with(here: Bench, files: list[Path], meanwhile: Callable[[], None] = lambda: None) -> Iterator[None]:
    """The host side goes, comes back with these, and at the end with what it had, of the sizes that they had."""
    before, sizes = here.plans[Side.HOST], {file: file.stat().st_size for file in files}
    take_down(Runtime(Side.HOST), lambda text: None)
    meanwhile()
    exports = [source.role_args() for source in look_at([os.fspath(file) for file in files], None, False)]
    session = next(spec for spec in before.roles if spec.role == "session")
    roles = (*(r for r in before.roles if r != session), replace(session, args={**session.args, "exports": exports}))
    here.plans[Side.HOST] = replace(before, roles=roles, awaited=tuple(f"source.{e['name']}" for e in exports))
    here.bring_up(Side.HOST)
    try:
        yield
    finally:
        take_down(Runtime(Side.HOST), lambda text: None)
        for file, size_bytes in sizes.items():
            os.truncate(file, size_bytes)
        here.plans[Side.HOST] = before
        here.bring_up(Side.HOST)


# -- a source that fails ---------------------------------------------------------------------------------------------
def test_an_error_of_a_source_is_counted_on_both_sides_and_nothing_else_is_told(here: Bench, files: list[Path]) -> None:
    size = files[0].stat().st_size
    disk = ModelDisk(here.devices[0])
    os.truncate(files[0], 0)  # whatever is read now is short
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            disk.read(memoryview(bytearray(4096)), 0)
    finally:
        os.truncate(files[0], size)
        disk.close()
    for side in Side:
        document = seen(side, lambda d: errors(d) == [1, 0], f"the error to be counted on the {side} side")
        assert well(document), "that I/O has failed, and nothing else"


def errors(document: dict[str, object]) -> list[int]:
    exports = document["exports"]
    assert isinstance(exports, list)
    return [int(export["counters"]["error_count"]) for export in exports if "counters" in export]


def test_a_role_that_can_never_work_is_shown_as_failed_with_its_own_words() -> None:
    runtime = Runtime(Side.HOST)
    source = row(look(runtime), "source.a")
    path = Path(str(ask_all(runtime, ["source.a"])["source.a"]["path"]))
    aside = path.with_suffix(".aside")
    path.rename(aside)
    try:
        os.kill(int(source["pid"]), signal.SIGKILL)
        document = seen(Side.HOST, lambda d: row(d, "source.a").get("state") == "failed", "source.a to fail")
        assert document["state"] == "degraded"
        assert f"{path}: No such file or directory" in row(document, "source.a")["reason"]
        [a, b] = document["exports"]
        assert a["state"] == "failed" and "source.a is failed since " in a["reason"] and "No such file" in a["reason"]
        assert b["state"] == "live"
    finally:
        aside.rename(path)
        done = subprocess.run([*inside.REPLUG, "restart", "source.a", "--side", "host"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


# -- a process that does not end -------------------------------------------------------------------------------------
@contextmanager
def unable_to_die(pid: int) -> Iterator[None]:
    """Held in its exit, as the kernel holds one that waits for a device: SIGKILL does not end it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)

    def ptrace(request: int, data: int) -> None:
        if libc.ptrace(request, pid, None, data) != 0:
            raise OSError(ctypes.get_errno(), f"ptrace {request:#x} of {pid}: {os.strerror(ctypes.get_errno())}")

    ptrace(_PTRACE_SEIZE, _PTRACE_O_TRACEEXIT)
    try:
        yield
    finally:
        await_(lambda: os.waitpid(pid, os.WNOHANG | 0x40000000) != (0, 0), f"{pid} to be held in its exit")  # __WALL
        ptrace(_PTRACE_DETACH, 0)


@pytest.mark.parametrize(("side", "role"), [(Side.GADGET, "usb"), (Side.HOST, "source.a")])
def test_a_role_that_does_not_die_is_stuck_and_its_disk_says_so(side: Side, role: str) -> None:
    runtime = Runtime(side)
    record = living(runtime, role)
    assert record is not None
    with unable_to_die(record.pid):
        began = now()
        ask(runtime, "watchdog", "kill", {"role": role})
        document = seen(side, lambda d: row(d, role).get("state") == "stopping", f"{role} to be killed")
        assert document["state"] == "degraded" and recent(row(document, role)["since"], began)
        document = seen(side, lambda d: row(d, role).get("state") == "stuck", f"{role} to be stuck")
        told = row(document, role)
        assert told["pid"] == record.pid, "nothing is started in its place"
        hit = document["exports"][0]
        assert hit["state"] == "parked" and hit["reason"].startswith(f"{role} is stuck since "), hit
    await_(lambda: row(look(runtime), role).get("state") == "running", f"a successor of {role}")


def test_a_side_that_goes_down_says_so_and_who_has_not_ended(here: Bench) -> None:
    runtime, began = Runtime(Side.HOST), now()
    record = living(runtime, "session")
    assert record is not None
    down = threading.Thread(target=take_down, args=(runtime, lambda text: None))
    with unable_to_die(record.pid):
        down.start()
        document = seen(Side.HOST, lambda d: "going down" in d["reason"], "the side to be going down")
        assert document["state"] == "degraded"
        assert row(document, "session")["state"] == "stopping" and recent(row(document, "session")["since"], began)
    down.join(30.0)
    assert not down.is_alive() and look(runtime)["reason"] == "nothing runs"
    here.bring_up(Side.HOST)
