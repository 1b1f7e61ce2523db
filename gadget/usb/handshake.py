"""What the gadget says on ep0, in v0 and v1, and what of it the session has to know.

IDENT, HELLO and STATUS are answered here; a set of exports is checked, kept for a session that comes late, and given to
the link as an event. Called by gadget/usb/role.py only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from common import wire, wire_v1
from common.errors import WireError
from common.ledger import NO_BOOT
from common.wire import CONTROL_TYPE, ConfigExports, Control, Ident, Status
from common.wire_v1 import CONTROL_TYPE_V1, ConfigV1, ControlV1, ExportFlag, Hello
from gadget.usb.kept import Peer
from gadget.usb.transport import Setup


@dataclass(frozen=True, slots=True)
class Configured:
    """A sound set of exports, as bytes: the session decodes it by `peer`. `epoch` is v1's."""

    peer: Peer
    data: bytes
    epoch: int = 0
    boot_id: bytes = NO_BOOT  # of the host; v1's
    ejected: frozenset[int] = frozenset()  # export ids
    flushed: frozenset[int] = frozenset()  # those of them that are on stable storage whole


class Handshake:
    """State of the hand-shake in this link epoch, and the session's part in it."""

    def __init__(self) -> None:
        self.session_id: int | None = None
        self.config: Configured | None = None  # the last of this link epoch
        self._count = 0
        self._agreed: frozenset[int] = frozenset()
        self.active = False
        self.mute: Callable[[], bool] = lambda: False  # the host is to find nobody here, and to begin anew
        self.draining: Callable[[], bool] = lambda: False  # is something of an ejected export still on the wire?

    def forget(self) -> None:
        """A new link epoch: nothing the host said before counts."""
        self.config, self._agreed, self.active = None, frozenset(), False

    # -- ep0 -----------------------------------------------------------------------------------------------------
    def answer(self, setup: Setup) -> Configured | None:
        """One vendor request. What we do not know, or cannot answer yet, is stalled: the host asks again.

        WireError if it is no request of ours, or announced something that makes no sense; nothing has changed then.
        """
        match (setup.request_type, setup.request):
            case (kind, Control.IDENT) if kind == CONTROL_TYPE[Control.IDENT]:
                setup.reply(Ident().encode())
            case (kind, ControlV1.HELLO) if kind == CONTROL_TYPE_V1[ControlV1.HELLO]:
                setup.reply(Hello().encode())
            case (kind, Control.STATUS) if kind == CONTROL_TYPE[Control.STATUS]:
                self._tell_status(setup)
            case (kind, Control.CONFIG_EXPORTS) if kind == CONTROL_TYPE[Control.CONFIG_EXPORTS]:
                data = self._read(setup, wire.CONFIG_MAX_BYTES)
                ConfigExports.decode(data)
                return Configured(Peer.V0, data)
            case (kind, ControlV1.CONFIG) if kind == CONTROL_TYPE_V1[ControlV1.CONFIG]:
                data = self._read(setup, wire_v1.CONFIG_MAX_BYTES)
                return _configured_v1(data)
            case (kind, number):
                setup.stall()
                raise WireError(f"ep0 request {kind:#04x} {number:#04x} of {setup.length} bytes is none of ours")
        return None

    def _tell_status(self, setup: Setup) -> None:
        if self.session_id is None or self.mute():
            return setup.stall()
        active = self.active and not self.draining()
        setup.reply(Status(active, len(self._agreed), self.session_id).encode())

    @staticmethod
    def _read(setup: Setup, at_most: int) -> bytes:
        if setup.length > at_most:
            setup.stall()
            raise WireError(f"a set of exports in {setup.length} bytes is more than {at_most}")
        return setup.read()

    # -- the session ---------------------------------------------------------------------------------------------
    def take(self, config: Configured) -> None:
        """This set is to be put in force; STATUS says inactive until the session has agreed."""
        self.config, self.active = config, False
        self._count += 1

    def note(self) -> dict[str, Any] | None:
        """What the session must be told, also one that comes late; None if the host has said nothing."""
        if self.config is None:
            return None
        version = 1 if self.config.peer is Peer.V1 else 0
        return {"note": "config_exports", "data": self.config.data, "count": self._count, "version": version}

    def agree(self, configured: int, agreed: frozenset[int]) -> bool:
        """The session's answer to the `configured`th set. False if that is not the one that counts."""
        if self.config is None or configured != self._count:
            return False
        self._agreed, self.active = agreed, True
        return True


def _configured_v1(data: bytes) -> Configured:
    config = ConfigV1.decode(data)

    def having(flags: ExportFlag) -> frozenset[int]:
        return frozenset(export.record.export_id for export in config.exports if flags in export.flags)

    ejected = having(ExportFlag.EJECTED)
    flushed = having(ExportFlag.EJECTED | ExportFlag.FLUSHED)
    return Configured(Peer.V1, data, config.epoch, config.boot_id, ejected, flushed)
