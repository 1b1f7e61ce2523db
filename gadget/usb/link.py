"""The link of the gadget's usb role as a table: is a host there, may requests be on the wire. No I/O, no clock."""

from enum import Enum, auto


class Link(Enum):
    ABSENT = auto()  # no host has configured us
    HANDSHAKE = auto()  # a host is there, exports not agreed yet
    ONLINE = auto()  # requests may be on the wire
    PARKED = auto()  # the host is silent: what is on the wire stays there, nothing new is sent


class Event(Enum):
    ENABLED = auto()  # the host chose our configuration or our interface: a new link epoch
    LOST = auto()  # disabled, unbound, or an endpoint said ESHUTDOWN
    CONFIGURED = auto()  # a set of exports that begins a data plane: CONFIG_EXPORTS, or CONFIG with a new epoch
    UPDATED = auto()  # v1: another set within the epoch in force
    AGREED = auto()  # the session has made the exports
    SILENT = auto()  # nothing heard for LINK_SILENCE_S
    HEARD = auto()  # STATUS or an answer


class Step(Enum):
    NEW_EPOCH = auto()  # everything outstanding goes back into the queue; orphans are forgotten
    ARM = auto()  # queue reads for what the host will send
    ASK_SESSION = auto()  # hand the exports to the session
    DISPATCH = auto()  # put waiting requests on the wire
    REENUMERATE = auto()  # v0 has no clean boundary in band: start over from the bus


_L, _E, _S = Link, Event, Step

TABLE: dict[tuple[Link, Event], tuple[Link, tuple[Step, ...]]] = {
    **{(link, _E.ENABLED): (_L.HANDSHAKE, (_S.NEW_EPOCH,)) for link in Link},
    (_L.ABSENT, _E.LOST): (_L.ABSENT, ()),
    **{(link, _E.LOST): (_L.ABSENT, (_S.NEW_EPOCH,)) for link in Link if link is not _L.ABSENT},
    (_L.ABSENT, _E.CONFIGURED): (_L.ABSENT, ()),  # of an ENABLE that is over: the host says it again after the next
    # Also of a link that was ONLINE: the set of before is not in force any more, until the session has agreed to this.
    **{(link, _E.CONFIGURED): (_L.HANDSHAKE, (_S.ASK_SESSION,)) for link in Link if link is not _L.ABSENT},
    (_L.ABSENT, _E.UPDATED): (_L.ABSENT, ()),
    **{(link, _E.UPDATED): (link, (_S.ASK_SESSION,)) for link in Link if link is not _L.ABSENT},
    (_L.ABSENT, _E.AGREED): (_L.ABSENT, ()),
    (_L.HANDSHAKE, _E.AGREED): (_L.ONLINE, (_S.ARM, _S.DISPATCH)),
    (_L.ONLINE, _E.AGREED): (_L.ONLINE, (_S.DISPATCH,)),
    (_L.PARKED, _E.AGREED): (_L.ONLINE, (_S.DISPATCH,)),
    (_L.ABSENT, _E.SILENT): (_L.ABSENT, ()),
    (_L.HANDSHAKE, _E.SILENT): (_L.HANDSHAKE, ()),
    (_L.ONLINE, _E.SILENT): (_L.PARKED, ()),
    (_L.PARKED, _E.SILENT): (_L.PARKED, ()),
    (_L.ABSENT, _E.HEARD): (_L.ABSENT, ()),
    (_L.HANDSHAKE, _E.HEARD): (_L.HANDSHAKE, ()),
    (_L.ONLINE, _E.HEARD): (_L.ONLINE, ()),
    (_L.PARKED, _E.HEARD): (_L.ONLINE, (_S.DISPATCH,)),
}
