"""One run: both sides put together from the product's own roles, a workload, faults, and what must hold at the end."""

import contextlib
import importlib
import mmap
import os
import select
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import gadget.session.core
import gadget.usb.core
import host.session.core
from common.ledger import LEDGER_BYTES, Ledger
from common.wire import ExportRecord
from gadget.session.core import export_name
from gadget.session.state import Device, State
from gadget.ublk.mark import export_of
from host.session.eject import Ejection
from host.session.served import Served
from tests.sim import ends, model_source, model_ublk
from tests.sim.checker import BLOCK, Checker
from tests.sim.faults import Faults
from tests.sim.model_bus import Hub
from tests.sim.model_link import Link
from tests.sim.model_source import Disk, SimLatch, SimSource
from tests.sim.processes import Process, SimThread
from tests.sim.roles import SimArena, SimLog, SimRole, SimRuntime, WatchedRole, private_memory
from tests.sim.setting import PLAIN, Setting
from tests.sim.supervision import Supervision
from tests.sim.trouble import Trouble
from tests.sim.workload import Workload
from tests.sim.world import World

EXPORTS = {0xA1: 24, 0xB2: 16}  # export id to blocks
MAX_IO = 8 * BLOCK
FAULTS = 8  # in a run, if nothing else is said
REST_S = 120.0  # after the last fault everything is at rest within this
_runs: list["Run"] = []


def here() -> "Run":
    """The run that is going on."""
    return _runs[-1]


class Run:
    """Both sides under `seed`. `execute` raises Violation."""

    def __init__(
        self,
        seed: int,
        requests: int = 60,
        faults: int = FAULTS,
        world: World | None = None,
        setting: Setting = PLAIN,
    ) -> None:
        self.setting = setting
        self.world = world or World(seed)
        self.v0 = self.world.perhaps(0.4)
        self.hub, self.link = Hub(), Link(self.world, self.v0)
        self.driver = model_ublk.Driver(self.world)
        self.arenas: dict[tuple[str, str, int], mmap.mmap] = {}
        self.files: dict[str, bytes] = {}  # state files
        self.ledgers: dict[tuple[str, int], bytearray] = {}
        self.latches: dict[int, bytearray] = {}  # by export id
        self.job: Any = None  # the one that a source's thread is at
        self.store: dict[str, dict[str, int]] = {}
        self.notes: dict[int, Any] = {}
        self.mounted: Any = None
        self.processes: dict[tuple[str, str], Process] = {}
        self.roles: dict[tuple[str, str], SimRole] = {}
        self.shells: dict[tuple[str, str], Any] = {}
        self.wanted: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}
        self.disks = {f"disk{n:x}": Disk(self.world, blocks * BLOCK) for n, blocks in EXPORTS.items()}
        if setting.others:
            smaller = [0 if self.world.perhaps(0.5) and not self.v0 else 4 for _ in EXPORTS]  # v0 tells sizes only
            for (n, blocks), less in zip(EXPORTS.items(), smaller, strict=True):
                self.disks[f"other{n:x}"] = other = Disk(self.world, (blocks - less) * BLOCK)
                other.bytes[:] = b"another disk's! " * (len(other.bytes) // 16)
        if setting.disks:
            for disk in self.disks.values():
                disk.trouble = Trouble(self.world)
        self.checker = Checker(self.world)
        self.supervision = Supervision(self) if setting.watchdogs else None
        self._requests, self._faults = requests, faults

    exports = EXPORTS

    @property
    def current(self) -> Process | None:
        return self.world.current

    @property
    def current_process(self) -> Process:
        assert self.world.current is not None
        return self.world.current

    # -- the supervisor ----------------------------------------------------------------------------------------------
    def _want(self) -> None:
        exports = [
            {
                "export_id": n,
                "block_size": BLOCK,
                "size_bytes": blocks * BLOCK,
                "name": f"{n:x}",
                "path": f"disk{n:x}",
                "read_only": False,
                "discard": True,
                "write_zeroes": True,
            }
            for n, blocks in EXPORTS.items()
        ]
        if self.setting.others:
            exports = [e | {"identity": f"disk {e['path']}"} for e in exports]
        self.wanted = {
            ("gadget", "usb"): ("gadget.usb.role", {}),
            ("gadget", "session"): ("gadget.session.role", {"queue_depth": 6, "max_io_bytes": MAX_IO}),
            ("host", "usb"): ("host.usb.role", {}),
            ("host", "session"): ("host.session.role", {"exports": exports}),
        }
        for export in exports:
            self.wanted["host", f"source.{export['name']}"] = ("host.source.role", export)

    def start(self, side: str, role: str) -> None:
        """A new incarnation, if one is wanted and none lives."""
        old = self.processes.get((side, role))
        if (side, role) not in self.wanted or (old is not None and not old.dead):
            return
        entry, args = self.wanted[side, role]
        process = Process(self.world, side, role, self.world.new_generation(side, role))
        self.processes[side, role] = process
        process.died = lambda why: self._again(side, role)
        self.live(process, entry, args, self.store.get(role, {}) if side == "gadget" else {})

    def live(self, process: Process, entry: str, args: dict[str, Any], fds: dict[str, int]) -> None:
        """In `process`: be the role."""
        side, role = process.side, process.role
        process.on_death.append(lambda: self._count_death(process))
        sim_role = (SimRole if self.supervision is None else WatchedRole)(self, process, args, fds)
        self.roles[side, role] = sim_role
        self.world.say(f"{process} is born")
        self.world.counts["births"] += 1
        self.shells.pop((side, role), None)
        module = importlib.import_module(entry)
        name = {"source": "_source", "queue": "Queue"}.get(role.split(".")[0]) or role.capitalize()

        def begin() -> None:
            self.shells[side, role] = self._shell(module, name, sim_role)
            process.wake()

        process.do(begin)

    @staticmethod
    def _shell(module: Any, name: str, role: SimRole) -> Any:
        """What the module's `start` does, and the object it makes."""
        made: list[Any] = []
        kind = "SourceRole" if name == "_source" else name
        original = getattr(module, kind)

        class Kept(original):  # type: ignore[misc, valid-type]
            def __init__(self, *args: Any) -> None:
                made.append(self)
                super().__init__(*args)

        Kept.__name__ = kind
        setattr(module, kind, Kept)
        try:
            module.start(role)
        finally:
            setattr(module, kind, original)
        return made[0]

    def _count_death(self, process: Process) -> None:
        """For the table of what was covered: who died in which state of the link, with or without I/O under way."""
        usb, session = self.shells.get(("gadget", "usb")), self.shells.get(("host", "session"))
        gadget = usb._core.link.name.lower() if usb is not None else "not there"
        host = session._core.state.name.lower() if session is not None else "not there"
        busy = "busy" if self.driver.in_flight() else "idle"
        role = process.role.split(".")[0]
        self.world.counts[f"death of {process.side} {role}: gadget {gadget}, host {host}, {busy}"] += 1

    def _again(self, side: str, role: str) -> None:
        self.world.soon(lambda: self.start(side, role), 1e-3, 80e-3)

    def from_role(self, role: SimRole, process: Process, note: dict[str, Any]) -> None:
        if note["note"] == "want":
            for item in note["roles"]:
                key = (process.side, item["role"])
                if key not in self.wanted:
                    self.wanted[key] = (item["entry"], item["args"])
                    self._again(*key)
        elif note["note"] == "job":
            done = {"note": "job_done", "function": note["function"], "ok": True, "reason": ""}
            self.world.soon(lambda: process.loop.post(lambda: role.note(done)), 1e-3, 30e-3)

    def runtime(self, side: str) -> SimRuntime:
        return SimRuntime(side)

    def log(self, process: Process) -> SimLog:
        return SimLog(self, process)

    def serve(self, export_id: int, other: bool) -> None:
        """The host dies as a whole, and comes back with `other` disk or the first one under this id."""
        path = f"{'other' if other else 'disk'}{export_id:x}"
        fresh = {"path": path, "size_bytes": len(self.disks[path].bytes), "identity": f"disk {path}"}
        entry, args = self.wanted["host", "session"]
        exports = [e | fresh if e["export_id"] == export_id else e for e in args["exports"]]
        self.wanted["host", "session"] = entry, {**args, "exports": exports}
        for (side, role), (entry, args) in self.wanted.items():
            if side == "host" and args.get("export_id") == export_id:
                self.wanted[side, role] = entry, args | fresh
        if self.supervision is not None:
            self.supervision.forget("host")
        self.kill_side("host")

    def kill_side(self, side: str) -> None:
        if self.supervision is not None:
            return self.supervision.kill_side(side)
        if side == "gadget":
            for fds in self.store.values():
                self.link.functions[fds["ep0"]][0].release("store")
            self.store.clear()
        for process in list(self.processes.values()):
            if process.side == side:
                process.finish("killed with its side")

    # -- the run -----------------------------------------------------------------------------------------------------
    def _first_roles(self) -> dict[int, Disk]:
        """Have all of them born; returns the disks of the exports."""
        self._want()
        if self.supervision is not None:
            self.supervision.begin()
        else:
            for side, role in list(self.wanted):
                self._again(side, role)
        return {n: self.disks[f"disk{n:x}"] for n in EXPORTS}

    def _last_reads(self, workload: Workload) -> None:
        """All is read once more, and comes to rest as it was read."""
        workload.read_all()
        self._until(lambda: workload.outstanding == 0, REST_S, "the last reads", workload)
        self._until(lambda: not self._busy(), 30.0, "everything to be at rest", workload)
        self._disks_are_as_read()

    def execute(self) -> None:
        with substituted(self):
            try:
                disks = self._first_roles()
                workload = Workload(self.world, self.driver, self.checker, disks, 4, zeroes_refused=self.v0)
                if self.world.random.random() < 0.7:  # else the faults begin while all is starting
                    self._until(lambda: workload.completed >= self._requests, REST_S, "the first requests", workload)
                faults = Faults(self, self._faults, 0.04, workload.stir)
                self._until(lambda: faults.over, 600.0, "the faults to be over", workload)
                for process in self.processes.values():
                    process.kill_in = None
                for disk in self.disks.values():
                    if disk.trouble is not None:
                        disk.trouble.heals()
                self._until(
                    lambda: workload.completed >= self._requests, REST_S, "requests to be completed again", workload
                )
                workload.stop()
                self._until(lambda: workload.done, REST_S, "every request to be completed", workload)
                self._last_reads(workload)
                self._supervised(workload)
            finally:
                self._end()

    def _supervised(self, workload: Workload) -> None:
        if self.supervision is not None:
            supervision = self.supervision
            self._until(lambda: not supervision.amiss(), REST_S, "each role to be watched", workload)
            supervision.down()
            self._until(lambda: not supervision.left(), REST_S, "both sides to be down", workload)

    def all_live(self) -> bool:
        return all(key in self.processes and self.processes[key].alive for key in self.wanted)

    def _end(self) -> None:
        everyone = self.processes.values() if self.supervision is None else self.supervision.everyone
        for process in everyone:
            process.alive = False
            process.threads_end()

    def _until(self, until: Callable[[], bool], limit_s: float, what: str, workload: Workload) -> None:
        if not self.world.run(until, limit_s):
            self.world.violate(
                f"{what}: not within {limit_s:g} s; {workload.outstanding} outstanding, {self._busy()}; "
                f"address {self.link.address}, {self.supervision or ''} "
                + ", ".join(
                    f"{p}{'' if p.alive else ' dead'}{' stopped' if p.stopped else ''}" for p in self.processes.values()
                )
            )
        if self.world.violation is not None:
            raise self.world.violation

    def _busy(self) -> str:
        """What is not given back; empty if everything is."""
        left = []
        if self.driver.in_flight():
            left.append(f"{self.driver.in_flight()} in the block layer")
        for (side, role), shell in self.shells.items():
            core = getattr(shell, "_core", None)
            if core is None:
                continue
            if role == "usb" and side == "gadget":
                left += [f"gadget usb {n}: {c}" for n, c in core.counts().items() if any(c)]
            elif role == "usb":
                for name, counts in core.counts().items():
                    if any(counts.values()):
                        left.append(f"host usb {name}: {counts}")
            elif role.startswith("source") and (core.running or core.waiting):
                left.append(f"{role}: {core.running} running, {core.waiting} waiting")
            elif role.startswith("queue") and core.in_flight:
                left.append(f"{role}: {core.in_flight} in flight")
        return "; ".join(left)

    def _disks_are_as_read(self) -> None:
        for export_id, blocks in EXPORTS.items():
            disk = self.disks[f"disk{export_id:x}"]
            for lba in range(blocks):
                self.checker.read_ended(
                    export_id, lba, self.world.now, bytes(disk.bytes[lba * BLOCK : (lba + 1) * BLOCK])
                )
        if self.world.violation is not None:
            raise self.world.violation

    # -- the gadget's kernel as the session sees it ------------------------------------------------------------------
    def devices_of(self, instance: str) -> tuple[Device, ...]:
        found = []
        for number, device in self.driver.devices.items():
            export_id = export_of(device.mark, instance)
            if export_id is not None and device.params is not None:
                record = ExportRecord(export_id, device.params.block_size, device.params.size_bytes)
                found.append(Device(export_name(record), record, number))
        return tuple(found)

    def has_device(self, export_id: int) -> bool:
        return any(device.record.export_id == export_id for device in self.devices_of(SimRuntime.instance))

    def ledger_of(self, runtime: SimRuntime, export_id: int) -> Ledger:
        return Ledger(self.ledgers.setdefault((runtime.side, export_id), bytearray(LEDGER_BYTES)))

    def load(self, path: str, instance: str) -> State | None:
        data = self.files.get(path)
        return None if data is None else State.decode(data)

    def save(self, path: str, state: State) -> None:
        self.current_process.effect("state save")
        self.files[path] = state.encode()


_QUEUE, _GUSB, _HUSB = "gadget.ublk.role", "gadget.usb.role", "host.usb.role"


@contextlib.contextmanager
def substituted(run: Run) -> Iterator[None]:
    """The models in the places of what they model, for one run."""
    model_ublk.Control.driver = run.driver
    SimSource.disks = run.disks
    random = SimpleNamespace(randbits=run.world.random.getrandbits)
    pids = SimpleNamespace(getpid=lambda: run.current_process.pid, strerror=os.strerror)
    table: list[tuple[str, str, Any]] = [
        (_QUEUE, "Control", model_ublk.Control),
        (_QUEUE, "QueueDevice", model_ublk.QueueDevice),
        (_QUEUE, "Arena", SimArena),
        (_QUEUE, "time", SimpleNamespace(monotonic=lambda: run.world.now)),
        (_QUEUE, "threading", SimpleNamespace(Thread=SimThread)),
        ("gadget.session.role", "devices_of", run.devices_of),
        ("gadget.session.role", "remove_unfinished", lambda instance, known: []),  # no run loses who knows of them
        ("gadget.session.role", "ublk_ids", lambda: frozenset(run.driver.devices)),
        ("gadget.session.role", "can_resize", lambda: True),
        ("gadget.session.role", "load", run.load),
        ("gadget.session.role", "save", run.save),
        ("gadget.session.role", "secrets", random),
        ("gadget.session.role", "write_names", lambda root, devices: None),
        ("gadget.session.role", "ledger_of", run.ledger_of),
        ("gadget.session.role", "distrust_missing", lambda runtime, export_ids: []),  # no run loses them
        ("gadget.session.operator", "load_wishes", lambda role: {}),
        (_GUSB, "ledger_of", run.ledger_of),
        (_GUSB, "Arena", SimArena),
        (_GUSB, "Keeping", ends.Keeping),
        (_GUSB, "tree_of", lambda runtime, args, controller="": ends.GadgetTree()),
        (_GUSB, "udc", SimpleNamespace(choose=lambda wanted: "sim")),
        # A death ends its transfers in the model, as the end of its holder does: no run sees what that holder is for.
        (_GUSB, "mm_hold", SimpleNamespace(left=lambda *who: [], found=lambda *who: [])),
        ("gadget.usb.transport", "AioContext", ends.AioContext),
        ("gadget.usb.transport", "Ep0", ends.Ep0),
        ("gadget.usb.transport", "open_file", ends.open_file),
        ("gadget.usb.transport", "PeerNote", ends.PeerNote),
        ("gadget.usb.kept", "PeerNote", ends.PeerNote),
        ("gadget.usb.transport", "select", SimpleNamespace(poll=ends.Poll, POLLIN=select.POLLIN)),
        (
            "gadget.usb.connection",
            "udc",
            SimpleNamespace(
                speed=lambda name: "high-speed",
                state=lambda name: "configured" if run.link.configured else "not attached",
            ),
        ),
        ("gadget.usb.plane_v0", "mmap", SimpleNamespace(mmap=private_memory)),
        ("gadget.usb.plane_v1", "mmap", SimpleNamespace(mmap=private_memory)),
        ("gadget.usb.endpoint", "os", SimpleNamespace(read=ends.halting_read)),
        (_HUSB, "Arena", SimArena),
        (_HUSB, "library", SimpleNamespace(require=lambda: None)),
        ("host.usb.attachment", "Thread", SimThread),
        ("host.usb.attachment", "secrets", random),
        ("host.usb.device", "UsbFs", ends.UsbFs),
        ("host.usb.device", "_describe", ends.describe),
        ("host.session.role", "find", ends.find),
        ("host.session.role", "Uevents", ends.Uevents),
        ("host.session.role", "Hold", ends.Hold),
        ("host.session.role", "os", pids),
        ("host.session.offer", "load_served", lambda runtime, sources: Served(tuple(sources))),
        ("host.session.offer", "load_ejection", lambda runtime: Ejection()),
        ("host.session.offer", "boot_id", lambda: bytes(range(16))),
        ("host.source.role", "time", SimpleNamespace(monotonic=lambda: run.world.now)),
        ("host.source.role", "Arena", SimArena),
        ("host.source.role", "Thread", model_source.WorkerThread),
        ("host.source.role", "SimpleQueue", model_source.JobQueue),
        ("host.source.role", "ledger_of", run.ledger_of),
        ("host.source.role", "parse", lambda name: name),
        ("host.source.role", "open_source", SimSource),
        ("host.source.role", "Latch", SimLatch),
        ("host.source.latch", "os", model_source.LATCH_OS),
        ("host.source.file", "os", model_source.FILE_OS),
        ("host.source.file", "fallocated", model_source.fallocated),
        ("gadget.usb.role", "UsbCore", _counting(run, gadget.usb.core.UsbCore, "link")),
        ("gadget.session.role", "configure", _noting_refusals(run, gadget.session.core.configure)),
        ("host.session.role", "SessionCore", _counting(run, host.session.core.SessionCore, "state")),
        ("common.limits", "HOST_ARENA_BYTES", 32 * 1024),
        ("common.limits", "TRANSFER_BYTES", 2048),
    ]
    if run.supervision is not None:
        table = [entry for entry in table if entry[:2] != (_GUSB, "Keeping")] + run.supervision.substitutes()
    # All are imported before the first is changed: `from x import y` of one would keep a model for ever.
    places = [(importlib.import_module(module_name), name) for module_name, name, _ in table]
    before = [(module, name, getattr(module, name)) for module, name in places]
    _runs.append(run)
    try:
        for (module, name), (_, _, value) in zip(places, table, strict=True):
            setattr(module, name, value)
        yield
    finally:
        _runs.pop()
        for module, name, value in before:
            setattr(module, name, value)


def _noting_refusals(run: Run, configure: Any) -> Any:
    def noted(*args: Any, **more: Any) -> Any:
        decision = configure(*args, **more)
        run.world.counts["another disk was announced"] += len(decision.refused)
        return decision

    return noted


def _counting(run: Run, core: Any, state: str) -> Any:
    """The same core, each of whose transitions is counted."""

    class Counted(core):  # type: ignore[misc]
        def on(self, event: Any) -> Any:
            before = getattr(self, state)
            steps = super().on(event)
            run.world.counts[f"transition {type(before).__module__} {before.name} {event.name}"] += 1
            return steps

    return Counted
