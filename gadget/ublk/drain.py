"""The end of a queue that is asked to drain: where the driver can, it hands out nothing more, and what the queue has is
answered before it goes. Elsewhere it goes at once, and the kernel issues what was in flight to the successor.

Called by gadget.ublk.role. The kernel's command may wait, so it has a thread and a Control of its own.
"""

import threading
from collections.abc import Callable

from bus.role import Role
from common import limits
from common.errors import RoleExit
from gadget.ublk.control import Control


class Drain:
    """Of one queue. `control` opens a Control."""

    def __init__(self, role: Role, ublk_id: int, control: Callable[[], Control]) -> None:
        self._role, self._ublk_id, self._control = role, ublk_id, control
        self.begun = self._quiesced = False

    def begin(self, can_quiesce: bool) -> None:
        """SIGTERM. Ends within QUIESCE_S: behind a link that is down nothing is answered."""
        if not can_quiesce:
            self._leave()
        elif not self.begun:
            self.begun = True
            threading.Thread(target=self._quiesce, name="QUIESCE_DEV", daemon=True).start()
            self._role.loop.after(limits.QUIESCE_S, self._leave)

    def go_on(self, in_flight: int) -> None:
        """Before each sleep of the loop, when everything that was committed is submitted."""
        if self._quiesced and not in_flight:
            self._leave()

    def _quiesce(self) -> None:
        try:
            self._control().quiesce(self._ublk_id, round(limits.QUIESCE_S * 1000))
        except OSError as error:
            text = str(error)
            self._role.loop.post(lambda: self._failed(text))
        else:
            self._role.loop.post(self._done)

    def _failed(self, text: str) -> None:
        self._role.log.warning(f"{text}: what is in flight is issued again")
        self._leave()

    def _done(self) -> None:
        self._role.log.info(f"/dev/ublkb{self._ublk_id} is quiesced")
        self._quiesced = True

    def _leave(self) -> None:
        self._role.loop.stop(RoleExit.DRAINED)
