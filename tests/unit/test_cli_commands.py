"""The `replug` command as people and scripts meet it: exit statuses, one-line errors, status documents, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tools
from bus.runtime import Runtime, Side
from common import limits
from common.errors import Exit
from tools.cli import main
from tools.cli.host import told
from tools.cli.side import bring_up, take_down
from tools.cli.status import judge
from tools.supervise.launch import all_living, supervised
from tools.supervise.plan import Plan, RoleSpec

ROLES = "tests.unit.roles"
ROOT = Path(tools.__file__).parent.parent

# `host serve`, with roles that only live: what is under test is the command, not the USB below it.
SERVE = """
import sys
import tools.cli.host as host
from bus.runtime import Side
from tools.cli import main
from tools.supervise.plan import Plan, RoleSpec

def steady(instance, sources, session_args):
    roles = ["usb", *(f"source.{s['name']}" for s in sources), "session"]
    return Plan(Side.HOST, instance, tuple(RoleSpec(role, "tests.unit.roles.steady") for role in roles))

host.host_plan = steady
sys.exit(main(["host", "serve", *sys.argv[1:]]))
"""


@pytest.fixture
def runtime(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    monkeypatch.setenv("REPLUG_RUNTIME", str(tmp_path_factory.mktemp("r")))
    runtime = Runtime(Side.HOST)
    yield runtime
    if runtime.root.exists():
        take_down(runtime)


@pytest.fixture
def side(runtime: Runtime) -> Iterator[Runtime]:
    roles = tuple(RoleSpec(role, f"{ROLES}.steady") for role in ("usb", "session"))
    spawner = bring_up(Plan(Side.HOST, "default", roles), runtime)
    yield runtime
    if runtime.root.exists():
        take_down(runtime)
    spawner.wait(5.0)


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr, without its `replug: `."""
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("replug: ")
    return line.removeprefix("replug: ")


# -- nothing runs ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "command", [["status"], ["restart", "usb"], ["gadget", "down"], ["host", "down"], ["log", "usb"]]
)
def test_where_nothing_runs_the_status_is_5(
    runtime: Runtime, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert main(command) == Exit.DOWN
    assert "run" in error_of(capsys)
    assert not runtime.root.exists()


def test_status_json_where_nothing_runs_is_a_document(runtime: Runtime, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--json"]) == Exit.DOWN
    document = json.loads(capsys.readouterr().out)
    assert (document["version"], document["state"], document["processes"]) == (1, "down", [])


# -- bad input -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "command", [[], ["fly"], ["gadget"], ["host", "serve"], ["host", "serve", "--block-size", "x", "f"], ["restart"]]
)
def test_wrong_use_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(command)
    assert exited.value.code == Exit.BAD_INPUT
    assert "--help'" in error_of(capsys)


def test_a_gadget_side_without_root(
    runtime: Runtime, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["gadget", "up"]) == Exit.BAD_INPUT
    assert error_of(capsys).startswith("gadget up: only root may ")


@pytest.mark.skipif(Path("/dev/ublk-control").exists(), reason="this machine has ublk")
def test_no_ublk(runtime: Runtime, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("tools.cli.checks.load_modules", lambda: None)
    assert main(["gadget", "up"]) == Exit.LACKING
    assert error_of(capsys).startswith("/dev/ublk-control: not there: ")
    assert not Runtime(Side.GADGET).root.exists()


@pytest.mark.parametrize("depth", [limits.MIN_QUEUE_DEPTH - 1, limits.MAX_QUEUE_DEPTH + 1])
def test_a_queue_depth_that_cannot_work(runtime: Runtime, capsys: pytest.CaptureFixture[str], depth: int) -> None:
    """Found by review: above what a host takes in flight the export stood still for ever."""
    with pytest.raises(SystemExit, match=f"^{int(Exit.BAD_INPUT)}$"):
        main(["gadget", "up", "--queue-depth", str(depth)])
    assert error_of(capsys).startswith(f"argument --queue-depth: {depth}: ")


def test_an_instance_name_that_cannot_be_part_of_a_path(runtime: Runtime, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["host", "serve", "--instance", "../x", "file"]) == Exit.BAD_INPUT
    assert error_of(capsys).startswith("'../x': not a")


def test_debug_shows_the_traceback(runtime: Runtime) -> None:
    with pytest.raises(Exception, match="No such file"):
        main(["host", "serve", "--debug", "/nonexistent"])


# -- a side that runs ------------------------------------------------------------------------------------------------
def test_status_of_a_healthy_side(side: Runtime, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--json"]) == Exit.DONE
    document = json.loads(capsys.readouterr().out)
    assert (document["version"], document["side"], document["instance"]) == (1, "host", "default")
    assert document["state"] == "healthy"
    rows = {row["role"]: row for row in document["processes"]}
    assert set(rows) == {"watchdog", "spawner", "twin", "usb", "session"}
    fields = "role pid generation state since restarts last_exit pause_ms rss_bytes cpu_percent"
    assert set(fields.split()) <= set(rows["usb"])
    assert rows["usb"]["rss_bytes"] > 1 << 20


def test_status_for_people_is_plain_lines_where_there_is_no_terminal(
    side: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status"]) == Exit.DONE
    text = capsys.readouterr().out
    assert text.startswith("host:default healthy, link absent\n")
    assert "\x1b" not in text


def test_restart_ends_when_the_successor_runs(side: Runtime, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["restart", "usb"]) == Exit.DONE
    assert error_of(capsys).startswith("usb: restarted: pid ")
    assert main(["kill", "usb"]) == Exit.DONE
    assert error_of(capsys).startswith("usb: killed: pid ")


def test_an_unknown_role_is_refused_naming_the_known_ones(side: Runtime, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["restart", "cat"]) == Exit.BAD_INPUT
    assert error_of(capsys) == "cat: no such role here: the roles are usb, session, watchdog, spawner"


def test_the_log_of_a_role(side: Runtime, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["log", "usb"]) == Exit.DONE
    assert "ready, generation" in capsys.readouterr().out
    assert main(["log", "../../etc/passwd"]) == Exit.BAD_INPUT


def test_a_second_serve_is_refused_and_changes_nothing(
    side: Runtime, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = all_living(side)
    assert main(["host", "serve", str(tmp_path)]) == Exit.BUSY
    assert error_of(capsys).startswith("host serve: host runs already as instance 'default': pid ")
    assert all_living(side) == before


def test_host_down_leaves_no_process_and_no_directory(side: Runtime, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["host", "down"]) == Exit.DONE
    assert error_of(capsys) == "host is down"
    assert not side.root.exists()


# -- serve in the foreground -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_serve_ends_by_a_signal_with_0_and_nothing_is_left(runtime: Runtime, tmp_path: Path, number: int) -> None:
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(1 << 20)
    command = [sys.executable, "-c", SERVE, str(image)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as serve:
        assert serve.stderr is not None
        line = serve.stderr.readline()
        while line and "Ctrl-C ends it" not in line:
            line = serve.stderr.readline()
        processes = all_living(runtime)
        assert {"usb", "source.disk", "session", "watchdog", "spawner"} <= {record.role for record in processes}
        serve.send_signal(number)
        assert serve.wait(20) == 0
    assert not runtime.root.exists()
    assert not any(Path(f"/proc/{record.pid}/exe").exists() for record in processes)


def test_a_ctrl_c_while_it_comes_up_is_not_lost_also_where_a_shell_has_it_ignored(
    runtime: Runtime, tmp_path: Path
) -> None:
    """Seen in a guest, whose commands a shell starts in the background: it was lost until all roles were there."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    command = ["env", "--ignore-signal=INT", sys.executable, "-c", SERVE, str(image)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as serve:
        while not supervised(runtime):
            assert serve.poll() is None
        serve.send_signal(signal.SIGINT)
        assert serve.wait(30) in (130, 0), "0: it was up by then, as this machine had other work for us"
    assert not runtime.root.exists()


def test_serve_ends_when_the_side_is_taken_down_from_elsewhere(runtime: Runtime, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    command = [sys.executable, "-c", SERVE, str(image)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as serve:
        assert serve.stderr is not None
        line = serve.stderr.readline()
        while line and "Ctrl-C ends it" not in line:
            line = serve.stderr.readline()
        assert main(["host", "down"]) == Exit.DONE
        assert serve.wait(20) == 0


# -- judging and telling ---------------------------------------------------------------------------------------------
FINE = {"going_down": False, "processes": [{"state": "running"}]}


@pytest.mark.parametrize(
    ("watched", "session", "state"),
    [
        (FINE, {}, "healthy"),
        (FINE, {"link": {"state": "absent"}, "exports": [{"state": "parked"}]}, "healthy"),
        (FINE, {"link": {"state": "parked"}}, "degraded"),
        (FINE, {"exports": [{"state": "failed"}]}, "degraded"),
        (FINE, {"reason": "session: no answer"}, "degraded"),
        ({**FINE, "going_down": True}, {}, "degraded"),
        ({**FINE, "processes": [{"state": "starting"}]}, {}, "degraded"),
    ],
)
def test_what_is_healthy(watched: dict[str, object], session: dict[str, object], state: str) -> None:
    assert judge(watched, session) == state


def test_a_replaced_role_is_told_once_with_its_pause() -> None:
    before = {"role": "usb", "generation": 1, "state": "running"}
    after = {"role": "usb", "generation": 2, "state": "running", "last_exit": "killed by signal 9", "pause_ms": 9}
    assert told(before, after) == "usb killed by signal 9, respawned in 9 ms"
    assert told(after, after) is None
    assert told(None, after) is None


def test_status_is_fast_where_nothing_runs(runtime: Runtime) -> None:
    """The heavy imports stay out of it: rich, and the roles' modules."""
    script = "import sys; from tools.cli import main; main(['status']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"rich", "psutil", "usb", "gadget", "host"}
