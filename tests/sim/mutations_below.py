"""Deliberate faults below and above the data path: in sources, and in who watches over the roles.

As tests.sim.mutations has them; each with the setting of a run in which it can show.
"""

import errno
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import bus.keeping
import gadget.session.core
import host.source.core
import host.source.executor
import host.source.file
import host.source.latch
import tools.supervise.keeper
import tools.supervise.table
import tools.supervise.watchdog
from tests.sim.model_source import FILE_OS
from tests.sim.setting import Setting
from tools.supervise.core import Core as Supervisor
from tools.supervise.core import Signal
from tools.supervise.memory import Memory
from tools.supervise.table import ALIVE, Event, State

Mutation = Callable[[], Any]


def error_answered_as_ok() -> Any:
    """A source says that an operation went well which had failed (invariant 1, issue 4)."""
    original = host.source.executor.Executor.do

    def do(self: Any, job: Any, arena: Any) -> int:
        original(self, job, arena)
        return 0

    return patch.object(host.source.executor.Executor, "do", do)


def errno_becomes_eio() -> Any:
    """A source tells no other errno than EIO (section 5: that I/O fails with that errno)."""
    original = host.source.core.SourceCore.finished
    return patch.object(
        host.source.core.SourceCore, "finished", lambda self, job, status: original(self, job, status and errno.EIO)
    )


def short_read_taken_for_whole() -> Any:
    """A source reads once, however much comes (section 5)."""

    def read(self: Any, offset: int, into: Any) -> None:
        FILE_OS.preadv(self._fd, [into], offset)

    return patch.object(host.source.file.FileSource, "_read", read)


def short_write_taken_for_whole() -> Any:
    """A source writes once, however much goes (invariant 1)."""

    def write(self: Any, offset: int, data: Any) -> None:
        FILE_OS.pwritev(self._fd, [data], offset)

    return patch.object(host.source.file.FileSource, "_write", write)


def failed_flush_forgotten() -> Any:
    """After a failed fdatasync the next one is believed (invariant 1: it latches the export)."""
    return patch.object(host.source.latch.Latch, "set", lambda self, reason: None)


def failed_flush_not_recorded() -> Any:
    """A source knows of its failed fdatasync, its successor does not (invariant 1: recorded before it is answered)."""
    return patch.object(host.source.latch.Latch, "set", lambda self, reason: setattr(self, "reason", reason))


def healthy_restarted_at_adoption() -> Any:
    """A new watchdog ends what it finds, to start it anew (sections 1 and 5: it restarts nothing that is healthy)."""
    original = Supervisor.found

    def found(self: Any, spec: Any, pid: int, *rest: Any, **more: Any) -> Any:
        return [*original(self, spec, pid, *rest, **more), Signal(spec.role, pid, signal.SIGKILL)]

    return patch.object(Supervisor, "found", found)


def adoption_forgotten() -> Any:
    """A new watchdog orders everything, whoever lives (invariant 7)."""
    return patch.object(tools.supervise.watchdog.Watchdog, "_adopt", lambda self, spec, dynamic, wanted: False)


def lost_orders_forgotten() -> Any:
    """What a dead spawner had not answered is not ordered from the next one (section 5)."""
    return patch.object(Supervisor, "orders_lost", lambda self, now: [])


def silence_accepted() -> Any:
    """A role that says nothing for ever is left alone (section 5: SIGSTOP of any role)."""
    return patch.dict(tools.supervise.table.TABLE, {(State.ASKED, Event.LATE): (State.RUNNING, ())})


def death_of_the_adopted_unseen() -> Any:
    """A watchdog waits for its spawner to tell of each death, which tells of its own children only (section 5)."""
    return patch.object(
        tools.supervise.watchdog.Watchdog, "_pidfd_says", lambda self, role, pid: self._loop.unwatch(self._pidfds[pid])
    )


def no_new_watchdog() -> Any:
    """A spawner does not mind that the watchdog is dead (section 5)."""
    original = tools.supervise.keeper.Keeper._renew

    def renew(self: Any, now: float) -> None:
        if self._early_deaths or self._spoke:
            return
        original(self, now)

    return patch.object(tools.supervise.keeper.Keeper, "_renew", renew)


def silent_watchdog_accepted() -> Any:
    """A spawner does not mind that the watchdog says nothing (section 5: SIGSTOP of any role)."""
    return patch("common.limits.SILENT_WAITS", 10**9)


def descriptors_kept_once() -> Any:
    """A role does not leave its descriptors with a new spawner (section 5: gadget usb stays enumerated)."""
    return patch.object(bus.keeping.Keeping, "_heard", lambda self: self._role.loop.unwatch(self._socket.fileno()))


def another_disk_taken() -> Any:
    """The gadget goes on with whatever the host announces under an export's id (invariant 5)."""
    return patch.object(gadget.session.core, "_changed", lambda device, export, can_grow: None)


def identity_ignored() -> Any:
    """The gadget takes a disk of the same size for the same disk (invariant 5)."""
    original = gadget.session.core._changed

    def changed(device: Any, export: Any, can_grow: bool) -> Any:
        return original(replace(device, identity=""), export, can_grow)

    return patch.object(gadget.session.core, "_changed", changed)


def left_behind() -> Any:
    """`down` ends the roles and does not take away what they leave in the kernel (invariant 6)."""
    gone = {(state, Event.DIED_UNWANTED): (State.GONE, ()) for state in ALIVE}
    return patch.dict(tools.supervise.table.TABLE, gone)


def down_forgotten() -> Any:
    """A watchdog that takes the place of one that was going down starts everything again (invariant 6)."""
    load = Memory.load
    return patch.object(Memory, "load", staticmethod(lambda runtime: replace(load(runtime), down=False)))


def lost_retirement_forgotten() -> Any:
    """A retirement that a dead spawner took with it is not ordered again: `down` never ends (invariant 6)."""
    lost = {(State.RETIRE_ORDERED, Event.LOST): (State.RETIRE_ORDERED, ())}
    return patch.dict(tools.supervise.table.TABLE, lost)


_DISKS, _WATCHDOGS, _OTHERS = Setting(disks=True), Setting(watchdogs=True), Setting(others=True)
# What a run needs beyond the first faults for one of these to show.
SETTINGS: dict[Mutation, Setting] = {
    error_answered_as_ok: _DISKS,
    errno_becomes_eio: _DISKS,
    short_read_taken_for_whole: _DISKS,
    short_write_taken_for_whole: _DISKS,
    failed_flush_forgotten: _DISKS,
    failed_flush_not_recorded: _DISKS,
    healthy_restarted_at_adoption: _WATCHDOGS,
    adoption_forgotten: _WATCHDOGS,
    lost_orders_forgotten: _WATCHDOGS,
    silence_accepted: _WATCHDOGS,
    death_of_the_adopted_unseen: _WATCHDOGS,
    no_new_watchdog: _WATCHDOGS,
    silent_watchdog_accepted: _WATCHDOGS,
    descriptors_kept_once: _WATCHDOGS,
    another_disk_taken: _OTHERS,
    identity_ignored: _OTHERS,
    left_behind: _WATCHDOGS,
    down_forgotten: _WATCHDOGS,
    lost_retirement_forgotten: _WATCHDOGS,
}
