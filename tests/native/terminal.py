"""A real terminal for tests: a tmux of its own with one pane, in which `replug top` runs, or what a test says."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import tools

ROOT = Path(tools.__file__).parent.parent
_LIMIT_S = 20.0


class Terminal:
    """`socket` is tmux's own; nothing of the user's tmux is touched."""

    def __init__(self, socket: Path, width: int, height: int, words: str, command: str = "") -> None:
        self._socket, self.width, self.height = socket, width, height
        command = command or f"exec {sys.executable} -m tools.cli top {words}"
        size = ("-x", str(width), "-y", str(height))
        self._tmux("-f", "/dev/null", "new-session", "-d", *size, "-c", str(ROOT), command)

    def _tmux(self, *arguments: str) -> str:
        command = ["tmux", "-u", "-S", str(self._socket), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout

    def screen(self) -> list[str]:
        return self._tmux("capture-pane", "-p").split("\n")[:-1]

    def until(self, condition: Callable[[list[str]], bool], what: str, limit_s: float = _LIMIT_S) -> list[str]:
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            lines = self.screen()
            if condition(lines):
                return lines
            time.sleep(0.05)
        raise AssertionError(f"waited {limit_s:g} s for {what}; the screen:\n" + "\n".join(self.screen()))

    def close(self) -> None:
        self._tmux("kill-server")
