"""Pauses as they are measured, kept in a file so that a long run can be gone on with, and the table made of them."""

import json
from collections import defaultdict
from pathlib import Path
from statistics import median


class Results:
    """Pauses in seconds by event and, for a cell, stage. `path`: JSON lines, one for each; None: this run only."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._pauses: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                row = json.loads(line)
                self._pauses[row["event"], row["stage"]].append(row["pause_s"])

    def add(self, event: str, stage: str, pause_s: float) -> None:
        self._pauses[event, stage].append(pause_s)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps({"event": event, "stage": stage, "pause_s": round(pause_s, 3)}) + "\n")

    def times(self, event: str, stage: str) -> int:
        return len(self._pauses[event, stage])

    def cell(self, event: str, stage: str) -> str:
        """Median and longest, in ms."""
        pauses = self._pauses[event, stage]
        return f"{median(pauses) * 1000:.0f} / {max(pauses) * 1000:.0f}" if pauses else "never struck"

    def __str__(self) -> str:
        lines = ["| event | stage | times | outcome | pause, median / longest, ms |", "|---|---|---|---|---|"]
        for (event, stage), pauses in sorted(self._pauses.items()):
            if pauses:
                lines.append(f"| {event} | {stage or 'any'} | {len(pauses)} | went on | {self.cell(event, stage)} |")
        return "\n".join(lines)
