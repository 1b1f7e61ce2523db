"""The loop of `replug top`: looks in a thread, keys and signals here, the screen drawn by rich.

The look has a thread of its own because a stopped process makes it slow, and keys must not wait for it. Orders run as
`replug` commands do, in threads too; what they say becomes a line of the event log.
"""

import contextlib
import os
import queue
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, ConsoleDimensions
from rich.live import Live
from rich.text import Text

from bus.runtime import recorded_roles
from common.errors import Exit, Refused, ReplugError
from common.log import human
from tools.cli.logs import lines_of
from tools.cli.look import Document, look_for
from tools.cli.roles import replaced
from tools.cli.where import meant
from tools.top.core import Order, Top
from tools.top.layout import Line, draw
from tools.top.picture import Record

_LOOK_S = 1.0
_LOG_LINES = 500
_ESCAPES = {"\x1b[A": "up", "\x1b[B": "down", "\x1bOA": "up", "\x1bOB": "down", "\x1b": "escape"}


@dataclass(frozen=True)
class Picture:
    """Where an SVG of all that was shown is written; `for_s` ends it, which it must without a terminal."""

    path: Path
    for_s: float | None = None
    width: int = 100  # without a terminal
    height: int = 30


def run(side: str | None, instance: str, interval_s: float, picture: Picture | None = None) -> int:
    """Until q, Ctrl-C or SIGTERM; the terminal is as it was afterwards. Refused without a terminal."""
    app = _App(side, instance, interval_s)
    if sys.stdin.isatty() and sys.stdout.isatty():
        status = app.run(picture.for_s if picture else None)
    elif picture is not None and picture.for_s is not None:
        status = app.run_unseen(picture.for_s, (picture.width, picture.height))
    elif picture is not None:
        raise Refused("top: this is no terminal: say with --for how long to record")
    else:
        raise Refused("top: this is no terminal: 'replug status --watch' is for pipes")
    if picture is not None:
        app.write(picture.path)
    return status


class _App:
    def __init__(self, side: str | None, instance: str, interval_s: float) -> None:
        self._side, self._instance, self._interval_s = side, instance, interval_s
        self._top = Top(f"{side or 'side'}:{instance}")
        self._found: queue.SimpleQueue[Document | str] = queue.SimpleQueue()  # looks, and lines for the event log
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._look_now = threading.Event()
        self._ended = False
        self._record, self._size = Record(), (0, 0)

    def run_unseen(self, for_s: float, size: tuple[int, int]) -> int:
        """Look and draw for nobody but the record."""
        meant(self._side, self._instance)
        self._size, ends = size, time.monotonic() + for_s
        threading.Thread(target=self._looks, name="looks", daemon=True).start()
        with self._signals():
            while not self._ended and time.monotonic() < ends:
                self._draw()
                self._wait([])
        return Exit.DONE

    def _draw(self) -> list[Line]:
        now = time.monotonic()
        lines = draw(self._top.view(now, time.time()), *self._size)
        self._record.add(now, lines)
        return lines

    def write(self, path: Path) -> None:
        """What was shown, as a picture. Whole or not at all."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(self._record.svg(*self._size, f"replug top: {self._side or ''} {self._instance}"))
        temporary.replace(path)
        print(f"replug: written: {path}", file=sys.stderr)

    def run(self, for_s: float | None = None) -> int:
        ends = None if for_s is None else time.monotonic() + for_s
        meant(self._side, self._instance)  # Refused now rather than on the screen, if it is not clear which one
        console = Console(highlight=False)
        with self._signals(), _cbreak(), Live(console=console, screen=True, auto_refresh=False) as live:
            threading.Thread(target=self._looks, name="looks", daemon=True).start()
            while not self._ended and (ends is None or time.monotonic() < ends):
                # Asked each time, and not of rich, which believes COLUMNS and LINES: those do not follow a resize.
                size = os.get_terminal_size(sys.stdout.fileno())
                console.size = ConsoleDimensions(size.columns, size.lines)
                self._size = console.width, console.height
                live.update(_text(self._draw()), refresh=True)
                self._wait([sys.stdin.fileno()])
        return Exit.DONE

    # -- what comes in -------------------------------------------------------------------------------------------
    def _wait(self, typed: list[int]) -> None:
        """Until a key, a signal (a resize is one), a look or a word of an order; at most until ages have changed."""
        ready, _, _ = select.select([*typed, self._wake_r], [], [], self._interval_s)
        if self._wake_r in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_r, 4096)
        clock = time.strftime("%H:%M:%S")
        while not self._found.empty():
            found = self._found.get()
            if isinstance(found, str):
                self._top.note(found, clock)
            else:
                self._top.looked(found, time.monotonic(), clock)
        if sys.stdin.fileno() in ready:
            data = os.read(sys.stdin.fileno(), 64)
            self._ended = self._ended or not data  # the terminal is gone
            for key in _keys(data.decode(errors="replace")):
                self._obey(self._top.key(key))

    def _looks(self) -> None:
        while True:
            try:
                self._tell(look_for(self._side, self._instance))
            except (ReplugError, OSError) as error:
                self._tell(f"cannot look: {error}")
            self._look_now.wait(self._interval_s)
            self._look_now.clear()

    def _tell(self, found: Document | str) -> None:
        self._found.put(found)
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_w, b"x")

    # -- what goes out -------------------------------------------------------------------------------------------
    def _obey(self, order: Order | None) -> None:
        if order is Order.QUIT:
            self._ended = True
        elif order is Order.LOG:
            self._top.logged(self._log(self._top.selected))
        elif order is not None:
            role = self._top.selected
            threading.Thread(target=self._command, args=(order.value, role), name=order.value, daemon=True).start()

    def _command(self, how: str, role: str) -> None:
        try:
            runtime = meant(self._side, self._instance)
            nothing = f"{how} {role}: nothing runs"
            self._tell(replaced(runtime, how, role, self._tell).told if runtime is not None else nothing)
        except (ReplugError, OSError) as error:
            self._tell(str(error))
        self._look_now.set()

    def _log(self, role: str) -> list[str]:
        try:
            runtime = meant(self._side, self._instance)
            if runtime is None or role not in recorded_roles(runtime):
                return ["no log: nothing runs"]
            return [human(line) for line in lines_of(runtime, role)[-_LOG_LINES:]]
        except (ReplugError, OSError) as error:
            return [str(error)]

    # -- the terminal --------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C, SIGTERM and SIGHUP end the loop, so that the terminal is restored by the same path as by q."""

        def end(*_: object) -> None:
            self._ended = True

        handlers = {signal.SIGINT: end, signal.SIGTERM: end, signal.SIGHUP: end, signal.SIGWINCH: lambda *_: None}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        woken = signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(woken)
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _cbreak() -> Iterator[None]:
    """Keys one by one and unseen."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSAFLUSH, before)


def _keys(text: str) -> list[str]:
    """What was typed, as names of keys. An escape sequence arrives in one read, or it is an escape."""
    keys = []
    while text:
        found = next((seq for seq in _ESCAPES if text.startswith(seq)), text[0])
        keys.append(_ESCAPES.get(found, found))
        text = text[len(found) :]
    return keys


def _text(lines: list[Line]) -> Text:
    return Text("\n", no_wrap=True, overflow="crop").join(Text.assemble(*line) for line in lines)
