"""How long Requests of one export were here, or at a gadget that was asking again, and none was answered.

That is what a death on this side costs, as `replug restart|drain|kill` tell it. What waits at the gadget while there is
no link nobody here sees, but it comes at once when our exports are in force (`in_force`): what arrives then has waited
since the link was lost, or since our birth, as the dead predecessor's Requests are among it. Called by host.usb.role,
which says each Request and each Response.
"""

from collections.abc import Callable, Iterable

from common import limits

WINDOW_S = 1.0  # the longest is told of the last whole window of at least this length and of the present one


class Waits:
    """Of all exports, by id. `now` is the role's clock, in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now, self.born = now, now()
        self._of: dict[int, Wait] = {}

    def offer(self, exports: Iterable[int], gone: Iterable[int]) -> None:
        for export_id in gone:
            self._of.pop(export_id, None)
        now = self._now()
        since = self.born if now - self.born < limits.ATTACH_S else now  # later it is no successor's first link
        for export_id in exports:
            self._of.setdefault(export_id, Wait(since))

    def arrived(self, export_id: int) -> None:
        wait = self._of.get(export_id)
        if wait is not None:
            wait.arrived(self._now())

    def answered(self, export_id: int) -> None:
        wait = self._of.get(export_id)
        if wait is not None:
            wait.answered(self._now())

    def lost(self) -> None:
        for wait in self._of.values():
            wait.lost(self._now())

    def in_force(self) -> None:
        for wait in self._of.values():
            wait.in_force(self._now())

    def status(self, export_id: int) -> dict[str, float | bool]:
        return self._of[export_id].status(self._now())


class Wait:
    """Of one export; pure. `since`: of the time without a link, after which the gadget asks for what waits there."""

    def __init__(self, since: float) -> None:
        self._since: float | None = since  # of the present wait
        self._asked_again, self._in_force_at = True, float("inf")  # is it only the gadget's, which may ask again?
        self._here = 0
        self._longest_s, self._window = [0.0, 0.0], since  # of the last whole window, and of this one

    def lost(self, now: float) -> None:
        """The link is over, or its epoch: what is here comes again."""
        self._settle(now)
        self._here = 0
        self._asked_again, self._in_force_at = True, float("inf")
        self._since = now if self._since is None else self._since

    def in_force(self, now: float) -> None:
        """Our exports are: whatever waits at the gadget comes now."""
        if self._asked_again:
            self._in_force_at = now

    def arrived(self, now: float) -> None:
        """A Request."""
        self._settle(now)
        self._asked_again = False
        self._here += 1
        if self._since is None:
            self._since = now

    def answered(self, now: float) -> None:
        """One of them has its Response."""
        if self._since is None or not self._here:
            return
        self._roll(now)
        self._longest_s[1] = max(self._longest_s[1], now - self._since)
        self._here -= 1
        self._since = now if self._here else None

    def status(self, now: float) -> dict[str, float | bool]:
        """`longest_ms` that has ended lately; `present_ms` of one that has not, 0: nothing waits; `known`: is that so?

        Without a link, and for a moment after it, it is not known whether the gadget will ask for something.
        """
        self._settle(now)
        self._roll(now)
        return {
            "longest_ms": round(max(self._longest_s) * 1000, 1),
            "present_ms": 0.0 if self._since is None else round((now - self._since) * 1000, 1),
            "known": not self._asked_again,
        }

    def _settle(self, now: float) -> None:
        """Nothing came at once: nothing had waited."""
        if self._asked_again and now - self._in_force_at > limits.ASKED_AGAIN_S:
            self._asked_again, self._since = False, None

    def _roll(self, now: float) -> None:
        if now - self._window >= WINDOW_S:
            self._longest_s, self._window = [self._longest_s[1], 0.0], now
