"""What a peer sent that we will not do: counted by kind, and logged, but never as fast as a flood of it comes.

A peer on the wire may be anybody's, and each of its requests must not cost a line: a log that is cut over at a size
would hold nothing else. Of a crowd of one kind the first lines stand for all, and the next line says how many went
without one. Both `usb` roles and the host's session have one of these; the numbers are in their status and metrics.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from common import limits
from common.log import Log


@dataclass(slots=True)
class _Lines:
    """Of one kind: when its present period began, and how many had a line in it and since the last line none."""

    since: float
    said: int = 0
    unsaid: int = 0


class Refusals:
    """`now` is the role's clock, in seconds."""

    def __init__(self, log: Log, now: Callable[[], float]) -> None:
        self._log, self._now = log, now
        self._counts: Counter[str] = Counter()
        self._lines: dict[str, _Lines] = {}

    def count(self, kind: str, why: str) -> None:
        """One more of this kind: `why` is a line of its own, if there are not too many already."""
        self._counts[kind] += 1
        now = self._now()
        lines = self._lines.setdefault(kind, _Lines(now))
        if now - lines.since >= limits.REFUSALS_WITHIN_S:
            lines.since, lines.said = now, 0
        if lines.said >= limits.REFUSALS_LOGGED:
            lines.unsaid += 1
            return
        lines.said += 1
        self._log.warning(f"refused: {why}", **({"unsaid": lines.unsaid} if lines.unsaid else {}))
        lines.unsaid = 0

    def status(self) -> dict[str, Any]:
        """For a role's status: all of them, and how many of each kind."""
        return {"refused": self._counts.total(), "refusals": dict(self._counts)}
