"""What the watchdog tells about processes: the `processes` of `status --json`, from the core's facts and /proc.

Called by tools.supervise.watchdog; rendered by tools.cli.
"""

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bus.role import WATCHDOG
from bus.runtime import ProcessRecord, Runtime, boottime_ns, living
from tools.supervise.core import Core, RoleLife
from tools.supervise.plan import Plan
from tools.supervise.table import State

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


class Report:
    """Keeps the last sample of each process's CPU time, to tell the share since the status before."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._samples: dict[int, tuple[float, int]] = {}

    def status(self, core: Core, plan: Plan, twin: int | None, now: float) -> dict[str, Any]:
        """`now` is the core's clock."""
        own = [self._named(living(self._runtime, role), role) for role in (WATCHDOG, "spawner")]
        twins = [self._row("twin", twin, 0, "running", "", 0, "", None)] if twin is not None else []
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
        since = datetime.fromtimestamp(time.time() - age_s, UTC)
        pause_ms = None if life.pause_s is None else round(life.pause_s * 1000)
        state = "failed" if life.state is State.GONE and life.failure else life.state.shown
        row = self._row(
            life.spec.role,
            life.pid,
            life.generation,
            state,
            since.isoformat(timespec="milliseconds"),
            life.restarts,
            life.last_exit,
            pause_ms,
        )
        return {**row, "reason": life.failure or life.reason, "phase": life.state.name.lower()}

    def _named(self, record: ProcessRecord | None, role: str) -> dict[str, Any]:
        if record is None:
            return self._row(role, None, 0, "starting", "", 0, "", None)
        age_s = (boottime_ns() - record.generation) / 1e9
        since = datetime.fromtimestamp(time.time() - age_s, UTC).isoformat(timespec="milliseconds")
        return self._row(role, record.pid, record.generation, "running", since, 0, "", None)

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
