"""One digest for each state of a run: of everything that decides how it goes on, and of nothing else.

Walked are all objects that can be reached from what is to come (planned events), the models and the living roles,
closures and all. What is only a name is told by its place: a time by how long ago it is, an address by the memory it
points into, an fd by when it is met first. A dead process does nothing any more. What is of no known kind raises, so
that nothing is overlooked. Too fine a digest costs a branch that was not needed; too coarse a one would skip a branch
that was, so whatever is left out has its reason here.
"""

import ctypes
import hashlib
import marshal
import mmap
from _thread import LockType
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from datetime import datetime
from enum import Enum
from functools import partial
from itertools import count
from struct import Struct
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import msgpack

from common.iostats import IoStats
from host.usb.waits import Waits
from tests.sim.checker import Written
from tests.sim.processes import Process, SimThread
from tests.sim.roles import SimLog
from tests.sim.steady import NUMBERS, Steady, SteadyRun, SteadyWorld
from tests.sim.world import START, World

_ADDRESS = 1 << 40  # a number as large may be one; if nothing that was met is there it stays what it is
_NEVER = 1e9  # no time of a run is as late
_NOT_STATE = {
    "guide",  # who decides is not part of what is decided
    "effects",  # of a process: counted for faults at random
    "_settled",  # the events to come tell
    "began",  # of the requests: told by their rank among writes, and by the requests themselves
    "reads",  # of the checker: how many it has judged
    "_iovecs",  # written anew before each use, and full of addresses
}
# They have no state but what they are; or it is told to people and decides nothing: wall-clock times, statistics.
_NAMED = (
    type, ModuleType, BuiltinFunctionType, Struct, World, SimLog, msgpack.Packer, datetime, LockType, IoStats, Waits,
)  # fmt: skip
_PLAIN = (bool, int, float, str, bytes, type(None))


def digest(run: SteadyRun) -> int:
    tokens = _Walk(run).tokens()
    return int.from_bytes(hashlib.blake2b(marshal.dumps(tokens, 2), digest_size=8).digest(), "little")


def _is_over(call: object) -> bool:
    """A wake-up of a process that does not wake up any more."""
    owner = getattr(call, "__self__", None)
    return isinstance(owner, Process) and not owner.alive and getattr(call, "__name__", "") != "_gone"


def _dead(value: object) -> bool:
    """Of a process that is not there any more; its jobs that may still land are arguments of planned events."""
    owner = value if isinstance(value, Process) else getattr(value, "process", getattr(value, "_process", None))
    return isinstance(owner, Process) and not owner.alive


class _Walk:
    """One pass over all objects, in an order that depends on nothing but the state."""

    def __init__(self, run: SteadyRun) -> None:
        self._run, self._now = run, run.world.now
        self._out: list[Any] = []
        self._todo: list[object] = []
        self._met: dict[int, int] = {}  # by id
        self._kept: list[object] = []  # as long as its id is known
        self._fds: dict[int, int] = {}
        self._memory: list[tuple[int, int, int]] = []  # address, size, which met object is there
        self._addresses: list[int] = []  # where in `_out` there is one
        history = {t for h in run.checker._history.values() for w in h for t in (w.began, w.ended)}
        self._rank = {t: n for n, t in enumerate(sorted(history | set(run.began.values())))}

    def tokens(self) -> list[Any]:
        run = self._run
        assert isinstance(run.world, SteadyWorld)
        events = [e for e in sorted(run.world._queue) if e.call is not None and not _is_over(e.call)]
        to_come = [(event.due, event.call) for event in events]
        self._todo = [to_come, run.world.births, self._draws(), self._begun(), _attributes(type(run), run)]
        while self._todo:
            self._take(self._todo.pop())
        self._memory.sort()
        for place in self._addresses:
            address = self._out[place]
            base, size_bytes, memory = self._memory[bisect_right(self._memory, (address, _ADDRESS)) - 1]
            if base <= address <= base + size_bytes:
                self._out[place] = (memory, address - base)
        return self._out

    def _draws(self) -> dict[int, int]:
        random = self._run.world.random
        assert isinstance(random, Steady)
        living = {p.generation for p in self._run.processes.values() if p.alive}
        return {generation: n for generation, n in random.draws.items() if generation in living}

    def _begun(self) -> dict[int, int]:
        return {export_id: self._rank[time] for export_id, time in self._run.began.items()}

    def _take(self, value: Any) -> None:
        kind = type(value)
        if kind in _PLAIN:
            return self._plain(value)
        if isinstance(value, Enum):
            return self._say(repr(value))
        if isinstance(value, _NAMED):
            return self._say("named", getattr(value, "__qualname__", kind.__name__))
        known = self._met.get(id(value))
        if known is not None and kind is not tuple:
            return self._say("met", known)
        self._met[id(value)] = len(self._kept)
        self._kept.append(value)
        if kind is Written:
            self._say("written", value.version, self._rank[value.began], self._rank[value.ended])
        elif _dead(value):
            self._say("dead", kind.__name__, str(getattr(value, "role", "")))
        elif kind is SimThread:
            self._later("thread", _thread(value))
        else:
            self._compound(kind, value)

    def _say(self, *tokens: object) -> None:
        self._out += tokens

    def _plain(self, value: Any) -> None:
        if isinstance(value, float):
            value = ("ago", round(self._now - value, 6)) if START <= value < _NEVER else value
        elif isinstance(value, int) and value >= NUMBERS:
            if value >= _ADDRESS:
                self._addresses.append(len(self._out))
            elif value < 2 * NUMBERS:
                value = ("fd", self._fds.setdefault(value, len(self._fds)))
        self._out.append(value)

    def _compound(self, kind: type, value: Any) -> None:
        if isinstance(value, dict):
            self._later("dict", [part for item in value.items() for part in item])
        elif isinstance(value, list | tuple | deque):
            self._later("list", value)
        elif isinstance(value, set | frozenset):
            self._later("set", sorted(value, key=_name))
        elif isinstance(value, mmap.mmap | ctypes.Array | bytearray):
            self._bytes(value)
        elif isinstance(value, memoryview):
            self._later("view", [value.nbytes, value.obj])
        elif kind is FunctionType:
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            self._later(value.__code__.co_qualname, [*cells, value.__defaults__, value.__kwdefaults__])
        elif kind is MethodType:
            self._later(value.__func__.__qualname__, [value.__self__])
        elif kind is partial:
            self._later("partial", [value.func, value.args, value.keywords])
        elif kind is count:
            self._say(repr(value))
        else:
            self._later(kind.__qualname__, _attributes(kind, value))

    def _later(self, what: str, parts: Iterable[object]) -> None:
        """`parts` are taken next, in their order."""
        parts = list(parts)
        self._say(what, len(parts))
        self._todo += reversed(parts)

    def _bytes(self, value: Any) -> None:
        if not isinstance(value, bytearray):
            whole = (ctypes.c_char * len(value)).from_buffer(value) if isinstance(value, mmap.mmap) else value
            self._memory.append((ctypes.addressof(whole), ctypes.sizeof(whole), len(self._kept) - 1))
        self._say(hashlib.blake2b(value, digest_size=8).digest())


def _attributes(kind: type, value: Any) -> list[object]:
    slots = [name for base in kind.__mro__ for name in vars(base).get("__slots__", ()) if name != "__dict__"]
    if not slots and not hasattr(value, "__dict__"):
        raise TypeError(f"what decides of a {kind.__module__}.{kind.__qualname__}?")
    found = {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(value, "__dict__", {})
    return [part for name, held in found.items() if name not in _NOT_STATE for part in (name, held)]


def _thread(thread: SimThread) -> list[object]:
    """Where it waits. What is only on the stack of a frame has come from the locals of the same frame."""
    if thread._ended:
        return []
    parts: list[object] = [thread._process, thread._target, thread._ready, thread._started, thread._abandoned]
    frame = thread._greenlet.gr_frame if thread._started else None
    while frame is not None:
        parts += [frame.f_code.co_qualname, frame.f_lasti, frame.f_locals]
        frame = frame.f_back
    return parts


def _name(value: object) -> str:
    """Of what is in a set, whose order is nobody's."""
    if isinstance(value, Process):
        return f"{value.side} {value.role} {value.alive}"
    if not isinstance(value, (*_PLAIN, tuple, Enum)):
        raise TypeError(f"in which order are {type(value).__name__}s in a set?")
    return repr(value)
