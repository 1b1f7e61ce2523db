"""How long I/O waited for what was done to a role, as those tell it that see I/O on this side.

The gadget's queues see the whole I/O. The host's usb sees Requests and Responses of its link; what its predecessor had
is asked for again by the gadget, and counts from its birth (host.usb.waits); to that the time without any is added.
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
_ELSEWHERE = "how long I/O waits 'replug status' of the gadget tells"


@dataclass(frozen=True)
class Pause:
    """`waited_ms`: the longest wait, 0: nothing waited, None: nobody here can tell (`why`). `over`: it has ended."""

    waited_ms: float | None
    over: bool = True
    why: str = ""

    def told(self) -> str:
        if self.waited_ms is None:
            return f"; {self.why}" if self.why else ""
        wait = show_ms(self.waited_ms / 1000)
        if not self.over:
            return f"; I/O has waited for {wait} and still does: see 'replug status'"
        return f"; I/O waited for {wait} at most" if self.waited_ms else "; no I/O was under way"


def await_io(runtime: Runtime, role: str, pause_ms: int | None, show: Callable[[str], None]) -> Pause:
    """When no I/O waits any more that began before now, or at the end of our patience.

    `pause_ms`: how long there was no `role`, if it is known.
    """
    see = _at_gadget if runtime.side is Side.GADGET else _at_host
    ready, waiting = time.monotonic(), Waiting()
    while True:
        since_ready_s = time.monotonic() - ready
        pause = see(runtime, role, pause_ms or 0, since_ready_s * 1000)
        if pause.over or since_ready_s > _GO_ON_S:
            return pause
        if line := waiting.line("I/O to go on", time.monotonic()):
            show(line)
        time.sleep(_LOOK_S)


def _at_gadget(runtime: Runtime, role: str, pause_ms: int, since_ready_ms: float) -> Pause:
    """As the queues have seen it in the last second or two."""
    queues = [name for name in recorded_roles(runtime) if name.startswith("queue.") and living(runtime, name)]
    waits, present = [0.0], [0.0]
    for name, answer in ask_all(runtime, queues, _ANSWER_S).items():
        if isinstance(answer, dict):
            present.append(float(answer.get("oldest_ms", 0)))
            wait_ms = max(float(answer.get("slowest_ms", 0)), present[-1])
            # A new queue has counted only since it was there; what it was given at once had waited for it.
            waits.append(wait_ms + (pause_ms if name == role and wait_ms else 0))
    return Pause(max(waits), over=max(present) <= since_ready_ms)


def _at_host(runtime: Runtime, role: str, pause_ms: int, since_ready_ms: float) -> Pause:
    answer = ask_all(runtime, ["usb"], _ANSWER_S).get("usb")
    if not isinstance(answer, dict):
        return Pause(None, over=False, why=f"usb does not answer: {_ELSEWHERE}")
    if "waits" not in answer:
        return Pause(None)
    if answer.get("link") == "detached":
        over = role != "usb" or since_ready_ms > _FOUND_S * 1000
        return Pause(None, over, f"no gadget is attached: {_ELSEWHERE}")
    return of_usb(list(answer["waits"].values()), pause_ms if role == "usb" else 0, since_ready_ms)


def of_usb(waits: list[dict[str, Any]], pause_ms: int, since_ready_ms: float) -> Pause:
    """From the `waits` of the host's usb; `pause_ms`: what its predecessor's Requests had waited at its birth."""
    if not all(wait["known"] for wait in waits):
        return Pause(None, over=False, why=f"the link is not online yet: {_ELSEWHERE}")
    present = max((wait["present_ms"] for wait in waits), default=0.0)
    longest = max((wait["longest_ms"] for wait in waits), default=0.0)
    waited = max(present, longest)
    return Pause(waited + pause_ms if waited else 0.0, over=present <= since_ready_ms)
