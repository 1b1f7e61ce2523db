"""A thread that does nothing but run now and then: how long this machine, or whoever freezes it, did not let us.

By it a freeze is proved, and a strike is told from a guest that stood still: where nobody of ours runs for seconds a
watchdog finds roles silent that nobody struck, and replaces them. Such a strike counts neither as passed nor as failed.
"""

import threading
import time

from common import limits

_EVERY_S = 0.01
STALL_S = limits.SILENCE_S / 2  # a role that is asked whether it lives has SILENCE_S to say so
FROZEN_S = 6.0  # the freezer's own 5 s, and what the kernel takes for them


def stood_still(gap_s: float, slept: bool) -> bool:
    """Was it so long that what changed meanwhile is not the strike's doing? `slept`: the strike was to freeze us."""
    return gap_s > STALL_S + (FROZEN_S if slept else 0.0)


class Pulse:
    """`gap_s`: the longest that the thread did not run since `begin`."""

    def __init__(self) -> None:
        self.gap_s, self._last, self._ending = 0.0, time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def begin(self) -> None:
        self.gap_s = 0.0

    def _run(self) -> None:
        while not self._ending.wait(_EVERY_S):
            now = time.monotonic()
            self.gap_s, self._last = max(self.gap_s, now - self._last), now

    def close(self) -> None:
        self._ending.set()
        self._thread.join()
