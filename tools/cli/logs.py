"""`replug log` and `replug trace`: what the roles have written, and what they write, of one role or of one I/O.

People on a terminal get lines for people, everything else gets the JSON lines as they are. A level is switched by a
control call; a trace is a loan that the role takes back by itself when we are gone.
"""

import contextlib
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from bus.control import ask
from bus.runtime import Runtime, living, recorded_roles
from common.errors import Exit, Gone, Refused, ReplugError
from common.log import Level, human
from tools.cli.where import find

_LOOK_S = 0.05
_LEND_S = 6.0  # a trace is lent for so long, and asked for again each third of it
_DEAF = ("spawner", "twin")  # they fork, and must not have ZeroMQ: nothing can be asked of them
_STEPS = ("usb", "queue.", "source.")  # who handles I/O


def log(side: str | None, instance: str, role: str, form: str | None, follow: bool) -> int:
    """What the role's log still has, older part first; then, with `follow`, what comes, until Ctrl-C."""
    runtime = find(side, instance)
    _known(runtime, role)
    tail = Tail([runtime.log_path(role)])
    _print(lines_of(runtime, role), form)
    while follow:
        _print(tail.lines(), form)
        time.sleep(_LOOK_S)
    return Exit.DONE


def set_level(side: str | None, instance: str, role: str, level: str) -> int:
    """From now on, and of successors; the answer says what it was."""
    runtime = find(side, instance)
    _known(runtime, role)
    if role in _DEAF:
        raise Refused(f"{role}: it cannot be asked, so its level is always info: its log has every fork")
    try:
        before = ask(runtime, role, "log_level", {"level": level})
    except Gone as error:
        raise Refused(f"log {role}: {error}: its level is what it was", Exit.FAULT) from None
    print(f"replug: {role}: log level {level}, was {before}: successors keep it", file=sys.stderr)
    return Exit.DONE


def trace(side: str | None, instance: str, role: str | None, io: str, for_s: float | None, form: str | None) -> int:
    """Every step of every I/O (or of `io`) in one role, or in all that handle I/O, until Ctrl-C or for `for_s`."""
    runtime = find(side, instance)
    if role is not None:
        _known(runtime, role)
        if role in _DEAF:
            raise Refused(f"{role}: no I/O goes through it, and it cannot be asked: see 'replug log {role}'")
    ends = None if for_s is None else time.monotonic() + for_s
    tail, lent, due = Tail([]), 0, 0.0
    try:
        while ends is None or time.monotonic() < ends:
            if time.monotonic() >= due:
                roles = [role] if role is not None else _on_the_path(runtime)
                tail.watch(runtime.log_path(each) for each in roles)
                lent = _lend(runtime, roles, Level.TRACE, _LEND_S)
                if not lent and due == 0.0:
                    raise Refused(
                        f"trace: none of {', '.join(roles) or 'the roles'} answers: see 'replug status'", Exit.FAULT
                    )
                due = time.monotonic() + (_LEND_S / 3 if lent else _LOOK_S)
            _print((line for line in tail.lines() if _is_step(line, io)), form)
            time.sleep(_LOOK_S)
    finally:
        _lend(runtime, [role] if role is not None else _on_the_path(runtime), Level.TRACE, 0.05)  # enough: taken back
    return Exit.DONE


def _on_the_path(runtime: Runtime) -> list[str]:
    return [r for r in recorded_roles(runtime) if r.startswith(_STEPS) and living(runtime, r) is not None]


def _lend(runtime: Runtime, roles: list[str], level: Level, for_s: float) -> int:
    """To how many: one that is being replaced is asked again at the next time."""
    lent = 0
    for role in roles:
        with contextlib.suppress(ReplugError):
            ask(runtime, role, "log_level", {"level": level.name, "for_s": for_s}, timeout_s=1.0)
            lent += 1
    return lent


def _is_step(line: str, io: str) -> bool:
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        return str(json.loads(line).get("io", "")).startswith(io) and '"io"' in line
    return False


def _known(runtime: Runtime, role: str) -> None:
    if role not in recorded_roles(runtime):
        raise Refused(f"{role}: no such role here: the roles are {', '.join(recorded_roles(runtime))}")


def lines_of(runtime: Runtime, role: str) -> list[str]:
    """The log's older part, the log, and what the interpreter itself said at last; as they were written."""
    path = runtime.log_path(role)
    parts = [part for part in (path.with_name(f"{path.name}.1"), path, path.with_suffix(".err")) if part.exists()]
    return [line for part in parts for line in part.read_text(errors="replace").splitlines()]


class Tail:
    """What is written to files from now on: whole lines, of all files in the order of their times."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._files: dict[Path, tuple[int, int]] = {}  # inode and offset
        self._rest: dict[Path, bytes] = {}
        self.watch(paths)

    def watch(self, paths: Iterable[Path]) -> None:
        """Those too, from their present end."""
        for path in paths:
            if path not in self._files and path.exists():
                status = path.stat()
                self._files[path] = status.st_ino, status.st_size

    def lines(self) -> list[str]:
        found = [line for path in self._files for line in self._more(path)]
        return sorted(found, key=_time_of)

    def _more(self, path: Path) -> list[str]:
        """Its new lines; when the log was cut over, first those at the end of the older part."""
        inode, offset = self._files[path]
        data = b""
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino != inode:
                older = path.with_name(f"{path.name}.1")
                if older.exists() and older.stat().st_ino == inode:
                    data = _from(older, offset)
                offset = 0
            new = _from(path, offset)
            self._files[path] = path.stat().st_ino, offset + len(new)
            data = self._rest.pop(path, b"") + data + new
        whole, newline, self._rest[path] = data.rpartition(b"\n")
        return (whole + newline).decode(errors="replace").splitlines()


def _from(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read()


def _time_of(line: str) -> str:
    """Lines of ours begin with their time, all in UTC and of one length."""
    return line[:44] if line.startswith('{"time":') else ""


def _print(lines: Iterable[str], form: str | None) -> None:
    people = sys.stdout.isatty() if form is None else form == "human"
    for line in lines:
        sys.stdout.write((human(line) if people else as_json(line)) + "\n")
    sys.stdout.flush()


def as_json(line: str) -> str:
    """A line of a log as it is; the interpreter's own words as an object with `text` alone."""
    return line if line.startswith("{") else json.dumps({"text": line}, ensure_ascii=False)
