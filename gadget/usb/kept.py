"""What of the gadget outlives its usb process: the FunctionFS descriptors, and which wire its host spoke last.

The fd store has copies, so a death does not unbind the gadget; a successor is born with them. The last fd is a memfd
with one byte in it: what a successor may do with the host (a v1 host can be resynchronised in band, a v0 host cannot)
must not depend on another process being alive.
"""

import os
from enum import IntEnum
from typing import Final

ENDPOINT_NAMES: Final = ("ep0", "ep1", "ep2", "ep3", "ep4")
_PEER: Final = "peer"


class Peer(IntEnum):
    """What the host that has configured us speaks. The value is the byte."""

    NONE = 0  # nobody has configured us since we came
    V0 = 1
    V1 = 2


class PeerNote:
    """One byte that survives us."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @staticmethod
    def fresh() -> "PeerNote":
        note = PeerNote(os.memfd_create("replug-peer", os.MFD_CLOEXEC))
        note.write(Peer.NONE)
        return note

    def write(self, peer: Peer) -> None:
        os.pwrite(self.fd, bytes([peer]), 0)

    def read(self) -> Peer:
        """V0 if it cannot be told: then nothing is taken for granted."""
        data = os.pread(self.fd, 1, 0)
        return Peer(data[0]) if data and data[0] in Peer._value2member_map_ else Peer.V0


def names() -> list[str]:
    return [*ENDPOINT_NAMES, _PEER]


def whole(fds: dict[str, int]) -> bool:
    """Is everything there that a successor needs?"""
    return set(names()) <= fds.keys()


def peer_of(fds: dict[str, int]) -> PeerNote:
    return PeerNote(fds[_PEER])
