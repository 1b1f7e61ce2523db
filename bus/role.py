"""The skeleton all roles share: name and log, control calls, the lane to the watchdog, drain, crash-only exit.

The spawner forks a process and calls `live(birth, start)`. `start(role)` recovers what the last incarnation left, hangs
its handlers on the loop and returns; it calls `role.ready()` when the role can do its work. A role never heals itself
inside: it leaves its reason in the runtime directory and exits, and the watchdog starts a successor.
"""

import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

import zmq

from bus import newroot
from bus.control import Arguments, ControlServer, Method
from bus.direct import DirectContext
from bus.envelope import Body, Kind
from bus.lane import Context, LaneClient, LaneServer
from bus.loop import Loop, Timer
from bus.runtime import Runtime, sign, take_name, write_reason
from common import follow, limits, trace
from common.errors import Gone, Refused, ReplugError, RoleExit
from common.log import Level, Log

WATCHDOG = "watchdog"
SESSION = "session"
DATA_LANE = "data"


@dataclass(frozen=True)
class Birth:
    """What a role is born with. `args` is what the watchdog's order said; `fds` what the spawner kept for it.

    `urgent`: I/O may wait for it, so it goes before its elders until it is ready. A first start is not.
    """

    runtime: Runtime
    role: str
    generation: int
    args: dict[str, Any] = field(default_factory=dict)
    fds: dict[str, int] = field(default_factory=dict)
    urgent: bool = False


class Role:
    """One living role. Handlers hang on `loop`; lanes are made here so that they carry our name and generation."""

    def __init__(self, birth: Birth) -> None:
        self.birth, self.runtime, self.name = birth, birth.runtime, birth.role
        self.generation, self.args = birth.generation, birth.args
        self._name_fd = take_name(birth.runtime, birth.role, birth.generation)
        self.log = Log(birth.runtime.log_path(birth.role), birth.role)
        follow.to(self.log if self.log.level <= Level.TRACE else None)
        self._lent: tuple[Level, Timer] | None = None  # what the level is after a loan, and when that is
        self.loop = Loop()
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.on_drain: Callable[[], None] = lambda: self.loop.stop(RoleExit.DRAINED)
        self.status: Callable[[], dict[str, Any]] = dict
        self._ready = False
        self._methods: dict[str, Method] = {
            "status": self._call_status,
            "log_level": self._call_log_level,
            "trace": self._call_trace,
            "record": self._call_record,
        }
        self._control = ControlServer(
            self.loop,
            self.context,
            self.name,
            self.generation,
            self.runtime.endpoint(self.name, "control"),
            self._methods,
        )
        self._watch_signals()
        self.watchdog: LaneClient | None = None
        self._on_watchdog_note: Callable[[dict[str, Any]], None] = lambda note: None
        if self.name != WATCHDOG:
            self.watchdog = self.connect(WATCHDOG, "roles", self._hello, self._introduce, self._from_watchdog)
        self.loop.beat(limits.BEAT_S, self._beat)

    # -- lanes and calls -----------------------------------------------------------------------------------------
    def connect(
        self,
        server: str,
        lane: str,
        hello: Callable[[], Body],
        on_peer: Callable[[int], None],
        on_message: Callable[[Kind, Body], None],
    ) -> LaneClient:
        """Be a client of `server`'s lane; see bus.lane."""
        endpoint = self.runtime.endpoint(server, lane)
        context = self._context_of(lane)
        return LaneClient(
            self.loop, context, self.log, self.name, self.generation, endpoint, hello, on_peer, on_message
        )

    def serve(
        self, lane: str, on_peer: Callable[[str, int, Body], None], on_message: Callable[[str, Kind, Body], None]
    ) -> LaneServer:
        """Bind one of our lanes; see bus.lane."""
        endpoint = self.runtime.endpoint(self.name, lane)
        context = self._context_of(lane)
        return LaneServer(self.loop, context, self.log, self.name, self.generation, endpoint, on_peer, on_message)

    def _context_of(self, lane: str) -> Context:
        """Each I/O pays for what travels on a data lane: that one does without ZeroMQ's threads (bus.direct)."""
        return DirectContext() if lane == DATA_LANE else self.context

    def method(self, name: str, handler: Method) -> None:
        """Answer control call `name` with `handler(arguments)`."""
        self._methods[name] = handler

    # -- towards the watchdog ------------------------------------------------------------------------------------
    def ready(self) -> None:
        """This incarnation does its work now. Said once; deaths before it count for the back-off."""
        if not self._ready:
            trace.point("role.ready")
            self._ready = True
            if (
                self.name != WATCHDOG
            ):  # who is not heard in time is killed by it, and it by the spawner: it must be heard
                _go_first(limits.NICE)
                _finish_turns()
            self.log.info(f"ready, generation {self.generation}")
            self.tell_watchdog({"note": "ready"})

    def tell_watchdog(self, note: dict[str, Any]) -> None:
        if self.watchdog is not None:
            self.watchdog.send(Kind.NOTE, note)

    def on_watchdog(self, introduce: Callable[[], None], note: Callable[[dict[str, Any]], None]) -> None:
        """`introduce` at every new watchdog (say again what it must know); `note` for each note it sends."""
        self._introduce_more, self._on_watchdog_note = introduce, note

    _introduce_more: Callable[[], None] = staticmethod(lambda: None)

    def _beat(self) -> None:
        if newroot.keep_up(self.runtime.root):
            self.log.info("the root file system was switched: following it")
        sign(self._name_fd)
        self.tell_watchdog({"note": "beat"})

    def _hello(self) -> Body:
        return {"pid": os.getpid(), "ready": self._ready}

    def _introduce(self, generation: int) -> None:
        self._introduce_more()

    def _from_watchdog(self, kind: Kind, body: Body) -> None:
        if kind is Kind.NOTE and isinstance(body, dict):
            if body.get("note") == "alive?":
                self.tell_watchdog({"note": "beat"})
            else:
                self._on_watchdog_note(body)

    # -- signals and control calls -------------------------------------------------------------------------------
    def _watch_signals(self) -> None:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        self._signal_ends = (ours, theirs)
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)

        def readable() -> None:
            ours.recv(64)
            self.log.info("asked to drain")
            self.on_drain()

        self.loop.watch(ours.fileno(), readable)

    def _call_status(self, arguments: Arguments) -> dict[str, Any]:
        sign(self._name_fd)
        own = {"role": self.name, "pid": os.getpid(), "generation": self.generation}
        return {**own, "log_level": self.log.level.name.lower(), **self.status()}

    def _call_log_level(self, arguments: Arguments) -> str:
        """`level`, kept for successors too; or with `for_s` only that long, and then what it was before."""
        before, level = self.log.level, Level[str(arguments["level"]).upper()]
        if "for_s" in arguments:
            self._lend(level, float(arguments["for_s"]))
        else:
            self.log.keep_level(level)
            self._lent = None
        follow.to(self.log if self.log.level <= Level.TRACE else None)
        return before.name.lower()

    def _lend(self, level: Level, for_s: float) -> None:
        """Whoever asks asks again while it wants it: the asker may be killed, and the level must not stay."""
        if not 0 < for_s <= limits.LENT_LEVEL_S:
            raise Refused(f"for_s {for_s:g}: above 0 and up to {limits.LENT_LEVEL_S:g} s")
        self._lent = self._lent or (self.log.level, self.loop.after(0.0, lambda: None))
        back, timer = self._lent
        timer.cancel()
        self.log.level = level
        self._lent = back, self.loop.after(for_s, self._take_back)

    def _take_back(self) -> None:
        if self._lent is not None:
            self.log.level, self._lent = self._lent[0], None
            follow.to(self.log if self.log.level <= Level.TRACE else None)

    def _call_trace(self, arguments: Arguments) -> str:
        trace.arm(arguments)
        return str(arguments["name"])

    def _call_record(self, arguments: Arguments) -> list[tuple[str, int]]:
        return trace.record(bool(arguments["on"]))


def live(birth: Birth, start: Callable[[Role], None]) -> NoReturn:
    """Be this role until it ends; never returns. Called in a fresh child that holds no ring, context or thread."""
    status: int
    try:
        _end_with_threads(birth)
        if birth.urgent:
            _go_first(limits.NEWBORN_NICE)
        trace.arm(birth.args.get("trace"))  # tests only: no plan of ours has it
        trace.point("role.starting")
        role = Role(birth)
        start(role)
        status = role.loop.run()
    except BaseException as error:  # the last catcher of the process: the reason must be told before it is gone
        status = _last_words(birth, error)
    os._exit(status)  # a thread blocked in a USB transfer cannot be joined


def _last_words(birth: Birth, error: BaseException) -> RoleExit:
    """Leave the reason and where it happened; returns how to end."""
    known = isinstance(error, (Gone, ReplugError, OSError))
    if isinstance(error, Refused):
        write_reason(birth.runtime, birth.role, str(error))
        return RoleExit.NEVER
    named = f"{type(error).__name__}: {error}"
    write_reason(birth.runtime, birth.role, named if known else f"fault in {birth.role}: {named}")
    _log_where(birth, error)
    return RoleExit.RESTART


def _end_with_threads(birth: Birth) -> None:
    """A thread that ends by an exception takes the role with it: what it did, nobody else does.

    Python's own words at such an end, and those of a finaliser, show lines of the source: read from the very disk that
    may wait for us.
    """

    def ended(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
            status = RoleExit.RESTART
            try:
                status = _last_words(birth, args.exc_value)
            finally:
                os._exit(status)

    def unraisable(args: "sys.UnraisableHookArgs") -> None:
        if args.exc_value is not None:
            _log_where(birth, args.exc_value)

    threading.excepthook = ended
    sys.unraisablehook = unraisable


def _go_first(niceness: int) -> None:
    """Each thread has its own niceness."""
    with suppress(OSError):  # EPERM, EACCES: a host side of somebody who may not; ESRCH: a thread that just ended
        for thread in os.listdir("/proc/self/task"):
            os.setpriority(os.PRIO_PROCESS, int(thread), niceness)


def _finish_turns() -> None:
    """SCHED_BATCH: being woken, a role does not interrupt who woke it, but runs when that one has done its turn.

    Else each message costs its sender a switch away and back in the middle of its work (docs/performance.md). Not while
    a role is starting: I/O waits for it alone then.
    """
    with suppress(OSError):
        for thread in os.listdir("/proc/self/task"):
            os.sched_setscheduler(int(thread), os.SCHED_BATCH, os.sched_param(0))


def _log_where(birth: Birth, error: BaseException) -> None:
    """Each frame and what was raised, without lines of the source: those may be on the very disk that waits for us."""
    log = Log(birth.runtime.log_path(birth.role), birth.role)
    for frame, line in traceback.walk_tb(error.__traceback__):
        log.error(f"at {frame.f_code.co_filename}:{line} in {frame.f_code.co_qualname}")
    log.error(f"{type(error).__name__}: {error}")
