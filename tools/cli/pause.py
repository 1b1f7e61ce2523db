"""How long I/O waited for what was done to a role, as those tell it that see I/O on this side.

The gadget's queues see the whole I/O. The host's usb sees Requests and Responses of its link; what its predecessor had
is asked for again by the gadget, and counts from its birth (host.usb.waits); the time before that is added.
Called when a successor is ready: of a usb that is before there is a link, so it is looked until I/O goes on again.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bus.runtime import Runtime, Side, living, recorded_roles
from common.units import show_ms
from tools.cli.look import ask_all
from tools.cli.waiting import Waiting

_LOOK_S = 0.02
_ANSWER_S = 0.5  # of those who may be busy: what they do not tell is left out
_GO_ON_S = 5.0  # a link that is there is in force again by then; without one I/O waits as long as there is none
_FOUND_S = 1.5  # a gadget that is there is being attached by then (limits.SEARCH_S)
_EARLIER_S = 1.0  # what waited longer than this when the command was given waits for something else
_ELSEWHERE = "how long I/O waits 'replug status' of the gadget tells"


@dataclass(frozen=True)
class Pause:
    """`waited_ms`: the longest wait, 0: nothing waited, None: nobody here can tell (`why`). `over`: it has ended.

    `ours`: if not, what waits did so before the command, and to wait for its end would be no use.
    """

    waited_ms: float | None
    over: bool = True
    ours: bool = True
    why: str = ""

    def told(self) -> str:
        if self.waited_ms is None:
            return f"; {self.why}" if self.why else ""
        wait = show_ms(self.waited_ms / 1000)
        if not self.over:
            return f"; I/O has waited for {wait} and still does: see 'replug status'"
        return f"; I/O waited for {wait} at most" if self.waited_ms else "; no I/O was under way"


@dataclass(frozen=True)
class Ages:
    """In milliseconds, since a successor was ready and since the command was given."""

    ready_ms: float
    given_ms: float

    def judge(self, waited_ms: float, present_ms: list[float]) -> Pause:
        """By each wait that lasts: one that has begun since there is a successor is nothing but I/O that goes on."""
        old = [wait_ms for wait_ms in present_ms if wait_ms > self.ready_ms]
        ours = not old or min(old) <= self.given_ms + _EARLIER_S * 1000
        return Pause(waited_ms, over=not old, ours=ours)


def await_io(runtime: Runtime, role: str, pause_ms: int | None, given: float, show: Callable[[str], None]) -> Pause:
    """When no I/O waits any more that began before now, or at the end of our patience.

    `pause_ms`: how long there was no `role`, if it is known. `given`: when the command was, in monotonic seconds.
    """
    see = _at_gadget if runtime.side is Side.GADGET else _at_host
    ready, waiting = time.monotonic(), Waiting()
    while True:
        now = time.monotonic()
        pause = see(runtime, role, pause_ms or 0, Ages((now - ready) * 1000, (now - given) * 1000))
        if pause.over or not pause.ours or now - ready > _GO_ON_S:
            return pause
        if line := waiting.line("I/O to go on", time.monotonic()):
            show(line)
        time.sleep(_LOOK_S)


def _at_gadget(runtime: Runtime, role: str, pause_ms: int, ages: Ages) -> Pause:
    """As the queues have seen it in the last second or two."""
    queues = [name for name in recorded_roles(runtime) if name.startswith("queue.") and living(runtime, name)]
    waits, present = [0.0], []
    for name, answer in ask_all(runtime, queues, _ANSWER_S).items():
        if isinstance(answer, dict):
            present.append(float(answer.get("oldest_ms", 0)))
            wait_ms = max(float(answer.get("slowest_ms", 0)), present[-1])
            # A new queue has counted only since it was there; what it was given at once had waited for it.
            waits.append(wait_ms + (pause_ms if name == role and wait_ms else 0))
    return ages.judge(max(waits), present)


def _at_host(runtime: Runtime, role: str, pause_ms: int, ages: Ages) -> Pause:
    answer = ask_all(runtime, ["usb"], _ANSWER_S).get("usb")
    if not isinstance(answer, dict):
        return Pause(None, over=False, why=f"usb does not answer: {_ELSEWHERE}")
    if "waits" not in answer:
        return Pause(None)
    if answer.get("link") == "detached":
        over = role != "usb" or ages.ready_ms > _FOUND_S * 1000
        return Pause(None, over, why=f"no gadget is attached: {_ELSEWHERE}")
    before_ms = ages.given_ms - (time.monotonic() - float(answer["born"])) * 1000 if role == "usb" else 0
    return of_usb(list(answer["waits"].values()), max(0.0, before_ms), ages)


def of_usb(waits: list[dict[str, Any]], before_ms: float, ages: Ages) -> Pause:
    """From the `waits` of the host's usb; `before_ms`: what its predecessor's Requests had waited at its birth."""
    if not all(wait["known"] for wait in waits):
        return Pause(None, over=False, why=f"the link is not online yet: {_ELSEWHERE}")
    present = [wait["present_ms"] for wait in waits]
    waited = max([0.0, *present, *(wait["longest_ms"] for wait in waits)])
    return ages.judge(waited + before_ms if waited else 0.0, present)
