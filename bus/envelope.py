"""One message on the bus: msgpack of [kind, sender, sender's generation, addressee's generation, body].

Every byte sequence decodes or raises WireError. The addressee's generation is part of every message, because ZeroMQ
redelivers to a successor, and a live sender may be answering a question of our predecessor.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgpack

from common import limits
from common.errors import WireError

ANY_GENERATION = 0  # only for messages that do not depend on who answers: WELCOME to a stranger, CALL by a command

Body = Any  # msgpack-able: None, bool, int, str, bytes, list, dict with str keys; each kind's reader checks its own


class Kind(StrEnum):
    """What a message is. One namespace for all lanes, so that a stray one is recognised."""

    WELCOME = "welcome"  # server to a new connection: this is my generation
    HELLO = "hello"  # client's answer: this is mine, and what I am (body)
    REQUESTS = "requests"  # data lane: list of requests
    COMPLETIONS = "completions"  # data lane: list of completions
    NOTE = "note"  # session and roles lanes: a dict with "note": its name
    CALL = "call"  # control lane: [serial, method, arguments]
    REPLY = "reply"  # control lane: [serial, ok, value or error text, exit status]


@dataclass(frozen=True, slots=True)
class Envelope:
    kind: Kind
    sender: str
    sender_generation: int
    addressee_generation: int
    body: Body

    def encode(self) -> bytes:
        start = head(self.kind, self.sender, self.sender_generation, self.addressee_generation)
        data: bytes = start + msgpack.packb(self.body)
        if len(data) > limits.MAX_ENVELOPE:
            raise WireError(f"{self.kind} of {len(data)} bytes is more than {limits.MAX_ENVELOPE}")
        return data

    @staticmethod
    def decode(data: bytes) -> "Envelope":
        fields = body_of(data, 0)  # all of it is msgpack
        if not isinstance(fields, list) or len(fields) != 5:
            raise WireError("envelope is not a list of five")
        kind, sender, sender_generation, addressee_generation, body = fields
        if not isinstance(kind, str) or kind not in _KINDS:
            raise WireError(f"envelope of unknown kind {kind!r}")
        if not isinstance(sender, str) or not 0 < len(sender) <= limits.MAX_NAME:
            raise WireError("envelope without a sender's name")
        for number in (sender_generation, addressee_generation):
            if type(number) is not int or not 0 <= number < 1 << 63:
                raise WireError(f"envelope's generation is {number!r}")
        return Envelope(Kind(kind), sender, sender_generation, addressee_generation, body)


_KINDS = frozenset(kind.value for kind in Kind)
_FIVE = b"\x95"  # msgpack: a list of five


def head(kind: Kind, sender: str, sender_generation: int, addressee_generation: int) -> bytes:
    """All of an envelope that comes before its body."""
    return _FIVE + b"".join(map(msgpack.packb, (kind.value, sender, sender_generation, addressee_generation)))


def body_of(data: bytes, start: int) -> Body:
    """The body of an envelope whose head ends at `start`. Raises WireError."""
    if len(data) > limits.MAX_ENVELOPE:
        raise WireError(f"envelope of {len(data)} bytes is more than {limits.MAX_ENVELOPE}")
    try:
        return msgpack.unpackb(data[start:])  # its defaults: lists, and only str and bytes as keys of a map
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"envelope is not msgpack: {error}") from None
