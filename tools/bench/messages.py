"""System `bus`: two processes and one lane between them, as usb and a source have it: messages and wake-ups.

A lone message there and back tells what each hop of a lone I/O costs, batches what a crowd pays.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import zmq

from bus.direct import DirectContext
from bus.envelope import Body, Kind
from bus.lane import Context, LaneClient, LaneServer
from bus.loop import Loop
from tools.bench import usage
from tools.bench.core import Figure

_GENERATION = 1
_BATCHES = (1, 16)


_TRANSPORTS: dict[str, Callable[[], Context]] = {"data": DirectContext, "zeromq": zmq.Context}
"""What a data lane has, and what all others have."""


class _Silent:
    def warning(self, text: str) -> None:
        return None


def measure(place: Path, seconds: float) -> Iterator[Figure]:
    """Round trips of a message with 1 and with 16 items."""
    for kind, make in _TRANSPORTS.items():
        endpoint = f"ipc://{place}/{kind}"
        with _echo(endpoint, make) as pid:
            for batch in _BATCHES:
                yield _one(kind, endpoint, pid, batch, seconds)


@contextmanager
def _echo(endpoint: str, make: Callable[[], Context]) -> Iterator[int]:
    pid = os.fork()
    if pid == 0:
        try:
            _serve(endpoint, make)
        finally:
            os._exit(1)
    with ExitStack() as stack:
        stack.callback(os.waitpid, pid, 0)
        stack.callback(os.kill, pid, signal.SIGKILL)
        yield pid


def _serve(endpoint: str, make: Callable[[], Context]) -> None:
    loop = Loop()
    answers: list[list[int]] = []
    peers: list[str] = []

    def asked(role: str, kind: Kind, body: Body) -> None:
        peers[:] = [role]
        answers.extend([item[0], 0] for item in body)

    def flush() -> None:
        if answers:
            server.send(peers[0], Kind.COMPLETIONS, list(answers))
            answers.clear()

    server = LaneServer(
        loop, make(), _Silent(), "echo", _GENERATION, endpoint, lambda role, generation, hello: None, asked
    )
    loop.before_wait(flush)
    loop.run()


def _one(kind: str, endpoint: str, pid: int, batch: int, seconds: float) -> Figure:
    loop = Loop()
    context = _TRANSPORTS[kind]()
    items = [[n, 0, n, n, 1, 0] for n in range(1, batch + 1)]
    count, end, began = 0, 0.0, 0.0

    def ask(generation: int = 0) -> None:
        client.send(Kind.REQUESTS, items)

    def first(generation: int) -> None:
        nonlocal began, end
        began = time.monotonic()
        end = began + seconds
        ask()

    def answered(kind: Kind, body: Body) -> None:
        nonlocal count
        count += 1
        if time.monotonic() >= end:
            loop.stop()
        else:
            ask()

    client = LaneClient(loop, context, _Silent(), f"asker{batch}", _GENERATION, endpoint, lambda: None, first, answered)
    before = usage.all_spent({"server": pid, "client": os.getpid()})
    loop.run()
    took = time.monotonic() - began
    costs = usage.since(before, usage.all_spent({"server": pid, "client": os.getpid()}))
    if isinstance(context, zmq.Context):
        context.destroy(linger=0)
    return Figure(
        "bus", f"{kind}: there and back, {batch} in a message", took, count, 0, {"mean": took / count * 1e6}, costs
    )
