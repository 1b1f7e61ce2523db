"""Notes each line of ours that runs, in memory that outlives whoever ran it: kill -9 loses nothing.

One file for each source file, a byte for each line, mapped shared. Forked children inherit the mappings and go on. A
code object whose lines have all been seen is traced no more. Started in every Python process of the environment by a
.pth file that tests.cover.__main__ puts there for the time of a run.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

WHERE = "REPLUG_COVER"  # the directory of the maps
PACKAGES = ("common", "bus", "gadget", "host", "tools")
_ROOT = str(Path(__file__).resolve().parents[2]) + os.sep
_READ_WRITE, _SHARED = 3, 1  # PROT_READ | PROT_WRITE, MAP_SHARED

Trace = Callable[[FrameType, str, Any], Any]


def lines_of(code: CodeType) -> set[int]:
    """That an interpreter tells a tracer of."""
    return {line for _, _, line in code.co_lines() if line is not None and line > 0}


class Tracer:
    """`trace` is what sys.settrace wants."""

    def __init__(self, where: Path) -> None:
        self._where = where
        self._mmap = ctypes.CDLL(None, use_errno=True).mmap
        self._mmap.restype = ctypes.c_void_p
        numbers = (ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)  # protection, flags, fd, offset
        self._mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *numbers]
        self._maps: dict[str, Any] = {}
        # By id, as a code object's own hash is made of all its parts; the reference keeps the id from being reused.
        self._known: dict[int, tuple[CodeType, Trace | None]] = {}

    def trace(self, frame: FrameType, event: str, argument: Any) -> Trace | None:
        code = frame.f_code
        known = self._known.get(id(code))
        if known is None:
            known = self._known[id(code)] = (code, self._first(code))
        return known[1]

    def _first(self, code: CodeType) -> Trace | None:
        name = code.co_filename
        if not name.startswith(_ROOT) or name[len(_ROOT) :].split(os.sep)[0] not in PACKAGES:
            return None
        seen, left = self._map(name[len(_ROOT) :]), lines_of(code)

        def line(frame: FrameType, event: str, argument: Any) -> Trace | None:
            if event == "line":
                number = frame.f_lineno
                if number in left:
                    seen[number] = 1
                    left.discard(number)
                if not left:
                    self._known[id(code)] = (code, None)
                    return None
            return line

        seen[code.co_firstlineno] = 1
        left.discard(code.co_firstlineno)
        return line if left else None

    def _map(self, name: str) -> Any:
        if name not in self._maps:
            with open(_ROOT + name, "rb") as source:
                size = source.read().count(b"\n") + 2
            path = self._where / (name.replace(os.sep, "+") + ".lines")
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                if os.fstat(fd).st_size < size:
                    os.ftruncate(fd, size)
                # Not Python's own mmap, which keeps a descriptor: a role's child closes those that it does not know.
                address = self._mmap(None, size, _READ_WRITE, _SHARED, fd, 0)
            finally:
                os.close(fd)
            if address in (None, ctypes.c_void_p(-1).value):
                raise OSError(ctypes.get_errno(), f"{path}: cannot be mapped")
            self._maps[name] = (ctypes.c_ubyte * size).from_address(address)
        return self._maps[name]


def start() -> None:
    """In this process, its threads to come and its forked children, if the environment asks for it."""
    where = os.environ.get(WHERE)
    if where and sys.gettrace() is None:
        tracer = Tracer(Path(where))
        threading.settrace(tracer.trace)
        sys.settrace(tracer.trace)
