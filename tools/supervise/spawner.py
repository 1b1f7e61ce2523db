"""The spawner: a single-threaded fork server with every role's modules imported, and the store of spare descriptors.

It holds no ZeroMQ socket, ring or thread, ever, because its children inherit what it holds. It does what the watchdog
orders over a Unix socket, and decides only one thing itself: that there is a watchdog. Executed once for a side
(`python -m tools.supervise.spawner ROOT SIDE INSTANCE`, by tools.supervise.launch); its successors are its twins, or
that of a new installation (tools.supervise.succession).
"""

import contextlib
import errno
import gc
import importlib
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from bus import fds as fdsocket
from bus import network, newroot
from bus.role import WATCHDOG
from bus.runtime import Runtime, Side, boottime_ns, living, sign, take_name, write_reason
from common import limits, trace
from common.errors import Gone, ReplugError, RoleExit, WireError
from common.log import Log
from tools.supervise import process, succession
from tools.supervise.birth import RETIRE, START, be_role
from tools.supervise.keeper import Keeper
from tools.supervise.peers import Peers
from tools.supervise.plan import WATCHDOG_ENTRY, Plan, RoleSpec
from tools.supervise.store import Store
from tools.supervise.twin import Twin, fork_twin

SPAWNER = "spawner"


@dataclass
class Child:
    role: str
    generation: int
    function: str


class Spawner:
    """The living spawner. `run` never returns here, only in the twin that it forks."""

    def __init__(self, runtime: Runtime, plan: Plan, store: Store) -> None:
        self.runtime, self.plan, self.store = runtime, plan, store
        self.generation = boottime_ns()
        self._name_fd = _take_name_at_last(runtime, self.generation)
        self.log = Log(runtime.log_path(SPAWNER), SPAWNER)
        self._children: dict[int, Child] = {}
        self._armed: dict[str, dict[str, Any]] = {}  # kill points of tests, for the next process of a role
        self._last_generation = 0
        self._selector = selectors.DefaultSelector()
        self._peers = Peers(self._selector, runtime.spawner_socket(), self.log, self._obey)
        self._wake = self._watch_children()
        self._twin: tuple[int, socket.socket] | None = None
        self._keeper = Keeper(runtime, self.log, self._spawn_watchdog)
        self._watch_adopted()
        self.log.info(f"spawner, generation {self.generation}")

    # -- the loop ------------------------------------------------------------------------------------------------
    def run(self) -> Twin:
        """Serve until killed or told to shut down; returns only in a child: the new twin."""
        while True:
            if self._twin is None:
                twin = self._renew_twin()
                if twin is not None:
                    return twin
            ready = self._selector.select(self._keeper.patience())
            for key, _ in ready:
                handler: Callable[[], None] = key.data
                handler()
            if not ready:  # what it said while we were held up is heard before it is called silent
                self._keeper.keep()
                self._watch_adopted()

    def _watch_children(self) -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(ours, selectors.EVENT_READ, self._reap)
        return ours, theirs

    # -- forking -------------------------------------------------------------------------------------------------
    def _fork(self) -> tuple[int, int]:
        """fork(2) with signals held back in the child until it has reset them. Returns (pid or 0, generation)."""
        self._keep_up()
        generation = max(boottime_ns(), self._last_generation + 1)
        self._last_generation = generation
        held = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        return pid, generation

    def _keep_up(self) -> None:
        """Children begin with our root. What we were started from may have been an initramfs."""
        if newroot.keep_up(self.runtime.root):
            self.log.info("the root file system was switched: following it")

    def _spawn_watchdog(self) -> int:
        return self._spawn(RoleSpec(WATCHDOG, WATCHDOG_ENTRY), START, urgent=True)[0]

    def _spawn(self, spec: RoleSpec, function: str, urgent: bool) -> tuple[int, int]:
        """Fork `spec`'s process. Raises OSError if there can be none now."""
        kept = self.store.of(spec.role) if function == START else {}
        armed = self._armed.pop(spec.role, None) if function == START else None
        pid, generation = self._fork()
        if pid == 0:
            spec = spec if armed is None else replace(spec, args={**spec.args, "trace": armed})
            be_role(self.runtime, spec, function, generation, kept, urgent)
        self._children[pid] = Child(spec.role, generation, function)
        trace.point("spawner.forked")
        return pid, generation

    def _renew_twin(self) -> Twin | None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        me = os.pidfd_open(os.getpid())
        try:
            pid, _ = self._fork()
        except OSError as error:
            self.log.error(f"no twin: fork: {error.strerror}")
            pid = -1
        if pid == 0:
            trace.arm(None)
            self._let_go(ours)
            return fork_twin(self.runtime, self.plan, self.store, theirs, me)
        theirs.close()
        os.close(me)
        if pid < 0:
            ours.close()
            return None
        ours.setblocking(False)
        self._twin = (pid, ours)
        self._peers.tell({"event": "twin", "pid": pid})
        return None

    def _let_go(self, *more: socket.socket) -> None:
        """In the twin: no object of ours may close a descriptor number that is someone else's by then."""
        self._selector.close()
        self._peers.detach()
        for sock in (*self._wake, *more):
            sock.detach()
        if self._twin is not None:
            self._twin[1].detach()

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake[0].recv(4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._ended(pid, status)

    def _ended(self, pid: int, status: int) -> None:
        if self._twin is not None and pid == self._twin[0]:
            self._twin[1].close()
            self._twin = None
            return
        child = self._children.pop(pid, None)
        if child is None:
            return  # an orphan of a role's
        if pid == self._keeper.pid:
            self._keeper.died(status)
        self._peers.tell({"event": "exit", "role": child.role, "pid": pid, "status": status})

    def _watch_adopted(self) -> None:
        fd = self._keeper.pidfd
        if fd is not None and fd not in self._selector.get_map():
            self._selector.register(fd, selectors.EVENT_READ, self._adopted_watchdog_died)

    def _adopted_watchdog_died(self) -> None:
        if self._keeper.pidfd is not None:
            self._selector.unregister(self._keeper.pidfd)
        self._keeper.died(None)

    # -- orders --------------------------------------------------------------------------------------------------
    def _obey(self, peer: socket.socket, message: dict[str, Any], received: list[int]) -> None:
        match message["do"]:
            case "beat":
                sign(self._name_fd)
                self._keeper.heard()
                self._keep_up()
                self._peers.send(peer, {"event": "beat"})
            case "watch":
                self._keeper.heard()
                self._peers.send(peer, self._greeting())
            case "spawn":
                self._order(peer, message)
            case "keep":
                self.store.keep(str(message["role"]), [str(n) for n in message["names"]], received)
                self._forward(message, tuple(received))
                self._peers.send(peer, {"event": "kept"})
            case "drop":
                self._drop(str(message["role"]))
                self._peers.send(peer, {"event": "dropped"})
            case "arm":
                self._arm(str(message["role"]), message["trace"])
                self._peers.send(peer, {"event": "armed"})
            case "successor":
                self._execute_successor(peer, message)
            case succession.SUCCEED:
                self._give_place(peer, message)
            case "shutdown":
                self._shutdown(keep_directory=bool(message.get("keep_directory")))
            case other:
                raise WireError(f"unknown order {other!r}")

    def _arm(self, role: str, fields: dict[str, Any]) -> None:
        """A test's kill point for the next process of `role`, or for us. Once: successors of that one are not armed."""
        trace.Armed.of(fields)
        if role == SPAWNER:
            trace.arm(fields)
        elif len(self._armed) < limits.MAX_ROLES:
            self._armed[role] = fields

    def _greeting(self) -> dict[str, Any]:
        return {
            "event": "hello",
            "pid": os.getpid(),
            "generation": self.generation,
            "twin": self._twin[0] if self._twin else None,
            "children": list(self._children),
        }

    def _order(self, peer: socket.socket, message: dict[str, Any]) -> None:
        spec, serial = RoleSpec.of(message), int(message["serial"])
        function = str(message["function"])
        if function == RETIRE:
            self._drop(spec.role)  # a spare copy would keep alive what is to be taken away
        try:
            pid, generation = self._spawn(spec, function, urgent=message.get("urgent") is True)
        except OSError as error:
            why = f"fork: {error.strerror}"
            self._peers.send(peer, {"event": "refused", "role": spec.role, "serial": serial, "why": why})
            return
        pidfd = os.pidfd_open(pid)  # not reaped yet, so it is that one's
        told = {"event": "spawned", "role": spec.role, "serial": serial, "pid": pid, "generation": generation}
        self._peers.send(peer, told, (pidfd,))
        os.close(pidfd)

    def _execute_successor(self, peer: socket.socket, message: dict[str, Any]) -> None:
        """A spawner of another installation; it asks for our place when it is ready."""
        command, pythonpath = succession.command_of(message)
        pid, _ = self._fork()
        if pid == 0:
            succession.execute(self.runtime, command, pythonpath)
        self.log.info(f"successor {pid}: {' '.join(command)}")
        pidfd = os.pidfd_open(pid)
        self._peers.send(peer, {"event": "successor", "pid": pid}, (pidfd,))
        os.close(pidfd)

    def _give_place(self, peer: socket.socket, message: dict[str, Any]) -> None:
        """Give all that is kept, and go. Nothing of the side is touched but the twin, which is ours alone."""
        succession.check_format(message)
        succession.give(peer, self.store)
        if self._twin is not None:
            succession.end_twin(self._twin[0])
        self.log.info("the place is given to a successor")
        trace.point("spawner.twin.ended")
        os._exit(0)

    def _drop(self, role: str) -> None:
        """Let go of what is kept for `role`, and be sure that the twin has, too (bounded)."""
        if not self.store.drop(role) or self._twin is None:
            return
        pid, link = self._twin
        self._forward({"do": "drop", "role": role})
        link.settimeout(2.0)
        try:
            fdsocket.receive(link)
            link.setblocking(False)
        except (Gone, WireError, OSError):
            self.log.warning("the twin does not let go: killed")
            os.kill(pid, signal.SIGKILL)

    def _forward(self, message: dict[str, Any], sent: tuple[int, ...] = ()) -> None:
        if self._twin is not None:
            with contextlib.suppress(Gone, OSError):  # a dead twin is renewed, and its successor inherits the store
                fdsocket.send(self._twin[1], message, sent)

    # -- the end -------------------------------------------------------------------------------------------------
    def _shutdown(self, keep_directory: bool) -> NoReturn:
        """Last of all: the twin, the watchdog, whatever is left of our children, the runtime directory, ourselves."""
        doomed = {*self._children, *([self._twin[0]] if self._twin else [])}
        fds = [os.pidfd_open(pid) for pid in doomed]
        if self._keeper.pidfd is not None:
            fds.append(self._keeper.pidfd)
        for fd in fds:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        _await_deaths(fds, limits.DEATH_S)
        if not keep_directory:
            self.runtime.remove()
        os._exit(0)


def _await_deaths(fds: list[int], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    with selectors.DefaultSelector() as selector:
        for fd in fds:
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                selector.unregister(key.fileobj)


def _take_name_at_last(runtime: Runtime, generation: int) -> int:
    """The name `spawner`. A child just forked by a dead spawner may hold the flock a moment until it closes it."""
    deadline = time.monotonic() + 2.0
    while True:
        try:
            return take_name(runtime, SPAWNER, generation)
        except Gone:
            if living(runtime, SPAWNER) is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def preload(plan: Plan) -> list[str]:
    """Import every module the side's roles need; returns what could not be, with the reason."""
    missing = []
    for entry in dict.fromkeys([WATCHDOG_ENTRY, *(spec.entry for spec in plan.roles), *plan.preload]):
        try:
            importlib.import_module(entry)
        except Exception as error:  # whatever a module does on import, it is the one line that tells it
            missing.append(f"{entry}: {error}" if isinstance(error, ImportError) else f"{entry}: {error!r}")
    return missing


def main(argv: list[str]) -> int:
    """Become the spawner of a side. Exit statuses as a role's; the reason of a failure is left as `spawner`'s."""
    root, side, instance, *how = argv
    runtime = Runtime(Side(side), instance, Path(root).parent)
    process.reset_signals()  # whoever executed us may have blocked some
    process.redirect_output(runtime.root / "log" / f"{SPAWNER}.err")
    process.set_comm(SPAWNER)
    if os.environ.get("REPLUG_ROOT_STORAGE") == "1":
        process.spare_at_shutdown()
    try:
        plan = Plan.load(runtime)
        missing = preload(plan)
        if missing:
            write_reason(runtime, SPAWNER, "cannot import " + "; ".join(missing))
            return RoleExit.NEVER
        prepare()
        stage = _succeed(runtime, plan) if how == [succession.SUCCEED] else Spawner(runtime, plan, Store())
        while True:  # each turn is one generation: only the twin's process comes out of run()
            twin = stage.run()
            store = twin.wait()
            prepare()
            stage = Spawner(runtime, plan, store)
    except (ReplugError, OSError) as error:
        write_reason(runtime, SPAWNER, f"{type(error).__name__}: {error}")
        return RoleExit.NEVER if getattr(error, "errno", None) != errno.EAGAIN else RoleExit.RESTART


def _succeed(runtime: Runtime, plan: Plan) -> Spawner:
    """In the place of the one that runs. If it died and its twin was faster, we ask that one."""
    while True:
        store = succession.until_given(runtime)
        try:
            return Spawner(runtime, plan, store)
        except Gone:
            store.drop_all()


def prepare() -> None:
    """What a spawner is, beyond a process: reaper of orphans, spared by the OOM killer, locked, nothing to collect."""
    network.begin()
    process.become_subreaper()
    process.serve_block_devices()
    gc.collect()
    gc.freeze()
    process.lock_memory(on_fault=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
