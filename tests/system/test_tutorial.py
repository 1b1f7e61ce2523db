"""docs/tutorial/first-disk.md as its reader does it: each command, in its order, on the machine that the text says.

The commands are taken out of the page; what it asks for beside them (the cable is pulled, a second terminal) is done
where it says so. PC and board are this guest, joined by a dummy controller, each with a runtime directory of its own.
Nobody has a network here, so `apt` is dpkg over what it would fetch; what would boot a guest uses this one. Run by
`make system`.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.chaos.machine import Machine
from tests.native.terminal import Terminal
from tests.system.test_deb import BARE, DEBS, ROOT, unpack_what_it_needs
from tools.demo import inside

PAGE = ROOT / "docs/tutorial/first-disk.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PC, BOARD = "PC", "board"
LIMIT_S = 600.0  # the demo's, where this machine has other work
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not DEBS.exists(), reason="Debian's packages are not here: `make system` fetches them"),
]


@dataclass(frozen=True)
class Command:
    machine: str
    line: str


def commands(page: str) -> list[Command]:
    """Of its shell blocks, in order. The text before a block may say on which machine it is from there on."""
    found, machine, place = [], PC, 0
    for fence in FENCE.finditer(page):
        said = re.findall(rf"^On the ({PC}|{BOARD})\b", page[place : fence.start()], re.MULTILINE)
        machine, place = (said or [machine])[-1], fence.end()
        if fence[1] == "sh":
            found += [Command(machine, line) for line in fence[2].splitlines()]
    return found


class Reader:
    """Who sits before both machines, in a clone of the repository. `said` is all that was printed, for a failure."""

    def __init__(self, work: Path, stack: ExitStack) -> None:
        self.clone, self.said, self._stack = work / "replug", list[str](), stack
        self.copying: Command | None = None
        self.serve: subprocess.Popen[str] | None = None
        self.terminal: Terminal | None = None
        shutil.copytree(ROOT, self.clone, ignore=shutil.ignore_patterns(".*", "__pycache__", "dist", "build"))
        (self.clone / ".venv").symlink_to(ROOT / ".venv")
        (self.clone / "rootfs.img").write_bytes(os.urandom(3 << 20))  # the image of the reader's own
        self._bin = work / "bin"
        self._bin.mkdir()
        demo, here = "exec .venv/bin/python -m tools", "exec /usr/bin/make -o setup"
        self._command("sudo", 'exec "$@"')
        self._command("apt", 'shift; exec dpkg --force-depends -i "$@"')
        cases = f"demo) {demo}.cli demo --direct;; try) {demo}.demo.trial ${{2#IMAGE=}};;"
        self._command("make", f'case "$1" in {cases} *) {here} "$@";; esac')

    def _command(self, name: str, script: str) -> None:
        (self._bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self._bin / name).chmod(0o755)

    def environment(self, machine: str) -> dict[str, str]:
        return {**BARE, "PATH": f"{self._bin}:{BARE['PATH']}", "REPLUG_RUNTIME": f"/run/tutorial-{machine}"}

    def output(self, command: Command) -> Path:
        return self.clone.parent / f"said-{command.line.split()[-1].replace('/', '-')}"

    def start(self, command: Command) -> "subprocess.Popen[str]":
        with self.output(command).open("w") as file:
            process = subprocess.Popen(
                ["bash", "-euc", command.line], cwd=self.clone, env=self.environment(command.machine),
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            )  # fmt: skip
        self._stack.callback(lambda: process.poll() is None and os.killpg(process.pid, signal.SIGKILL))
        return process

    def end(self, command: Command, process: "subprocess.Popen[str]", statuses: tuple[int, ...] = (0,)) -> str:
        with suppress(subprocess.TimeoutExpired):
            process.wait(LIMIT_S)
        text = self.output(command).read_text()
        self.said.append(f"{command.machine}$ {command.line}\n{text[-3000:]}")
        print(self.said[-1])
        assert process.returncode in statuses, f"exit {process.returncode}"
        return text

    def run(self, command: Command, statuses: tuple[int, ...] = (0,)) -> str:
        return self.end(command, self.start(command), statuses)

    def take_down(self, machine: str, side: str) -> None:
        force = ["--force"] * (side == "gadget")
        words, environment = ["/usr/bin/replug", side, "down", *force], self.environment(machine)
        if list(Path(environment["REPLUG_RUNTIME"]).glob("*")):
            subprocess.run(words, env=environment, capture_output=True, timeout=200)

    def top(self, command: Command) -> Terminal:
        words = " ".join(f"{name}={value}" for name, value in self.environment(command.machine).items())
        terminal = Terminal(self.clone.parent / "tmux", 100, 30, "", f"exec env {words} bash -euc '{command.line}'")
        self._stack.callback(terminal.close)
        return terminal


# -- what is more than to type it and to wait for its end ------------------------------------------------------------
def demo(reader: Reader, command: Command) -> None:
    """The last line is the verdict, in the form that the page shows."""
    last = reader.run(command).splitlines()[-1]
    [shown] = re.findall(r"^demo: .*$", PAGE.read_text(), re.MULTILINE)
    assert re.sub(r"\d+", "N", last) == re.sub(r"\d+", "N", shown)


def doctor(reader: Reader, command: Command) -> None:
    """As this machine is: a line that is not well names what mends it."""
    reader.run(command, (0, 4))


def serve(reader: Reader, command: Command) -> None:
    """It goes on, and says when the board has the disk."""
    process = reader.serve = reader.start(command)

    def online() -> bool:
        assert process.poll() is None, reader.output(command).read_text()
        return "link online" in reader.output(command).read_text()

    inside.wait_for("`link online`", online, interval_s=0.2)


def status(reader: Reader, command: Command) -> None:
    """Healthy and with the disk, if not at the first look: an emulated machine is busy when a device comes."""
    inside.wait_for("/dev/ublkb0", Path("/dev/ublkb0").exists)
    inside.wait_for("a healthy board", lambda: "healthy" in reader.run(command, (0, 1)).splitlines()[0], interval_s=1)
    assert "/dev/ublkb0" in reader.run(command)


def dd(reader: Reader, command: Command) -> None:
    """While it runs the cable is pulled: it stops; plugged in again, it goes on and ends well."""
    reader.copying = command
    process = midway(reader, command)
    switch = inside._usb_device() / "authorized"
    switch.write_text("0")
    inside.wait_for("dd to stop", lambda: stands_still(process))
    assert process.poll() is None, "it has not ended, it waits"
    switch.write_text("1")
    reader.end(command, process)


def top(reader: Reader, command: Command) -> None:
    """In another terminal, where it stays."""
    reader.terminal = reader.top(command)
    reader.terminal.until(lambda lines: "● healthy" in lines[0], "top", LIMIT_S)


def kill(reader: Reader, command: Command) -> None:
    """The same with a process: dd ends well, and top shows what happened."""
    assert reader.copying is not None and reader.terminal is not None
    process = midway(reader, reader.copying)
    assert re.search(r"; I/O waited for [\d.]+ m?s at most$", reader.run(command).strip())
    reader.end(reader.copying, process)
    shown = reader.terminal.until(
        lambda lines: "● healthy" in lines[0] and any("usb killed by signal 9, respawned" in line for line in lines),
        "the kill and its end",
        LIMIT_S,
    )
    print("\n".join(shown))


def midway(reader: Reader, command: Command) -> "subprocess.Popen[str]":
    """A dd that has written an eighth of what it will."""
    process = reader.start(command)

    def going() -> bool:
        assert process.poll() is None, reader.output(command).read_text()
        return written(process) >= 4 << 20

    inside.wait_for("dd to get going", going, interval_s=0.002)
    return process


def written(process: "subprocess.Popen[str]") -> int:
    """dd's standard output is the file that it writes, once it has opened it."""
    place = Path(f"/proc/{process.pid}")
    if os.readlink(place / "fd/1") != "/mnt/file":
        return 0
    return int((place / "fdinfo/1").read_text().split()[1])


def stands_still(process: "subprocess.Popen[str]") -> bool:
    before = written(process)
    time.sleep(1)  # that nothing happens can only be waited for
    return process.poll() is None and written(process) == before


Handler = Callable[[Reader, Command], None]
MORE: dict[str, Handler] = {
    "make demo": demo, " doctor ": doctor, " host serve ": serve, "replug status": status, " dd ": dd,
    "replug top": top, "replug kill ": kill,
}  # fmt: skip


# -- the tests -------------------------------------------------------------------------------------------------------
@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    unpack_what_it_needs()
    with ExitStack() as stack:
        here = Reader(tmp_path, stack)
        for name, side in ((BOARD, "gadget"), (PC, "host")):  # where the reader was stopped in the middle
            stack.callback(here.take_down, name, side)
        yield here
    subprocess.run(["dpkg", "-P", "replug"], env=BARE, capture_output=True, timeout=300)


def test_the_page_says_on_which_machine_each_command_is_typed() -> None:
    typed = {command.line: command.machine for command in commands(PAGE.read_text())}
    assert [typed["make demo"], typed["replug host serve disk.img"]] == [PC, PC]
    assert [typed["sudo replug gadget up"], typed["replug status"], typed["sudo replug gadget down"]] == [BOARD] * 3


def test_the_tutorial_from_its_first_command_to_its_last(reader: Reader) -> None:
    typed, machine = commands(PAGE.read_text()), Machine()
    for command in typed:
        words = next((words for words in MORE if words in f" {command.line} "), "")
        if words:
            MORE[words](reader, command)
        else:
            reader.run(command)
    used = {words for words in MORE for command in typed if words in f" {command.line} "}
    assert used == MORE.keys(), "the page has no such command any more"
    assert reader.serve is not None
    os.killpg(reader.serve.pid, signal.SIGINT)
    assert reader.serve.wait(60) == 0
    judge(reader.clone / "disk.img")
    assert machine.complaints() == []
    assert not list(Path("/dev").glob("ublk[bc]*"))
    assert not [place for machine in (PC, BOARD) for place in Path(f"/run/tutorial-{machine}").glob("*")]


def judge(disk: Path) -> None:
    """It holds what the board wrote, in a file system without fault."""
    checked = subprocess.run(["/sbin/e2fsck", "-fn", disk], capture_output=True, text=True, timeout=120)
    assert checked.returncode == 0, checked.stdout
    copy = disk.with_suffix(".copy")
    subprocess.run(["/sbin/debugfs", "-R", f"dump /file {copy}", disk], check=True, capture_output=True, timeout=120)
    assert copy.stat().st_size == 32 << 20 and not any(copy.read_bytes().replace(bytes(4096), b""))
