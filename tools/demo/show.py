"""The demo seen from outside: make the image, start the guest, render what `inside` tells (rich, or plain lines)."""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import tools
from common.errors import Exit, Refused
from common.units import show_time
from tools.demo import image
from tools.vm import foreign
from tools.vm.arch import Arch


class Screen(Protocol):
    """Where events go."""

    def line(self, text: str) -> None: ...
    def progress(self, text: str, done: int, total: int) -> None: ...
    def close(self) -> None: ...


@dataclass
class Estimate:
    """How long a stretch of the demo still takes, if it goes on as it went. A stretch is told by its first word."""

    _stretch: str = ""
    _began: float = 0.0
    _first: int = 0

    def left(self, text: str, done: int, total: int, now: float) -> str:
        """To be put behind the text: empty while nothing can be said."""
        stretch = text.partition(" ")[0]
        if stretch != self._stretch:
            self._stretch, self._began, self._first = stretch, now, done
        moved, took_s = done - self._first, now - self._began
        return f", about {show_time((total - done) * took_s / moved)} left" if moved > 0 and done < total else ""


class PlainScreen:
    """One line an event; progress only when it has moved a fifth, so that a log stays readable."""

    def __init__(self) -> None:
        self._started, self._shown, self._estimate = time.monotonic(), ("", -1), Estimate()

    def line(self, text: str) -> None:
        print(f"{time.monotonic() - self._started:6.1f} s  {text}", flush=True)

    def progress(self, text: str, done: int, total: int) -> None:
        fifth, left = 5 * done // max(total, 1), self._estimate.left(text, done, total, time.monotonic())
        if (text, fifth) != self._shown:
            self._shown = (text, fifth)
            self.line(f"... {text} {100 * done // max(total, 1)} %{left}")

    def close(self) -> None:
        pass


class RichScreen:
    """A terminal: finished lines scroll, the present one has a bar."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._bar = Progress(TimeElapsedColumn(), BarColumn(20), TextColumn("{task.description}"), transient=True)
        self._estimate = Estimate()
        self._task = self._bar.add_task("starting", total=None)
        self._bar.start()

    def line(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False)

    def progress(self, text: str, done: int, total: int) -> None:
        left = self._estimate.left(text, done, total, time.monotonic())
        self._bar.update(self._task, description=f"{text}{left}", completed=done, total=total)

    def close(self) -> None:
        self._bar.stop()


def show(direct: bool, timeout_s: int, arch: str | None = None) -> int:
    """Run it all; the last line printed is the verdict. Returns the exit status.

    `arch`: of the guest, by Debian's name; None for this machine's own.
    """
    for program in ("mkfs.ext4", "dd", "e2fsck"):
        if shutil.which(program) is None:
            raise Refused(f"{program}: not found: install 'e2fsprogs' and 'coreutils'", Exit.LACKING)
    screen: Screen = RichScreen() if sys.stdout.isatty() else PlainScreen()
    with tempfile.TemporaryDirectory(prefix="replug-demo-") as name:
        work = Path(name)
        try:
            screen.line("making a 64 MiB ext4 image from a directory of real files")
            (work / "content").mkdir()
            files = image.make_content(work / "content")
            image.make_image(work / "rootfs.img", work / "content")
            image.make_scratch(work / "scratch.img")
            screen.line(f"rootfs.img: {files} files; scratch.img: {image.SCRATCH_BYTES >> 20} MiB for writes")
            verdict, ok = _run(screen, _command(work, direct, timeout_s, arch))
        finally:
            screen.close()
    print(verdict, flush=True)
    return Exit.DONE if ok else Exit.FAULT


def _command(work: Path, direct: bool, timeout_s: int, arch: str | None) -> list[str]:
    root = Path(tools.__file__).parents[1]  # an installed replug's modules lie where nobody else finds them
    script = ["-m", "tools.demo.inside", str(work)]
    inside = ["/usr/bin/env", f"PYTHONPATH={root}", sys.executable, *script]
    if direct:
        return inside
    guest = [sys.executable, "-m", "tools.vm", "run", "--timeout", str(timeout_s), "--share", str(work)]
    if arch is None or not Arch(arch).foreign:
        return [*guest, "--", *inside]
    return [*guest, "--arch", arch, "--", foreign.PYTHON, *script]


def _run(screen: Screen, command: list[str]) -> tuple[str, bool]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    verdict, ok = "", False
    try:
        assert process.stdout is not None
        for line in process.stdout:
            event = _event(line)
            if event.get("kind") == "end":
                verdict, ok = str(event["text"]), bool(event["ok"])
            else:
                _render(screen, event)
        status = process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        process.wait()
        return "demo: FAIL interrupted", False
    if not verdict or (ok and status):
        return f"demo: FAIL the guest ended with exit status {status} before the demo was through", False
    return verdict, ok


def _event(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    return event if isinstance(event, dict) else {"kind": "note", "text": line.rstrip()}


def _render(screen: Screen, event: dict[str, Any]) -> None:
    if event["kind"] == "progress":
        screen.progress(event["text"], event["done"], event["total"])
    elif event["kind"] == "fault":
        offsets = ", ".join(f"{way} at {offset / (1 << 20):.1f} MiB" for way, offset in event["offsets"].items())
        held = f" (cable out for {event['held']} of it)" if event["held"] else ""
        screen.line(
            f"    {event['text']}: {offsets}; {event['in_flight']} I/Os in flight; paused {event['pause']}{held}; "
            "no other process changed"
        )
    else:
        screen.line(event["text"])
