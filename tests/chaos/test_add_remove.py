"""`host add` and `host remove` with real processes (issue 4, item 3), the kernel's shells replaced by models.

Roles are killed between the steps; whoever is not concerned keeps its process, and the set is what was said last.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bus.control import ask
from bus.runtime import Runtime, Side, living
from common.errors import Exit, ReplugError
from tests.native.bench import Bench, await_, bench
from tools.cli import main
from tools.supervise.launch import all_living

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Bench]:
    with bench([image(tmp_path, "a", 1), image(tmp_path, "b", 2)]) as here:
        yield here
        assert here.complaints() == []


def image(place: Path, name: str, megabytes: int) -> Path:
    path = place / f"{name}.img"
    path.write_bytes(os.urandom(megabytes << 20))
    return path


def exports() -> dict[str, dict[str, Any]]:
    try:
        return {e["name"]: e for e in ask(Runtime(Side.GADGET), "session", "status", timeout_s=2.0)["exports"]}
    except ReplugError:
        return {}


def live(*names: str) -> None:
    def all_live() -> bool:
        there = exports()
        return there.keys() == set(names) and all(export["state"] == "live" for export in there.values())

    await_(all_live, f"{names} and nothing else to be live, there are {exports()}")


def pids(side: Side) -> dict[str, int]:
    return {record.role: record.pid for record in all_living(Runtime(side))}


def kill(side: Side, role: str) -> None:
    record = living(Runtime(side), role)
    assert record is not None
    os.kill(record.pid, signal.SIGKILL)
    await_(lambda: pids(side).get(role, record.pid) != record.pid, f"a new {role}")


def test_an_added_and_a_removed_export_disturb_no_other(here: Bench, tmp_path: Path) -> None:
    before = pids(Side.HOST), pids(Side.GADGET)
    b = exports()["b"]
    assert main(["host", "add", os.fspath(image(tmp_path, "c", 3))]) == Exit.DONE
    live("a", "b", "c")
    assert main(["host", "add", os.fspath(tmp_path / "c.img")]) == Exit.BUSY
    assert main(["host", "remove", "a"]) == Exit.DONE
    live("b", "c")
    await_(lambda: "source.a" not in pids(Side.HOST), "the removed source to end")
    assert exports()["b"]["device"] == b["device"]
    host, gadget = pids(Side.HOST), pids(Side.GADGET)
    for role in ("usb", "session", "source.b"):
        assert host[role] == before[0][role]
    for role in ("usb", "session", b["role"]):
        assert gadget[role] == before[1][role]


def test_the_set_outlives_a_kill_of_whoever_keeps_it(here: Bench, tmp_path: Path) -> None:
    assert main(["host", "add", os.fspath(image(tmp_path, "c", 3))]) == Exit.DONE
    assert main(["host", "remove", "a"]) == Exit.DONE
    for side, role in ((Side.HOST, "session"), (Side.HOST, "watchdog"), (Side.GADGET, "session"), (Side.HOST, "usb")):
        kill(side, role)
    live("b", "c")
    assert main(["host", "add", os.fspath(tmp_path / "a.img")]) == Exit.DONE
    live("a", "b", "c")


def test_another_file_may_have_the_name_of_a_removed_one(here: Bench, tmp_path: Path) -> None:
    first = exports()["a"]["id"]
    assert main(["host", "remove", "a"]) == Exit.DONE
    live("b")
    (tmp_path / "a.img").rename(tmp_path / "kept")
    assert main(["host", "add", os.fspath(image(tmp_path, "a", 4))]) == Exit.DONE
    live("a", "b")
    assert exports()["a"]["id"] != first


def test_what_would_leave_nothing_and_what_is_not_there_are_refused(
    here: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["host", "remove", "zz"]) == Exit.BAD_INPUT
    assert "zz: not served here: there are: a, b" in capsys.readouterr().err
    assert main(["host", "remove", "a", "b"]) == Exit.BAD_INPUT
    live("a", "b")
