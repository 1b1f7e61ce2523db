"""`replug status` tells the truth during every fault: what of which side is wrong, since when, and why.

Real processes over modelled kernels; each fault of the table (docs/explanation/recovery.md) is held open for the look,
and healed. A side that the fault does not touch says that it is healthy, and when it is over both do.
"""

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bus.runtime import Runtime, Side, living
from tests.chaos.test_top_kills import role_of, successor_held
from tests.native.__main__ import images
from tests.native.bench import Bench, await_, bench
from tests.native.wire import call
from tools.cli.document import faults
from tools.cli.look import ANSWER_S, look
from tools.cli.status import lines
from tools.demo import inside
from tools.supervise.launch import all_living, await_deaths, kill

Document = dict[str, Any]
Side_ = tuple[Runtime, Document]
_SLACK_S = 2.0  # between the fault and what is told of its time


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(images(tmp_path_factory.mktemp("files"))) as up:
        yield up


@pytest.fixture(autouse=True)
def healthy(here: Bench) -> Iterator[None]:
    """Before and after each fault both sides are well, and say nothing of what was."""
    await_(lambda: all(well(look(Runtime(side))) for side in Side), "both sides to be healthy")
    yield
    await_(lambda: all(well(look(Runtime(side))) for side in Side), "both sides to be healthy again")


def well(document: Document) -> bool:
    live = all(export["state"] == "live" and not export["reason"] for export in document["exports"])
    return document["state"] == "healthy" and live and not document["reason"] and document["link"]["state"] == "online"


def seen(side: Side, condition: Callable[[Document], bool], what: str) -> Document:
    """The document in which it is told; it is as the schema says and has the same in its lines for people."""
    last: list[Document] = []

    def told() -> bool:
        last[:] = [look(Runtime(side))]
        return condition(last[0])

    try:
        await_(told, what)
    except Exception as error:
        raise AssertionError(f"{error}: " + "\n".join(lines(last[0]))) from error
    assert faults(last[0]) == []
    return last[0]


def row(document: Document, role: str) -> Document:
    return next((row for row in document["processes"] if row["role"] == role), {})


def recent(iso: str, since: datetime) -> bool:
    return -_SLACK_S < (datetime.fromisoformat(iso) - since).total_seconds() < _SLACK_S


# -- kill -9 ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("side", "kind"), [(s, k) for s in Side for k in ("usb", {Side.GADGET: "queue", Side.HOST: "source"}[s])]
)
def test_a_role_that_io_goes_through_is_dead(side: Side, kind: str, tmp_path: Path) -> None:
    runtime = Runtime(side)
    role, began = role_of(runtime, kind), datetime.now(UTC)
    victim = living(runtime, role)
    assert victim is not None
    with successor_held(runtime, role, tmp_path):
        os.kill(victim.pid, signal.SIGKILL)
        document = seen(side, lambda d: row(d, role).get("state") == "starting", f"{role} starting")
        told = row(document, role)
        assert recent(told["since"], began) and told["last_exit"] == "killed by signal 9"
        document = seen(side, lambda d: bool(d["exports"]) and d["exports"][0]["state"] == "recovering", "an export")
        assert document["state"] == "degraded"
        [hit, other] = document["exports"]
        why = rf"{re.escape(role)} is starting( since \d\d:\d\d:\d\d)?: killed by signal 9"
        assert re.fullmatch(why, hit["reason"]), hit["reason"]
        assert (other["state"] == "recovering") == (kind == "usb"), "usb is everybody's, a queue or source is its own"
        if kind in ("queue", "source"):
            opposite = look(Runtime(Side.HOST if side is Side.GADGET else Side.GADGET))
            assert well(opposite), "the other side knows nothing of it, and nothing is wrong there"


@pytest.mark.parametrize("side", list(Side))
def test_the_session_is_dead(side: Side, tmp_path: Path) -> None:
    runtime, began = Runtime(side), datetime.now(UTC)
    victim = living(runtime, "session")
    assert victim is not None
    with successor_held(runtime, "session", tmp_path):
        os.kill(victim.pid, signal.SIGKILL)
        document = seen(side, lambda d: row(d, "session").get("state") == "starting", "session starting")
        assert document["state"] == "degraded"
        assert re.fullmatch(r"session is starting since \d\d:\d\d:\d\d: killed by signal 9", document["reason"])
        assert recent(row(document, "session")["since"], began)
        roles = [r for r in document["processes"] if r["role"] not in ("session",)]
        assert {r["state"] for r in roles} == {"running"}, "I/O does not pause, and no other is blamed"
        assert document["link"]["state"] == "online", "as usb tells it meanwhile"


@pytest.mark.parametrize("side", list(Side))
def test_the_watchdog_is_dead(side: Side, tmp_path: Path) -> None:
    runtime = Runtime(side)
    victim = living(runtime, "watchdog")
    assert victim is not None
    with successor_held(runtime, "watchdog", tmp_path):
        os.kill(victim.pid, signal.SIGKILL)
        document = seen(side, lambda d: d["state"] == "degraded", "it to be told")
        told = ("watchdog: no process: it is being replaced", f"watchdog: no answer to 'status' in {ANSWER_S:g} s")
        assert document["reason"] in told


@pytest.mark.parametrize("side", list(Side))
def test_the_spawner_is_dead(side: Side, tmp_path: Path) -> None:
    runtime = Runtime(side)
    victim = living(runtime, "spawner")
    assert victim is not None
    with successor_held(runtime, "spawner", tmp_path):
        os.kill(victim.pid, signal.SIGKILL)
        document = seen(side, lambda d: row(d, "spawner").get("state") != "running", "the spawner")
        assert document["state"] == "degraded" and row(document, "spawner")["pid"] is None
        assert all(export["state"] == "live" for export in document["exports"]), "I/O does not pause"


# -- SIGSTOP ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("side", "kind"), [(s, k) for s in Side for k in ("usb", "session", "watchdog")])
def test_a_role_is_stopped(side: Side, kind: str) -> None:
    record = living(Runtime(side), kind)
    assert record is not None
    os.kill(record.pid, signal.SIGSTOP)
    try:
        document = look(Runtime(side))
    finally:
        os.kill(record.pid, signal.SIGCONT)
    if kind == "usb":
        assert row(document, "usb")["answers"] is False
        assert any("does not answer" in line for line in lines(document))
    else:
        assert (document["state"], document["reason"]) == ("degraded", f"{kind}: no answer to 'status' in 1.5 s")


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
    began = datetime.now(UTC)
    with cut():
        for side in Side:
            document = seen(side, lambda d: d["link"]["state"] != "online", "the link to be lost")
            assert recent(document["link"]["since"], began)
            assert {r["state"] for r in document["processes"]} == {"running"}, "no process is blamed"
            assert {export["state"] for export in document["exports"]} == {"parked"}
            why = rf"(link (parked|absent)|no gadget) since {began.strftime('%Y-%m-%dT%H:')}\d\d:\d\d\+00:00.*"
            assert all(re.fullmatch(why, export["reason"]) for export in document["exports"]), document["exports"]


# -- a whole side ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("side", list(Side))
def test_a_whole_side_is_dead(here: Bench, side: Side) -> None:
    other = Side.HOST if side is Side.GADGET else Side.GADGET
    dead = all_living(Runtime(side))
    kill(dead)
    assert await_deaths(dead, 5.0)
    document = look(Runtime(side))
    assert (document["state"], document["reason"]) == ("down", "its supervision is dead: start the side again")
    if side is Side.HOST:  # the gadget's side of the wire is in the kernel, which answers nobody: the host sees that
        document = seen(other, lambda d: d["exports"][0]["state"] == "parked", "the gadget to miss its host")
        assert {r["state"] for r in document["processes"]} == {"running"}
    here.bring_up(side)


# -- a source that fails ---------------------------------------------------------------------------------------------
def test_a_role_that_can_never_work_is_shown_as_failed_with_its_own_words(here: Bench, tmp_path: Path) -> None:
    runtime = Runtime(Side.HOST)
    source = row(look(runtime), "source.a")
    path = Path(look_path(runtime))
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


def look_path(runtime: Runtime) -> str:
    from tools.cli.look import ask_all

    return str(ask_all(runtime, ["source.a"])["source.a"]["path"])
