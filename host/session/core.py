"""What the session decides: a table from finding a gadget to being online, and when to start over. No I/O, no clock.

The shell turns what happens into events and does the steps; time comes in as the shell's timers' events. Called by
host/session/role.py and the simulator.
"""

from dataclasses import dataclass
from enum import Enum, auto

from common import limits
from common.errors import Illegal
from common.wire import VERSION_MAJOR, Ident, Status


class State(Enum):
    NO_USB = auto()  # our usb process has not said how things are
    SEARCHING = auto()  # no gadget is there
    ATTACHING = auto()  # usb opens and resets it
    IDENT = auto()  # asked who it is
    CONFIG = auto()  # our exports are being announced
    SETTLING = auto()  # STATUS is asked until the exports are in force
    ONLINE = auto()  # STATUS is asked every second
    RESTARTING = auto()  # v1: usb begins a new epoch
    DETACHING = auto()  # waiting for usb to have let go


class Event(Enum):
    USB_NEW = auto()  # a new incarnation of usb: it has nothing
    ATTACHED = auto()  # usb has the interface
    ATTACHED_ONLINE = auto()  # usb has it, and our predecessor had finished the hand-shake
    DETACHED = auto()  # usb has nothing
    FOUND = auto()  # a gadget is there
    IDENTIFIED = auto()  # IDENT is smoo's, of a version we speak
    CONFIGURED = auto()  # CONFIG_EXPORTS was taken
    ACTIVE = auto()  # STATUS: exports in force, same session as before or the first
    INACTIVE = auto()  # STATUS: exports not in force
    FORGOTTEN = auto()  # the same of a v1 gadget: its usb was replaced, and usb has not seen it yet
    RESTARTED = auto()  # v1: usb has begun a new epoch, by itself or because we asked
    CHANGED = auto()  # STATUS: another session id than this link's
    MISSED = auto()  # STATUS_MISSES in a row
    FAILED = auto()  # a request of the hand-shake failed, or it is not a gadget of ours
    CHANGE = auto()  # another set of exports, or other flags of them, is to be announced
    EXPIRED = auto()  # the hand-shake takes too long


class Step(Enum):
    SEARCH = auto()  # look for a gadget, now and whenever the kernel says that a device came
    SEARCH_SOON = auto()  # the same after RETRY_S: a device that is going away is still seen for a moment
    ATTACH = auto()
    ASK_IDENT = auto()
    SEND_CONFIG = auto()
    ASK_STATUS = auto()  # now, and again in the state's own rhythm
    TELL_ONLINE = auto()  # usb keeps it for our successor
    RESTART = auto()  # have usb begin a new epoch
    DETACH = auto()


_S, _E, _T = State, Event, Step
_OVER = (_S.DETACHING, (_T.DETACH,))
_HANDSHAKE = (_S.IDENT, _S.CONFIG, _S.SETTLING)
_ATTACHED = (*_HANDSHAKE, _S.ONLINE, _S.RESTARTING)

TABLE: dict[tuple[State, Event], tuple[State, tuple[Step, ...]]] = {
    (_S.NO_USB, _E.DETACHED): (_S.SEARCHING, (_T.SEARCH,)),
    (_S.NO_USB, _E.ATTACHED_ONLINE): (_S.ONLINE, (_T.ASK_STATUS,)),
    (_S.NO_USB, _E.ATTACHED): _OVER,  # our predecessor died in the hand-shake: where, nobody knows
    (_S.NO_USB, _E.RESTARTED): (_S.CONFIG, (_T.SEND_CONFIG,)),  # the same in v1, where saying it twice does no harm
    (_S.SEARCHING, _E.FOUND): (_S.ATTACHING, (_T.ATTACH,)),
    (_S.SEARCHING, _E.DETACHED): (_S.SEARCHING, ()),
    (_S.SEARCHING, _E.ATTACHED): _OVER,  # our predecessor asked for it, and usb has said so only now
    (_S.ATTACHING, _E.ATTACHED): (_S.IDENT, (_T.ASK_IDENT,)),
    (_S.ATTACHING, _E.DETACHED): (_S.SEARCHING, (_T.SEARCH_SOON,)),
    (_S.ATTACHING, _E.EXPIRED): _OVER,
    (_S.IDENT, _E.IDENTIFIED): (_S.CONFIG, (_T.SEND_CONFIG,)),
    (_S.CONFIG, _E.CONFIGURED): (_S.SETTLING, (_T.ASK_STATUS,)),
    (_S.SETTLING, _E.ACTIVE): (_S.ONLINE, (_T.TELL_ONLINE, _T.ASK_STATUS)),
    (_S.SETTLING, _E.INACTIVE): (_S.SETTLING, ()),
    (_S.SETTLING, _E.CHANGED): _OVER,
    (_S.ONLINE, _E.ACTIVE): (_S.ONLINE, ()),
    (_S.ONLINE, _E.INACTIVE): _OVER,  # it has forgotten our exports
    (_S.ONLINE, _E.FORGOTTEN): (_S.RESTARTING, (_T.RESTART,)),
    (_S.ONLINE, _E.CHANGED): _OVER,
    (_S.ONLINE, _E.MISSED): _OVER,
    (_S.DETACHING, _E.DETACHED): (_S.SEARCHING, (_T.SEARCH_SOON,)),
    (_S.DETACHING, _E.ATTACHED): (_S.DETACHING, ()),
    **{(state, _E.CHANGE): (state, ()) for state in _S},  # it is said with the next CONFIG
    **{(state, _E.CHANGE): (_S.CONFIG, (_T.SEND_CONFIG,)) for state in (_S.CONFIG, _S.SETTLING, _S.ONLINE)},
    **{(state, _E.FAILED): _OVER for state in _HANDSHAKE},
    **{(state, _E.EXPIRED): _OVER for state in (*_HANDSHAKE, _S.RESTARTING)},
    **{(state, _E.RESTARTED): (_S.CONFIG, (_T.SEND_CONFIG,)) for state in _ATTACHED},
    **{(state, _E.DETACHED): (_S.SEARCHING, (_T.SEARCH_SOON,)) for state in _ATTACHED},
    **{(state, _E.USB_NEW): (_S.NO_USB, ()) for state in _S},
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer means. `why`: one line for the log, where there is something to say."""

    event: Event
    why: str = ""


class SessionCore:
    """State, session id and missed answers of the host's session role."""

    def __init__(self, exports: int) -> None:
        self.state = State.NO_USB
        self.session_id = 0  # of this link; 0: not known yet
        self.last_session_id = 0  # of the last link that was online
        self.misses = 0
        self.version, self.epoch = 0, 0  # of the wire that usb and the gadget speak
        self.exports = exports  # how many are announced

    def on(self, event: Event) -> tuple[Step, ...]:
        """Follow the table. Illegal, and nothing changed, for what is not in it."""
        try:
            self.state, steps = TABLE[self.state, event]
        except KeyError:
            raise Illegal(f"{event} in {self.state}") from None
        if self.state in (State.NO_USB, State.SEARCHING):
            self.session_id, self.misses = 0, 0
        elif self.state is State.ONLINE:
            self.last_session_id = self.session_id
        return steps

    def link(self, version: int, epoch: int, session_id: int) -> Event:
        """usb says that it has a gadget, in this epoch; `session_id` 0: nobody was online in it."""
        known, (self.version, self.epoch) = self.epoch, (version, epoch)
        if self.state is State.NO_USB and session_id:
            self.session_id = session_id
            return Event.ATTACHED_ONLINE
        if (self.state in _ATTACHED and epoch != known) or (self.state is State.NO_USB and version == 1):
            return Event.RESTARTED
        return Event.ATTACHED

    def ident(self, ident: Ident) -> Verdict:
        if ident.major != VERSION_MAJOR:
            return Verdict(Event.FAILED, f"the gadget speaks version {ident.major}.{ident.minor}, we {VERSION_MAJOR}")
        return Verdict(Event.IDENTIFIED)

    def status(self, status: Status) -> Verdict:
        """A STATUS in SETTLING or ONLINE."""
        self.misses = 0
        if self.session_id and status.session_id != self.session_id:
            return Verdict(Event.CHANGED, f"session {self.session_id:#018x} became {status.session_id:#018x}")
        if not status.active and self.version == 1 and self.state is State.ONLINE:
            return Verdict(Event.FORGOTTEN, "the gadget's usb has our exports not in force")
        if not status.active:
            return Verdict(Event.INACTIVE, "the gadget has our exports not in force" if self.session_id else "")
        why = ""
        if not self.session_id:
            why = f"online, session {status.session_id:#018x}, {status.export_count} exports in force"
            if self.last_session_id and self.last_session_id != status.session_id:
                why += f"; before it was {self.last_session_id:#018x}: the gadget has started anew"
            if status.export_count != self.exports:
                why += f"; {self.exports} were announced"
        self.session_id = status.session_id
        return Verdict(Event.ACTIVE, why)

    def missed(self) -> Verdict | None:
        """A STATUS that was not answered. In SETTLING the gadget may be busy making devices: only time ends that."""
        if self.state is State.SETTLING:
            return None
        self.misses += 1
        if self.misses < limits.STATUS_MISSES:
            return None
        return Verdict(Event.MISSED, f"{self.misses} STATUS in a row without an answer")
