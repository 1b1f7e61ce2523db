"""What arrives on the bus's own Unix sockets: descriptors beside any bytes, and strangers on a data lane.

An honest peer goes on to be served, nothing raises into the loop, and no descriptor is left behind.
"""

import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bus import fds
from bus.direct import DirectContext
from bus.envelope import Envelope, Kind
from bus.lane import LaneClient, LaneServer
from bus.loop import Loop
from common import limits
from common.errors import Gone, WireError
from tests.fuzz.hurt import JSON, hurt, places, put
from tools.supervise.link import SpawnerLink, check_event

ORDER = msgpack.packb({"do": "spawn", "role": "usb", "args": {"a": [1, 2.5, None]}, "serial": 7})
REQUESTS = Envelope(Kind.REQUESTS, "queue.a", 5, 7, [[1, 0, 0, 0, 8, 0]]).encode()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        yield ours, theirs


def received(pair: tuple[socket.socket, socket.socket], data: bytes, count: int) -> str:
    """What came of `data` with `count` descriptors, after which none is left."""
    ours, theirs = pair
    before = open_descriptors()
    with open(os.devnull) as null:
        socket.send_fds(theirs, [data], [null.fileno()] * count)
    try:
        message, found = fds.receive(ours)
    except (WireError, Gone) as error:
        assert "\n" not in str(error)
        assert open_descriptors() == before, "a descriptor of a malformed message stays open"
        return type(error).__name__
    assert isinstance(message, dict) and len(found) == count
    assert not any(os.get_inheritable(fd) for fd in found)
    for fd in found:
        os.close(fd)
    assert open_descriptors() == before
    return "message"


@given(data=st.data(), count=st.integers(0, fds.MAX_FDS + 4))
@settings(deadline=None)
def test_any_bytes_beside_descriptors_are_a_message_or_an_error_that_closes_them(
    pair: tuple[socket.socket, socket.socket], data: st.DataObject, count: int
) -> None:
    assert received(pair, ORDER, fds.MAX_FDS) == "message"
    bad = data.draw(hurt(ORDER) | JSON.map(_packed) | st.binary(max_size=20))
    what = received(pair, bad, count)
    assert count <= fds.MAX_FDS or what == "WireError", "more descriptors than a message may have"


def _packed(value: Any) -> bytes:
    try:
        data: bytes = msgpack.packb(value)
    except (OverflowError, ValueError):
        return b"\xc1"  # msgpack's never used byte
    return data


@pytest.mark.parametrize("size", [fds.MESSAGE_BYTES - 3, fds.MESSAGE_BYTES - 2, 4 * fds.MESSAGE_BYTES])
def test_a_message_past_the_limit_is_an_error(pair: tuple[socket.socket, socket.socket], size: int) -> None:
    data = b"\x81\xa1" + b"a" + b"\xc5" + (size - 6).to_bytes(2, "big") + bytes(size - 6)
    assert received(pair, data, 1) == ("message" if len(data) <= fds.MESSAGE_BYTES else "WireError")


EVENTS: list[dict[str, Any]] = [
    {"event": "hello", "pid": 1, "twin": None, "children": [2, 3]},
    {"event": "twin", "pid": 4},
    {"event": "spawned", "role": "usb", "serial": 1, "pid": 2, "generation": 3},
    {"event": "refused", "role": "usb", "serial": 1, "why": "fork"},
    {"event": "exit", "role": "usb", "pid": 2, "status": 0},
    {"event": "beat"},
    {"event": "something new"},
]


@pytest.mark.parametrize("good", EVENTS, ids=lambda good: str(good["event"]))
@given(data=st.data(), count=st.integers(0, 2))
@settings(deadline=None, max_examples=40)
def test_any_event_of_a_spawner_has_what_is_read_of_it_or_is_an_error(
    good: dict[str, Any], data: st.DataObject, count: int
) -> None:
    check_event(good, [-1] if good["event"] == "spawned" else [])  # the number is looked at by nobody
    place = data.draw(st.sampled_from(places(good)[1:]))
    event, received = put(good, place, data.draw(JSON)), [os.dup(0) for _ in range(count)]
    link = object.__new__(SpawnerLink)
    link._log, link.children, link._on_up = logging.getLogger(), set(), lambda message: None  # type: ignore[assignment]
    link._on_event = lambda message, received: None
    try:
        check_event(event, received)
    except WireError as error:
        assert "\n" not in str(error) and len(str(error)) < 500
        for fd in received:
            with pytest.raises(OSError):
                os.fstat(fd)
    else:
        link._take(event, received)
        for fd in received:
            os.close(fd)


class Log:
    def warning(self, text: str) -> None:
        assert "\n" not in text


class Lane:
    """A direct lane with an honest client; `settle` lets the loop do what there is to do."""

    def __init__(self, path: Path) -> None:
        self.loop, self.path = Loop(), path
        self.heard: list[Any] = []
        context, endpoint = DirectContext(), f"ipc://{path}"
        self.server = LaneServer(self.loop, context, Log(), "usb", 7, endpoint, lambda *peer: None, self._message)
        self.client = LaneClient(
            self.loop, context, Log(), "queue.honest", 5, endpoint, lambda: None, lambda g: None, lambda *m: None
        )
        self.until(lambda: self.server.generation_of("queue.honest") == 5)

    def _message(self, role: str, kind: Kind, body: Any) -> None:
        if role == "queue.honest":
            self.heard.append(body)

    def until(self, there: Callable[[], bool]) -> None:
        limit = self.loop.now() + 10
        while not there():
            assert self.loop.now() < limit, "the honest client is not served any more"
            self.loop._code = None
            self.loop.after(0.001, lambda: self.loop.stop(0))
            self.loop.run()

    def serves(self) -> None:
        """All that was sent before this is read, too: connections take turns."""
        mark = len(self.heard)
        assert self.client.send(Kind.REQUESTS, mark)
        self.until(lambda: self.heard[mark:] == [mark])

    def stranger(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        sock.settimeout(5)
        sock.connect(os.fspath(self.path))
        return sock


@pytest.fixture
def lane(tmp_path: Path) -> Iterator[Lane]:
    lane = Lane(tmp_path / "usb.data")
    yield lane
    lane.client.end.close()
    lane.server.end.close()
    lane.loop._epoll.close()


@given(data=st.data())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_datagrams_of_a_stranger_leave_an_honest_peer_served(data: st.DataObject, lane: Lane) -> None:
    names = st.sampled_from([b"queue.a@5", b"queue.honest@5", b"", b"\xff" * 255, b"\xff" * 256, bytes(60_000)])
    messages = st.just(REQUESTS) | hurt(REQUESTS) | st.binary(max_size=20)
    before = open_descriptors()
    with lane.stranger() as sock:
        for datagram in [data.draw(names), *data.draw(st.lists(messages, max_size=8))]:
            try:
                sock.send(datagram)
            except (BrokenPipeError, ConnectionResetError):
                break  # it was shown the door
        lane.serves()
    lane.serves()
    lane.until(lambda: open_descriptors() <= before)


def test_a_datagram_past_the_limit_is_counted_as_malformed(lane: Lane) -> None:
    with lane.stranger() as sock:
        sock.send(b"queue.a@5")
        lane.serves()
        before = lane.server.malformed
        for size in (limits.MAX_ENVELOPE + 1, limits.MAX_ENVELOPE + 2, 3 * limits.MAX_ENVELOPE):
            sock.send(REQUESTS + bytes(size - len(REQUESTS)))
        lane.until(lambda: lane.server.malformed == before + 3)
    lane.serves()


def test_a_name_longer_than_any_of_ours_ends_its_connection(lane: Lane) -> None:
    with lane.stranger() as sock:
        sock.send(b"x" * 256)
        lane.serves()
        assert sock.recv(100) == b""


def test_more_connections_than_roles_are_refused_and_room_is_made_by_those_that_end(lane: Lane) -> None:
    strangers = []
    for _ in range(limits.LANE_PEERS - 1):
        strangers.append(lane.stranger())
        lane.serves()  # else the backlog is full before the limit is reached
    with lane.stranger() as one_more:
        lane.serves()
        assert one_more.recv(100) == b"", "one past the limit is let in"
    strangers.pop().close()
    lane.serves()
    with lane.stranger() as sock:
        sock.send(b"queue.a@5")
        lane.serves()
        assert Envelope.decode(sock.recv(limits.MAX_ENVELOPE)).kind is Kind.WELCOME
    for sock in strangers:
        sock.close()
    lane.serves()
