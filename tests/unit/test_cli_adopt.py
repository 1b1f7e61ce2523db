"""Commands as a service manager gives them: what runs is adopted, what is silent replaced, what is dead left alone."""

import argparse
import os
import signal
from pathlib import Path

import pytest

from bus.role import WATCHDOG
from bus.runtime import ProcessRecord, living
from common.errors import Exit
from tests.unit.test_cli_claim import Serves, serves
from tests.unit.test_supervise_live import LiveSide, side, steady
from tools.cli import gadget, host, values
from tools.cli.parser import parse
from tools.cli.side import adopt
from tools.supervise.launch import SPAWNER, all_living, await_deaths, kill, supervised
from tools.supervise.plan import Plan
from tools.supervise.twin import TWIN

__all__ = ["serves", "side"]  # fixtures


def end(records: list[ProcessRecord]) -> None:
    kill(records)
    assert await_deaths(records, 10)


def test_a_side_that_answers_is_adopted_and_nothing_of_it_changes(side: LiveSide) -> None:
    side.up(steady("a"))
    before = all_living(side.runtime)
    assert adopt(side.runtime)
    assert all_living(side.runtime) == before


def test_nothing_to_adopt_where_no_supervision_lives(side: LiveSide) -> None:
    assert not adopt(side.runtime)
    side.up(steady("a"))
    end([r for r in all_living(side.runtime) if r.role != "a"])
    assert not adopt(side.runtime)
    assert living(side.runtime, "a") is not None


def test_a_silent_supervision_is_ended_and_what_it_supervised_goes_on(
    side: LiveSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    side.up(steady("a"))
    role = living(side.runtime, "a")
    for name in (TWIN, WATCHDOG, SPAWNER):
        record = living(side.runtime, name)
        assert record is not None
        os.kill(record.pid, signal.SIGSTOP)
    monkeypatch.setattr("tools.cli.side._ADOPT_S", 0.0)
    assert not adopt(side.runtime)
    assert all_living(side.runtime) == [role]
    side.up(steady("a"))
    assert living(side.runtime, "a") == role


def test_down_if_running_leaves_what_a_dead_side_left(side: LiveSide, monkeypatch: pytest.MonkeyPatch) -> None:
    side.up(steady("a"))
    end(all_living(side.runtime))
    assert side.runtime.base is not None
    monkeypatch.setenv("REPLUG_RUNTIME", str(side.runtime.base))
    assert host.down(["t"], if_running=True) == Exit.DONE
    assert Plan.load(side.runtime).roles
    assert gadget.down("nobody", force=False, if_running=True) == Exit.DONE


def test_serve_in_the_background_returns_when_it_is_ready_and_says_how_to_end_it(serves: Serves) -> None:
    serves.gate.touch()
    command = serves.start("--background")
    out, err = command.communicate(timeout=60)
    assert (command.returncode, out) == (Exit.DONE, "")
    assert err.splitlines()[-1] == "replug: 'replug host down' ends it"
    assert supervised(serves.runtime)
    again = serves.start("--background")
    assert (again.communicate(timeout=60)[1].split(": ")[1:3], again.returncode) == (
        ["host serve", "host runs already as instance 'default'"],
        Exit.BUSY,
    )
    adopting = serves.start("--background", "--adopt")
    assert adopting.communicate(timeout=60) == (
        "",
        "replug: host serves already\nreplug: 'replug host down' ends it\n",
    )
    assert adopting.returncode == Exit.DONE


@pytest.mark.parametrize("text", ["1d6b", "7531", "0x", "0x0", "0x10000", "-1", ""])
def test_a_usb_id_is_hex_with_its_mark(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["gadget", "up", f"--vid={text}"])
    assert "is not a USB id: write it in hex with 0x" in capsys.readouterr().err


def test_what_gadget_up_is_asked_reaches_the_roles() -> None:
    options = ["--serial", "s 1", "--vid", "0x18d1", "--pid", "0xffff", "--identity", "fastboot"]
    o = parse(["gadget", "up", *options, "--queue-depth", "8", "--max-io", "64K"])
    wish = gadget.Wish(o.udc, o.serial, o.vid, o.pid, o.identity, o.queue_depth, o.max_io)
    ids = {"vendor_id": 0x18D1, "product_id": 0xFFFF, "identity": "fastboot"}
    assert wish.usb_args("udc0") == {"udc": "udc0", "serial": "s 1", **ids}
    assert wish.session_args() == {"queue_depth": 8, "max_io_bytes": 65536}


@pytest.mark.parametrize("max_io", [0, 4095, 4096 + 512, 128 * 1024 + 4096])
def test_a_max_io_outside_of_the_bounds_is_refused(max_io: int) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"^{max_io}: not a multiple of 4096 up to 131072$"):
        values.max_io(str(max_io))
    assert [values.max_io(text) for text in ("4K", "128K")] == [4096, 128 * 1024]


@pytest.mark.parametrize("serial", ["", " a", "a ", "a\nb", "x" * 127, "é"])
def test_a_serial_that_no_descriptor_holds_is_refused(serial: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a USB serial number: use 1 to 126 printable"):
        values.serial(serial)
    assert values.serial("x" * 126) == "x" * 126


def test_the_serial_is_the_machines_own_and_does_not_tell_its_id(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_text("0123456789abcdef0123456789abcdef\n")
    two.write_text("1123456789abcdef0123456789abcdef\n")
    serial = gadget.machine_serial(one)
    assert serial is not None and len(serial) == 16 and serial not in one.read_text()
    assert serial == gadget.machine_serial(one) != gadget.machine_serial(two)


@pytest.mark.parametrize("text", [None, "", "uninitialized\n"])
def test_a_machine_without_an_id_has_no_serial_of_its_own(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "id").write_text(text)
    assert gadget.machine_serial(tmp_path / "id") is None
