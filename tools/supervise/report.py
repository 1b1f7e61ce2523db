"""What is told about processes: the `processes` of `status --json`, from the watchdog's facts and /proc.

Called by tools.supervise.watchdog; and, while no watchdog answers, by tools.cli.look for what is known without one.
"""

import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bus.role import WATCHDOG
from bus.runtime import Runtime, boottime_ns, last_sign, living, modified
from common.errors import Refused
from tools.supervise.core import Core, RoleLife
from tools.supervise.launch import SPAWNER, supervised
from tools.supervise.memory import History, Memory
from tools.supervise.plan import Plan
from tools.supervise.table import State
from tools.supervise.twin import TWIN

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


_NONE = History()


@dataclass(frozen=True)
class Death:
    when: datetime
    how: str


class Report:
    """Keeps the last sample of each process's CPU time, to tell the share since the status before."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._samples: dict[int, tuple[float, int]] = {}

    def status(
        self, core: Core, plan: Plan, twin: int | None, spawner_lost_at: float | None, now: float
    ) -> dict[str, Any]:
        """`now` is the core's clock, by which the spawner is gone since `spawner_lost_at`."""
        lost = None if spawner_lost_at is None else Death(_ago(now - spawner_lost_at), "")
        own = [self._watchdog(), self._recorded(SPAWNER, death=lost)]
        twins = [] if twin is None else [self._twin(twin)]
        roles = [self._role(life, now) for life in core.roles.values()]
        return {
            "side": plan.side.value,
            "instance": plan.instance,
            "going_down": core.going_down,
            "processes": [*own, *twins, *roles],
        }

    def _role(self, life: RoleLife, now: float) -> dict[str, Any]:
        # A running process has run since its fork, which a new watchdog knows as well; other states since they began.
        running = life.state.shown == "running" and life.generation
        age_s = (boottime_ns() - life.generation) / 1e9 if running else now - life.since
        pause_ms = None if life.pause_s is None else round(life.pause_s * 1000)
        state = "failed" if life.state is State.GONE and life.failure else life.state.shown
        row = self._row(
            life.spec.role,
            life.pid,
            life.generation,
            state,
            _iso(_ago(age_s)),
            life.restarts,
            life.last_exit,
            pause_ms,
        )
        return {**row, "reason": life.failure or life.reason, "phase": life.state.name.lower()}

    def without_watchdog(self) -> dict[str, Any]:
        """As `status`, from what each process, the plan and the last watchdog have left in the runtime directory."""
        memory = Memory.load(self._runtime)
        try:
            planned = Plan.load(self._runtime).roles
        except Refused:
            planned = ()
        roles = [spec.role for spec in (*planned, *memory.wanted, *memory.leaving)]
        # Without a spawner or its twin nobody starts anything: what is dead stays so.
        healed = supervised(self._runtime) or living(self._runtime, TWIN) is not None
        dead = "starting" if healed else "failed"
        own = [self._watchdog(dead), self._recorded(SPAWNER, dead)]
        twins = [self._recorded(TWIN)] if living(self._runtime, TWIN) is not None else []
        others = [self._recorded(role, dead, past=memory.history.get(role, _NONE)) for role in dict.fromkeys(roles)]
        return {"going_down": memory.down, "processes": [*own, *twins, *others]}

    def _twin(self, pid: int) -> dict[str, Any]:
        record = living(self._runtime, TWIN)
        if record is not None and record.pid == pid:
            return self._recorded(TWIN)
        return self._row(TWIN, pid, 0, "running", "", 0, "", None)  # just forked: its record is not written yet

    def _watchdog(self, dead: str = "starting") -> dict[str, Any]:
        """With how the last one ended, which the spawner has written down; it is the present one's end if newer."""
        path = self._runtime.death_path(WATCHDOG)
        told, sign = modified(path), last_sign(self._runtime, WATCHDOG)
        how = path.read_text() if told is not None else ""
        death = Death(told, how) if told is not None and (sign is None or told >= sign) else None
        return self._recorded(WATCHDOG, dead, death, History(last_exit=how))

    def _recorded(
        self, role: str, dead: str = "starting", death: Death | None = None, past: History = _NONE
    ) -> dict[str, Any]:
        """By its record: alive or not, and if not, then since when, as far as anything tells."""
        record = living(self._runtime, role)
        if record is None:
            since = death.when if death is not None else last_sign(self._runtime, role)
            how = death.how if death is not None else past.last_exit
            return self._row(role, None, 0, dead, _iso(since), past.restarts, how, past.pause_ms)
        born = _iso(_ago((boottime_ns() - record.generation) / 1e9))
        pid, generation = record.pid, record.generation
        return self._row(role, pid, generation, "running", born, past.restarts, past.last_exit, past.pause_ms)

    def _row(
        self,
        role: str,
        pid: int | None,
        generation: int,
        state: str,
        since: str,
        restarts: int,
        last_exit: str,
        pause_ms: int | None,
    ) -> dict[str, Any]:
        rss_bytes, cpu_percent = self._usage(pid)
        return {
            "role": role,
            "pid": pid,
            "generation": generation,
            "state": state,
            "since": since,
            "restarts": restarts,
            "last_exit": last_exit,
            "pause_ms": pause_ms,
            "rss_bytes": rss_bytes,
            "cpu_percent": cpu_percent,
        }

    def _usage(self, pid: int | None) -> tuple[int, float]:
        """Resident bytes, and the share of one CPU since the last look (since its start at the first)."""
        if pid is None:
            return 0, 0.0
        try:
            rss = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0, 0.0
        ticks, born = int(fields[11]) + int(fields[12]), int(fields[19]) / _TICKS
        now = boottime_ns() / 1e9
        last, before = self._samples.get(pid, (born, 0))
        self._samples[pid] = (now, ticks)
        return rss, round(100 * (ticks - before) / _TICKS / max(now - last, 0.01), 1)


def _ago(seconds: float) -> datetime:
    return datetime.fromtimestamp(time.time() - seconds, UTC)


def _iso(moment: datetime | None) -> str:
    return "" if moment is None else moment.isoformat(timespec="milliseconds")
