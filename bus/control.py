"""Control lane: calls to a role by name (status, log level, ...) and their answers. Any process of the user may call.

A call is [serial, method, arguments]; a reply [serial, ok, value or error text, exit status]. The server side lives in
the role skeleton; `ask` is the blocking client of the command line, which never waits without a limit.
"""

import itertools
import os
from collections.abc import Callable
from typing import Any

import zmq

from bus.envelope import ANY_GENERATION, Envelope, Kind
from bus.loop import Loop
from bus.runtime import Runtime
from common import limits
from common.errors import MALFORMED, Exit, Gone, Refused, ReplugError, WireError
from common.shown import shown

Arguments = dict[str, Any]
Reply = Callable[[Any], None]
Method = Callable[[Arguments], Any]


class ControlServer:
    """Answers CALLs with the methods given. A method returns a value, or raises Refused (told to the caller)."""

    def __init__(
        self,
        loop: Loop,
        context: "zmq.Context[zmq.Socket[bytes]]",
        role: str,
        generation: int,
        endpoint: str,
        methods: dict[str, Method],
    ) -> None:
        self._role, self._generation, self._methods = role, generation, methods
        self._socket = context.socket(zmq.ROUTER)
        self._socket.set(zmq.LINGER, 200)  # the answer to "stop" should still leave
        self._socket.set(zmq.MAXMSGSIZE, limits.MAX_ENVELOPE)
        self._socket.bind(endpoint)
        self._loop = loop
        loop.watch(self._socket, self._readable)

    def _readable(self) -> None:
        self._loop.stir(self._socket)  # answers are sent below, and there may be more calls than are taken at once
        for _ in range(16):
            try:
                frames = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                call = Envelope.decode(frames[-1])
                serial, method, arguments = _parse_call(call)
            except WireError:
                continue  # not even a serial to answer to
            reply = self._replied(serial, method, arguments)
            try:
                self._socket.send_multipart([frames[0], reply], zmq.DONTWAIT)
            except zmq.ZMQError:
                continue  # the caller has left

    def _replied(self, serial: int, method: str, arguments: Arguments) -> bytes:
        """The reply as it is sent: whatever is called with whatever, the caller is answered and the role lives on."""
        try:
            return self._encoded(self._answer(serial, method, arguments))
        except WireError:
            why = "its answer is longer than a message can be"
        except MALFORMED as error:
            why = f"its answer cannot be said: {error}"
        return self._encoded([serial, False, shown(f"{method}: {why}"), int(Exit.BAD_INPUT)])

    def _encoded(self, body: list[Any]) -> bytes:
        return Envelope(Kind.REPLY, self._role, self._generation, ANY_GENERATION, body).encode()

    def _answer(self, serial: int, method: str, arguments: Arguments) -> list[Any]:
        handler = self._methods.get(method)
        if handler is None:
            return [serial, False, shown(f"{self._role}: knows no call {method!r}"), int(Exit.BAD_INPUT)]
        try:
            return [serial, True, handler(arguments), 0]
        except Refused as error:
            return [serial, False, shown(str(error)), int(error.status)]
        except (ReplugError, *MALFORMED) as error:
            return [serial, False, shown(f"{method}: {type(error).__name__}: {error}"), int(Exit.BAD_INPUT)]


def _parse_call(envelope: Envelope) -> tuple[int, str, Arguments]:
    body = envelope.body
    if envelope.kind is not Kind.CALL or not isinstance(body, list) or len(body) != 3:
        raise WireError("not a call")
    serial, method, arguments = body
    if type(serial) is not int or not isinstance(method, str) or not isinstance(arguments, dict):
        raise WireError("call of wrong types")
    return serial, method, arguments


_serials = itertools.count(1)


def ask(runtime: Runtime, role: str, method: str, arguments: Arguments | None = None, timeout_s: float = 5.0) -> Any:
    """Call `method` of `role` and wait for the answer, at most `timeout_s`.

    Raises Refused with the role's own words and status; Gone if nobody answers in time.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    try:
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.IMMEDIATE, 1)
        socket.set(zmq.RECONNECT_IVL, 20)
        socket.set(zmq.SNDTIMEO, int(timeout_s * 1000))
        socket.set(zmq.RCVTIMEO, int(timeout_s * 1000))
        socket.connect(runtime.endpoint(role, "control"))
        serial = next(_serials)
        call = Envelope(Kind.CALL, f"command.{os.getpid()}", 0, ANY_GENERATION, [serial, method, arguments or {}])
        try:
            socket.send(call.encode())
            body = Envelope.decode(socket.recv()).body
        except zmq.Again:
            raise Gone(f"{role}: no answer to {method!r} in {timeout_s:g} s") from None
    finally:
        context.destroy(linger=0)
    if not isinstance(body, list) or len(body) != 4 or body[0] != serial:
        raise WireError(f"{role}: answer to {method!r} is malformed")
    if not body[1]:
        raise Refused(str(body[2]), Exit(body[3]))
    return body[2]
