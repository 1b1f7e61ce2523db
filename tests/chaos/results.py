"""Pauses as they are measured, kept in a file so that a long run can be gone on with, and the table made of them."""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from tests.chaos.budgets import Promise

NOT_RUN = "not run yet"


class Results:
    """Pauses in seconds by event and, for a cell, stage; and which did not go on.

    `promised`: the pauses that tests.chaos.budgets judges. `measured`: what else was, by its name there.
    `path`: JSON lines, one for each, added to; None: this run only. `beside`: what others measured, only read.
    """

    def __init__(self, path: Path | None = None, beside: Iterable[Path] = ()) -> None:
        self._path = path
        self._pauses: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        self.failures: dict[tuple[str, str], str] = {}
        self.promised: list[tuple[Promise, float]] = []
        self.measured: defaultdict[str, list[float]] = defaultdict(list)
        for file in {*beside, *([path] if path is not None and path.exists() else [])}:
            for line in file.read_text().splitlines():
                self._take(json.loads(line))

    def _take(self, row: dict[str, Any]) -> None:
        if "measured" in row:
            self.measured[row["measured"]].append(row["s"])
            return
        cell = (row["event"], row["stage"])
        if row.get("promise"):
            self.promised.append((Promise(row["promise"]), row["pause_s"]))
        if "failed" in row:
            self.failures[cell] = row["failed"]
        else:
            self._pauses[cell].append(row["pause_s"])

    def add(self, event: str, stage: str, pause_s: float, promise: Promise | None = None) -> None:
        self._keep({"event": event, "stage": stage, "pause_s": round(pause_s, 4), "promise": promise or ""})

    def measure(self, name: str, seconds: float) -> None:
        self._keep({"measured": name, "s": round(seconds, 4)})

    def add_failure(self, event: str, stage: str, why: str) -> None:
        self._keep({"event": event, "stage": stage, "failed": why})

    def _keep(self, row: dict[str, Any]) -> None:
        self._take(row)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")

    def times(self, event: str, stage: str) -> int:
        return len(self._pauses[event, stage])

    def cell(self, event: str, stage: str) -> str:
        """Median and longest, in ms; one figure of what was struck once."""
        if (event, stage) in self.failures:
            return "**failed**"
        pauses = self._pauses[event, stage]
        if len(pauses) > 1:
            return f"{median(pauses) * 1000:.0f} / {max(pauses) * 1000:.0f}"
        return f"{pauses[0] * 1000:.0f}" if pauses else NOT_RUN

    def __str__(self) -> str:
        lines = ["| event | stage | times | outcome | pause, median / longest, ms |", "|---|---|---|---|---|"]
        for (event, stage), pauses in sorted(self._pauses.items()):
            if pauses:
                lines.append(f"| {event} | {stage or 'any'} | {len(pauses)} | went on | {self.cell(event, stage)} |")
        return "\n".join(lines)
