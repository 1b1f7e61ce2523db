"""Which transitions of the two link tables no run drives, or only many runs, each with its reason. Used by test_sim.

Whoever changes a model gives each seed another run: a transition that the fixed seeds then do not drive any more is
named here, with what it would take; one that they drive is struck off.
"""

from gadget.usb.link import Event as LinkEvent
from gadget.usb.link import Link
from host.session.core import Event, State

Reasons = dict[str, str]  # "STATE EVENT" to why


def _all(states: object, event: object, why: str) -> Reasons:
    return {f"{state.name} {event.name}": why for state in states}  # type: ignore[attr-defined]


_L, _LE, _S, _E = Link, LinkEvent, State, Event

# What the shells never tell their cores: the table is complete all the same, and unit tests walk it.
LINK_NEVER: Reasons = {
    **_all((_L.HANDSHAKE, _L.ONLINE, _L.PARKED), _LE.ENABLED, "if the link is there, LOST is told before it"),
    **_all((_L.ABSENT,), _LE.LOST, "only a link that was enabled is told to be lost"),
    **_all((_L.ABSENT, _L.HANDSHAKE, _L.PARKED), _LE.SILENT, "silence is looked for while ONLINE only"),
    **_all((_L.ABSENT, _L.HANDSHAKE, _L.ONLINE), _LE.HEARD, "only a PARKED link is told that the host was heard"),
    **_all((_L.ABSENT,), _LE.CONFIGURED, "exports that come before an ENABLE are refused"),
    **_all((_L.ABSENT,), _LE.UPDATED, "exports that come before an ENABLE are refused"),
    **_all((_L.PARKED,), _LE.CONFIGURED, "the request itself was heard first, so the link is ONLINE"),
    **_all((_L.PARKED,), _LE.UPDATED, "the request itself was heard first, so the link is ONLINE"),
}
LINK_NOT_MODELLED: Reasons = {
    **_all((_L.ONLINE,), _LE.CONFIGURED, "a foreign host; ours sets its interface first (tests/e2e/v0_host.py)"),
}
LINK_SELDOM: Reasons = {
    **_all((_L.HANDSHAKE,), _LE.UPDATED, "a host session that died between its CONFIG and the gadget's agreement"),
    **_all((_L.PARKED,), _LE.AGREED, "a gadget session that takes longer than the host's silence"),
}

SESSION_NOT_MODELLED: Reasons = {
    **_all(State, _E.CHANGE, "no run ejects or adds (tests/chaos/test_add_remove.py, tests/unit/test_eject.py)"),
    **_all((_S.SETTLING, _S.ONLINE), _E.CHANGED, "no run loses a state file, so no session id changes"),
    **_all((_S.SETTLING,), _E.FAILED, "a gadget that answers STATUS with nonsense (tests/e2e/test_hostile_gadget.py)"),
}
SESSION_SELDOM: Reasons = {
    **_all((_S.ATTACHING, _S.IDENT, _S.CONFIG, _S.SETTLING, _S.RESTARTING), _E.EXPIRED, "a step hangs for 15 s"),
    **_all((_S.ONLINE,), _E.MISSED, "five STATUS in a row without an answer, and no other sign of the link's end"),
    **_all((_S.ONLINE,), _E.INACTIVE, "a v0 gadget whose usb died, and STATUS asked before its re-enumeration"),
    **_all((_S.IDENT, _S.CONFIG), _E.RESTARTED, "a new epoch begins within the hand-shake of the last"),
    **_all((_S.CONFIG, _S.DETACHING, _S.RESTARTING), _E.USB_NEW, "usb dies within a step of a few ms"),
    **_all((_S.CONFIG, _S.RESTARTING, _S.SEARCHING), _E.DETACHED, "usb lets go within a few ms, or says so twice"),
    **_all((_S.SEARCHING, _S.DETACHING), _E.ATTACHED, "usb answers what a predecessor of the session had asked for"),
}
