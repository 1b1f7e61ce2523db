"""`replug status` tells the truth while a process is dead or stopped: which of which side, since when, and why.

Real processes over modelled kernels; each fault of the table (docs/explanation/recovery.md) is held open for the look,
and healed. A side that the fault does not touch says that it is healthy, and when it is over both do.
"""

import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from bus.runtime import Runtime, Side, living
from tests.chaos.stages import await_state
from tests.chaos.test_top_kills import role_of, successor_held
from tests.chaos.truth import both_well, last_sign_before, now, other, recent, row, seen, silent, well
from tests.native.__main__ import images
from tests.native.bench import Bench, bench
from tools.cli.look import look
from tools.cli.status import lines
from tools.supervise.launch import all_living, await_deaths, kill

DATA = [(side, kind) for side in Side for kind in ("usb", {Side.GADGET: "queue", Side.HOST: "source"}[side])]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(images(tmp_path_factory.mktemp("files"))) as up:
        yield up


@pytest.fixture(autouse=True)
def healthy(here: Bench) -> Iterator[None]:
    """Before and after each fault both sides are well, and say nothing of what was."""
    both_well()
    yield
    both_well()


# -- kill -9 ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("side", "kind"), DATA)
def test_a_role_that_io_goes_through_is_dead(side: Side, kind: str, tmp_path: Path) -> None:
    runtime = Runtime(side)
    role, began = role_of(runtime, kind), now()
    victim = living(runtime, role)
    assert victim is not None
    with successor_held(runtime, role, tmp_path):
        os.kill(victim.pid, signal.SIGKILL)
        document = seen(side, lambda d: row(d, role).get("state") == "starting", f"{role} starting")
        told = row(document, role)
        assert recent(told["since"], began) and told["last_exit"] == "killed by signal 9"
        document = seen(side, lambda d: bool(d["exports"]) and d["exports"][0]["state"] == "recovering", "an export")
        assert document["state"] == "degraded"
        [hit, rest] = document["exports"]
        why = rf"{re.escape(role)} is starting( since \d\d:\d\d:\d\d)?: killed by signal 9"
        assert re.fullmatch(why, hit["reason"]), hit["reason"]
        assert (rest["state"] == "recovering") == (kind == "usb"), "usb is everybody's, a queue or source is its own"
        if kind in ("queue", "source"):
            opposite = look(Runtime(other(side)))
            assert well(opposite), "the other side knows nothing of it, and nothing is wrong there"


@pytest.mark.parametrize("side", list(Side))
def test_the_session_is_dead(side: Side, tmp_path: Path) -> None:
    runtime, began = Runtime(side), now()
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
def test_the_watchdog_is_dead_and_everything_else_is_told_as_before(side: Side, tmp_path: Path) -> None:
    runtime, before = Runtime(side), look(Runtime(side))
    victim = living(runtime, "watchdog")
    assert victim is not None
    with successor_held(runtime, "watchdog", tmp_path):
        began = now()
        os.kill(victim.pid, signal.SIGKILL)
        document = seen(side, lambda d: row(d, "watchdog")["last_exit"] == "killed by signal 9", "it to be told")
        assert document["state"] == "degraded"
        assert re.fullmatch(r"watchdog is starting since \d\d:\d\d:\d\d: killed by signal 9", document["reason"])
        assert recent(row(document, "watchdog")["since"], began)
        for then in before["processes"]:
            told = row(document, then["role"])
            if then["role"] != "watchdog":
                same = ("pid", "generation", "state", "restarts", "last_exit", "pause_ms")
                assert [told[name] for name in same] == [then[name] for name in same], then["role"]
                assert told["since"] or then["role"] == "twin"
        assert document["session_id"] == before["session_id"]
        assert document["link"] == before["link"]
        assert [(e["name"], e["device"], e["state"]) for e in document["exports"]] == [
            (e["name"], e["device"], "live") for e in before["exports"]
        ]


@pytest.mark.parametrize(("side", "kinds"), [(Side.GADGET, ("usb", "queue")), (Side.HOST, ("source", "session"))])
def test_two_roles_of_a_side_are_dead_at_once(side: Side, kinds: tuple[str, str], tmp_path: Path) -> None:
    runtime, began = Runtime(side), now()
    roles = [role_of(runtime, kind) for kind in kinds]
    victims = [record for role in roles if (record := living(runtime, role)) is not None]
    with ExitStack() as stack:
        for role in roles:
            place = tmp_path / role
            place.mkdir()
            stack.enter_context(successor_held(runtime, role, place))
        kill(victims)
        document = seen(
            side, lambda d: all(row(d, role).get("state") == "starting" for role in roles), f"{roles} starting"
        )
        assert document["state"] == "degraded"
        for role in roles:
            assert recent(row(document, role)["since"], began)
            assert row(document, role)["last_exit"] == "killed by signal 9"
        if "session" not in kinds:  # else nobody tells of exports
            assert {export["state"] for export in document["exports"]} == {"recovering"}, "usb is everybody's"


@pytest.mark.parametrize(("side", "kind"), DATA)
def test_a_role_is_told_to_drain(side: Side, kind: str, tmp_path: Path) -> None:
    runtime, began = Runtime(side), now()
    role = role_of(runtime, kind)
    victim = living(runtime, role)
    assert victim is not None
    with successor_held(runtime, role, tmp_path):
        os.kill(victim.pid, signal.SIGTERM)
        document = seen(side, lambda d: row(d, role).get("state") == "starting", f"{role} starting")
        told = row(document, role)
        assert recent(told["since"], began) and told["last_exit"] == "exit 0"
        document = seen(side, lambda d: bool(d["exports"]) and d["exports"][0]["state"] == "recovering", "an export")
        why = rf"{re.escape(role)} is starting( since \d\d:\d\d:\d\d)?: exit 0"
        assert re.fullmatch(why, document["exports"][0]["reason"])


@pytest.mark.parametrize("side", list(Side))
def test_the_spawner_is_dead(side: Side, tmp_path: Path) -> None:
    """After those that ask how a process ended: its children are nobody's then, and only their deaths are seen."""
    runtime, began = Runtime(side), now()
    victim = living(runtime, "spawner")
    assert victim is not None
    with successor_held(runtime, "spawner", tmp_path):
        os.kill(victim.pid, signal.SIGKILL)
        document = seen(side, lambda d: row(d, "spawner").get("state") != "running", "the spawner")
        assert document["state"] == "degraded" and row(document, "spawner")["pid"] is None
        assert recent(row(document, "spawner")["since"], began)
        assert all(export["state"] == "live" for export in document["exports"]), "I/O does not pause"


# -- SIGSTOP ---------------------------------------------------------------------------------------------------------
@contextmanager
def stopped(side: Side, role: str) -> Iterator[None]:
    record = living(Runtime(side), role)
    assert record is not None
    os.kill(record.pid, signal.SIGSTOP)
    await_state(record.pid, "T")
    try:
        yield
    finally:
        os.kill(record.pid, signal.SIGCONT)


@pytest.mark.parametrize(("side", "kind"), DATA)
def test_a_role_that_io_goes_through_is_stopped(side: Side, kind: str) -> None:
    role, began = role_of(Runtime(side), kind), now()
    with stopped(side, role):
        document = seen(side, lambda d: d["state"] == "degraded", f"the stop of {role}")
        told = row(document, role)
        assert (told["state"], told["answers"], told["reason"]) == ("running", False, "stopped by a signal")
        assert last_sign_before(told["silent_since"], began) or recent(told["silent_since"], began)
        [hit, rest] = document["exports"]
        assert hit["state"] == "recovering" and silent(role).fullmatch(hit["reason"]), hit
        assert (rest["state"] == "recovering") == (kind == "usb"), "usb is everybody's, a queue or source is its own"
        assert silent(role).fullmatch(document["reason"])
        assert any("does not answer since" in line for line in lines(document) if line.split()[0] == role)
        if kind != "usb":
            assert well(look(Runtime(other(side)))), "the other side knows nothing of it, and nothing is wrong there"


@pytest.mark.parametrize(
    ("side", "kind"), [(side, kind) for side in Side for kind in ("session", "watchdog", "spawner")]
)
def test_a_role_that_no_io_goes_through_is_stopped(side: Side, kind: str) -> None:
    began = now()
    with stopped(side, kind):
        document = seen(side, lambda d: d["state"] == "degraded", f"the stop of {kind}")
        told = row(document, kind)
        assert (told["state"], told["answers"]) == ("running", False)
        assert last_sign_before(told["silent_since"], began) or recent(told["silent_since"], began)
        assert silent(kind).fullmatch(document["reason"]), document["reason"]
        assert {r["state"] for r in document["processes"]} == {"running"}, "nobody is dead"
        assert document["link"]["state"] == "online", "the link is not lost"
        assert {export["state"] for export in document["exports"]} <= {"live"}, "I/O does not pause"


# -- a whole side ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("side", list(Side))
def test_a_whole_side_is_dead(here: Bench, side: Side) -> None:
    dead = all_living(Runtime(side))
    kill(dead)
    assert await_deaths(dead, 5.0)
    document = look(Runtime(side))
    assert (document["state"], document["reason"]) == ("down", "its supervision is dead: start the side again")
    if side is Side.HOST:  # the gadget's side of the wire is in the kernel, which answers nobody: the host sees that
        document = seen(other(side), lambda d: d["exports"][0]["state"] == "parked", "the gadget to miss its host")
        assert {r["state"] for r in document["processes"]} == {"running"}
    here.bring_up(side)
