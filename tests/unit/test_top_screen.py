"""`replug top` in a real terminal (tmux), over a real side of tiny roles: before, during and after kills.

Shows issue 5, item 1.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tools
from bus.runtime import Runtime, Side, living
from tools.cli.side import bring_up, take_down
from tools.supervise.launch import all_living, await_deaths, kill
from tools.supervise.plan import Plan, RoleSpec

ROOT = Path(tools.__file__).parent.parent


class Terminal:
    """A tmux of its own with one pane, in which a shell runs `replug top`."""

    def __init__(self, socket: Path, width: int, height: int) -> None:
        self._socket = socket
        # The shell stays, to show in which state top has left the terminal.
        script = "trap : INT; before=$(stty -g); echo started; "
        script += f"{sys.executable} -m tools.cli top --interval 200ms; echo exit $?; "
        script += '[ "$(stty -g)" = "$before" ] && echo terminal restored; exec sleep 1000'
        size = ("-x", str(width), "-y", str(height))
        self._tmux("-f", "/dev/null", "new-session", "-d", *size, "-c", str(ROOT), f"sh -c '{script}'")

    def _tmux(self, *arguments: str) -> str:
        command = ["tmux", "-u", "-S", str(self._socket), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout

    def screen(self) -> list[str]:
        return self._tmux("capture-pane", "-p").split("\n")[:-1]

    def keys(self, *keys: str) -> None:
        self._tmux("send-keys", *keys)

    def resize(self, width: int, height: int) -> None:
        self._tmux("resize-window", "-x", str(width), "-y", str(height))

    def pid_of_top(self) -> int:
        shell = int(self._tmux("display-message", "-p", "#{pane_pid}"))
        return int(Path(f"/proc/{shell}/task/{shell}/children").read_text().split()[0])

    def until(self, condition: Callable[[str], bool], what: str, limit_s: float = 20.0) -> list[str]:
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            lines = self.screen()
            if condition("\n".join(lines)):
                return lines
            time.sleep(0.03)
        raise AssertionError(f"waited {limit_s} s for {what}; the screen:\n" + "\n".join(self.screen()))

    def until_shown(self, text: str) -> list[str]:
        return self.until(lambda screen: text in screen, repr(text))

    def close(self) -> None:
        self._tmux("kill-server")


@pytest.fixture
def side(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    monkeypatch.setenv("REPLUG_RUNTIME", str(tmp_path_factory.mktemp("r")))
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("COLUMNS", "70")  # a shell may export what does not follow a resize
    runtime = Runtime(Side.HOST)
    roles = (RoleSpec("usb", "tests.unit.roles.steady"), RoleSpec("source.disk", "tests.unit.roles.counting"))
    session = RoleSpec("session", "tests.unit.roles.telling", {"exports": [{"name": "disk", "role": "source.disk"}]})
    spawner = bring_up(Plan(Side.HOST, "default", (*roles, session)), runtime)
    yield runtime
    if runtime.root.exists():
        take_down(runtime)
    spawner.wait(5.0)


@pytest.fixture(params=[(80, 24), (160, 40)], ids=["80x24", "wide"])
def terminal(
    side: Runtime, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Terminal]:
    live = Terminal(tmp_path_factory.mktemp("t") / "tmux", *request.param)
    try:
        live.until_shown("source.disk")
        yield live
    finally:
        live.close()


def pid(side: Runtime, role: str) -> int:
    record = living(side, role)
    assert record is not None
    return record.pid


def row(lines: list[str], name: str) -> str:
    return next(line[1:] for line in lines if line[1:].startswith(f"{name} "))


@pytest.mark.parametrize("role", ["usb", "source.disk", "session", "watchdog", "spawner"])
def test_a_kill_is_seen_and_told_and_its_end_too(side: Runtime, terminal: Terminal, role: str) -> None:
    before = terminal.until_shown("● healthy")
    assert f" {pid(side, role)} running" in row(before, role)
    assert "disk" in row(before, "disk") and "768us" in row(before, "disk")
    victim = pid(side, role)
    os.kill(victim, signal.SIGKILL)

    def replaced(screen: str) -> bool:
        record = living(side, role)
        return record is not None and record.pid != victim and f" {record.pid} running" in screen

    after = terminal.until(replaced, f"a successor of {role}")
    # A look may fall between its death and its successor's start: then the two are told apart.
    how = "replaced" if role == "spawner" else "killed by signal 9"
    forms = (f"{role} {how}, respawned", f"{role} running, respawned")
    after = terminal.until(lambda screen: any(form in screen for form in forms), " or ".join(forms))
    assert any(f"{role} {word}" in "\n".join(after) for word in (how, "is dead, its successor is starting"))
    assert (max(map(len, after)), len(after)) in ((79, 24), (80, 24), (159, 40), (160, 40)), "the whole screen"
    if role not in ("watchdog", "spawner"):
        assert "signal 9" in row(after, role)


def test_a_stopped_watchdog_is_said_and_its_return_too(side: Runtime, terminal: Terminal) -> None:
    victim = pid(side, "watchdog")
    os.kill(victim, signal.SIGSTOP)
    try:
        lines = terminal.until_shown("watchdog does not answer since ")
        assert "● degraded" in lines[0] and "stopped by a signal" in lines[1]
        assert "running" in row(lines, "usb")
    finally:
        os.kill(victim, signal.SIGCONT)
    terminal.until_shown("● healthy")
    terminal.until_shown("side healthy")


def test_the_death_and_return_of_the_whole_side_are_survived_and_said(side: Runtime, terminal: Terminal) -> None:
    records = all_living(side)
    kill(records)
    assert await_deaths(records, 10.0)
    terminal.until_shown("● down")
    terminal.until_shown("its supervision is dead: start the side again")
    spawner = bring_up(Plan.load(side), side)
    try:
        terminal.until_shown("● healthy")
        take_down(side)
        terminal.until_shown("nothing runs (below: what was known")
    finally:
        spawner.wait(20.0)


def test_keys_restart_drain_and_kill_the_chosen_process_and_show_its_log(side: Runtime, terminal: Terminal) -> None:
    terminal.until_shown("▶source.disk")
    for keys, told in ((["r"], "restarted"), (["d"], "drained"), (["k", "y"], "killed")):
        before = pid(side, "source.disk")
        terminal.keys(*keys)
        terminal.until_shown(f"source.disk: {told}: pid {before} is now ")
    terminal.keys("Up", "l")
    terminal.until_shown("log of usb")
    terminal.until_shown(f"usb[{pid(side, 'usb')}] ready")
    terminal.keys("q", "?")
    terminal.until_shown("I/Os in flight")
    terminal.keys("q", "k")
    terminal.until_shown("kill usb with SIGKILL?")
    terminal.keys("n")
    terminal.until_shown("? help")


def test_a_resize_is_followed(terminal: Terminal) -> None:
    for width, height in ((132, 50), (60, 15), (80, 24)):
        terminal.resize(width, height)
        lines = terminal.until(
            lambda screen, w=width: f"\n {'─' * (w - 2)}\n" in screen,  # type: ignore[misc]
            f"{width}x{height}",
        )
        terminal.until(lambda screen: screen.rstrip("\n").splitlines()[-1].startswith(" ↑↓ choose"), "the line of keys")
        assert len(lines) == height
    terminal.resize(30, 8)
    terminal.until_shown("40x10 needed")


@pytest.mark.parametrize("end", ["q", "C-c", "SIGTERM", "SIGHUP"])
def test_the_terminal_is_left_as_it_was(terminal: Terminal, end: str) -> None:
    if end.startswith("SIG"):
        os.kill(terminal.pid_of_top(), signal.Signals[end])
    else:
        terminal.keys(end)
    lines = terminal.until_shown("terminal restored")
    assert [line for line in lines if line] == ["started", "exit 0", "terminal restored"]


def test_top_without_a_terminal_is_refused(side: Runtime) -> None:
    done = subprocess.run([sys.executable, "-m", "tools.cli", "top"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "replug: top: this is no terminal: 'replug status --watch' is for pipes\n",
    )
