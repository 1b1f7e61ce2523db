"""The table of what was struck and how long I/O paused, as people read it and as documentation keeps it."""

from collections import defaultdict
from statistics import median


class Table:
    """Pauses, in seconds, by event."""

    def __init__(self) -> None:
        self._pauses: defaultdict[str, list[float]] = defaultdict(list)

    def add(self, event: str, pause_s: float) -> None:
        self._pauses[event].append(pause_s)

    def __str__(self) -> str:
        lines = ["| event | times | outcome | pause, median | pause, longest |", "|---|---|---|---|---|"]
        for event, pauses in sorted(self._pauses.items()):
            times = f"{median(pauses) * 1000:.0f} ms | {max(pauses) * 1000:.0f} ms"
            lines.append(f"| {event} | {len(pauses)} | went on | {times} |")
        return "\n".join(lines)
