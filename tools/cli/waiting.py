"""What a command says while it waits: for what, since when, and, where something shrinks, how long it may still take.

Nothing for FIRST_S, then a line each EVERY_S. Pure: time and amounts come in, lines go out. Used by all commands that
wait for a side: up, down, restart, eject, export, add and remove.
"""

from dataclasses import dataclass

from common.units import show_size, show_time

FIRST_S = 3.0  # a wait that is shorter is no news
EVERY_S = 5.0


@dataclass
class Waiting:
    """Of one command. `line` is called at each look, with what is waited for just now."""

    _what: str = ""
    _since: float = 0.0
    _due: float = 0.0
    _most: int | None = None  # of what is left, and when it was seen
    _most_at: float = 0.0

    def line(self, what: str, now: float, left_bytes: int | None = None) -> str | None:
        """None: nothing is to be said. Another thing to wait for begins anew."""
        if what != self._what:
            self._what, self._since, self._due = what, now, now + FIRST_S
            self._most, self._most_at = left_bytes, now
        if left_bytes is not None and (self._most is None or left_bytes > self._most):
            self._most, self._most_at = left_bytes, now  # it grows: nothing can be said of its end
        if now < self._due:
            return None
        self._due = now + EVERY_S
        return f"waiting for {what}, since {show_time(now - self._since)}{self._estimate(now, left_bytes)}"

    def _estimate(self, now: float, left_bytes: int | None) -> str:
        if left_bytes is None or self._most is None:
            return ""
        done, took_s = self._most - left_bytes, now - self._most_at
        text = f": {show_size(left_bytes)} left"
        if done <= 0 or took_s <= 0:
            return text
        return f"{text} of {show_size(self._most)}, about {show_time(left_bytes * took_s / done)} more"
