"""Lanes over ZeroMQ and over direct sockets: any start order, each death noticed once, nothing of other generations."""

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

import bus.lane
from bus.direct import DirectContext, DirectDealer, DirectRouter
from bus.envelope import Body, Envelope, Kind
from bus.lane import LaneClient, LaneServer
from bus.loop import Loop
from bus.zeromq import ZmqDealer, ZmqRouter
from common import limits
from common.errors import WireError

Context = zmq.Context | DirectContext  # type: ignore[type-arg]


class Warnings:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warning(self, text: str) -> None:
        self.lines.append(text)


class Server:
    def __init__(self, loop: Loop, context: "Context", endpoint: str, generation: int) -> None:
        self.peers: list[tuple[str, int, Body]] = []
        self.messages: list[tuple[str, Kind, Body]] = []
        self.log = Warnings()
        self.lane = LaneServer(
            loop,
            context,
            self.log,
            "usb",
            generation,
            endpoint,
            lambda *peer: self.peers.append(peer),
            lambda *message: self.messages.append(message),
        )


class Client:
    def __init__(self, loop: Loop, context: "Context", endpoint: str, generation: int) -> None:
        self.peers: list[int] = []
        self.messages: list[tuple[Kind, Body]] = []
        self.lane = LaneClient(
            loop,
            context,
            Warnings(),
            "queue.a",
            generation,
            endpoint,
            lambda: {"hello": generation},
            self.peers.append,
            lambda *message: self.messages.append(message),
        )


class Bench:
    """One loop, and contexts that die like processes: all at once, without a word."""

    def __init__(self, endpoint: str, direct: bool) -> None:
        self.endpoint, self.loop, self.direct = endpoint, Loop(), direct
        self._contexts: list[Context] = []
        self._strangers: list[Any] = []

    def context(self) -> "Context":
        self._contexts.append(DirectContext() if self.direct else zmq.Context())
        return self._contexts[-1]

    def stranger_says(self, data: bytes) -> None:
        """A message without a hand-shake."""
        if self.direct:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            sock.connect(self.endpoint.removeprefix("ipc://"))
            sock.send(b"stranger")
            sock.send(data)
            self._strangers.append(sock)
        else:
            context: Any = self.context()
            dealer = context.socket(zmq.DEALER)
            dealer.connect(self.endpoint)
            dealer.send(data)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 10

        def look() -> None:
            if condition():
                self.loop.stop()
            elif time.monotonic() > deadline:
                raise AssertionError(f"waited 10 s for {what}")

        self.loop.before_wait(look)
        self.loop.every(0.05, lambda: None)
        self.loop._code = None
        self.loop.run()
        self.loop._before_wait.remove(look)

    def kill(self, end: Server | Client, context: "Context") -> None:
        if isinstance(context, DirectContext):
            assert isinstance(end.lane.end, DirectRouter | DirectDealer)
            end.lane.end.close()
        else:
            assert isinstance(end.lane.end, ZmqRouter | ZmqDealer)
            self.loop.unwatch(end.lane.end.socket)
            context.destroy(linger=0)
        self._contexts.remove(context)

    def close(self) -> None:
        for stranger in self._strangers:
            stranger.close()
        for context in self._contexts:
            if not isinstance(context, DirectContext):
                context.destroy(linger=0)


@pytest.fixture(params=["zeromq", "direct"])
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    bench = Bench(f"ipc://{tmp_path}/lane", request.param == "direct")
    yield bench
    bench.close()


def test_client_that_starts_first_meets_the_server(bench: Bench) -> None:
    client = Client(bench.loop, bench.context(), bench.endpoint, 5)
    assert not client.lane.send(Kind.NOTE, {})
    server = Server(bench.loop, bench.context(), bench.endpoint, 7)
    bench.until(lambda: bool(server.peers and client.peers), "both to meet")
    assert server.peers == [("queue.a", 5, {"hello": 5})]
    assert client.peers == [7]


def test_a_new_server_is_noticed_once_and_what_was_queued_for_the_dead_one_is_not_delivered(bench: Bench) -> None:
    client = Client(bench.loop, bench.context(), bench.endpoint, 5)
    first_context = bench.context()
    first = Server(bench.loop, first_context, bench.endpoint, 7)
    bench.until(lambda: client.peers == [7], "the first server")
    bench.kill(first, first_context)
    client.lane.send(Kind.NOTE, {"for": "the dead"})
    second = Server(bench.loop, bench.context(), bench.endpoint, 8)
    bench.until(lambda: client.peers == [7, 8] and bool(second.peers), "the second server")
    client.lane.send(Kind.NOTE, {"for": "the living"})
    bench.until(lambda: bool(second.messages), "the note")
    assert second.messages == [("queue.a", Kind.NOTE, {"for": "the living"})]


def test_a_new_client_replaces_its_predecessor_in_the_servers_book(bench: Bench) -> None:
    server = Server(bench.loop, bench.context(), bench.endpoint, 7)
    old_context = bench.context()
    old = Client(bench.loop, old_context, bench.endpoint, 5)
    bench.until(lambda: len(server.peers) == 1, "the old client")
    bench.kill(old, old_context)
    new = Client(bench.loop, bench.context(), bench.endpoint, 6)
    bench.until(lambda: len(server.peers) == 2, "the new client")
    assert server.lane.generation_of("queue.a") == 6
    assert server.lane.send("queue.a", Kind.COMPLETIONS, [[1, 0]])
    bench.until(lambda: bool(new.messages), "the completion")
    assert new.messages == [(Kind.COMPLETIONS, [[1, 0]])]


def test_a_predecessor_that_wakes_up_is_not_heard(bench: Bench) -> None:
    server = Server(bench.loop, bench.context(), bench.endpoint, 7)
    old = Client(bench.loop, bench.context(), bench.endpoint, 5)
    bench.until(lambda: len(server.peers) == 1, "the old client")
    new = Client(bench.loop, bench.context(), bench.endpoint, 6)
    bench.until(lambda: len(server.peers) == 2, "the new client")
    old.lane.send(Kind.NOTE, {"from": "the past"})
    new.lane.send(Kind.NOTE, {"from": "the present"})
    bench.until(lambda: bool(server.messages), "a note")
    bench.until(lambda: server.lane.stale == 1, "the stale note to be counted")
    assert server.messages == [("queue.a", Kind.NOTE, {"from": "the present"})]


def test_a_predecessor_that_was_heard_before_is_not_heard_beside_its_successor(bench: Bench) -> None:
    server = Server(bench.loop, bench.context(), bench.endpoint, 7)
    old = Client(bench.loop, bench.context(), bench.endpoint, 5)
    bench.until(lambda: len(server.peers) == 1, "the old client")
    for number in range(2):
        old.lane.send(Kind.NOTE, {"n": number})
    bench.until(lambda: len(server.messages) == 2, "its notes")
    new = Client(bench.loop, bench.context(), bench.endpoint, 6)
    bench.until(lambda: len(server.peers) == 2, "the new client")
    old.lane.send(Kind.NOTE, {"n": 2})
    bench.until(lambda: server.lane.stale == 1, "the stale note to be counted")
    assert new.lane.send(Kind.NOTE, {"n": 3})
    bench.until(lambda: len(server.messages) == 3, "the successor's note")
    assert [body["n"] for _, _, body in server.messages] == [0, 1, 3]


def test_a_dead_server_that_was_heard_before_is_not_heard_beside_its_successor(bench: Bench) -> None:
    server, client = both(bench)
    assert server.lane.send("queue.a", Kind.NOTE, {"from": "the first"})
    bench.until(lambda: len(client.messages) == 1, "the first note")
    client.lane._take(Envelope(Kind.WELCOME, "usb", 2, 0, None))  # a second one is there
    assert server.lane.send("queue.a", Kind.NOTE, {"from": "the first, again"})
    bench.until(lambda: client.lane.stale == 1, "the stale note to be counted")
    assert len(client.messages) == 1


def test_another_kind_and_a_body_that_is_none_after_a_message_that_was_understood(bench: Bench) -> None:
    server, client = both(bench)
    good = Envelope(Kind.NOTE, "queue.a", 1, 1, {"n": 1}).encode()
    assert client.lane.send(Kind.NOTE, {"n": 1}) and client.lane.send(Kind.NOTE, {"n": 2})
    assert client.lane.send(Kind.REQUESTS, [3]) and client.lane.end.send(good[:-3] + b"\xc1")
    bench.until(lambda: server.lane.malformed == 1, "the refusal")
    assert server.messages == [
        ("queue.a", Kind.NOTE, {"n": 1}),
        ("queue.a", Kind.NOTE, {"n": 2}),
        ("queue.a", Kind.REQUESTS, [3]),
    ]
    assert client.lane.send(Kind.NOTE, {"n": 4})
    bench.until(lambda: len(server.messages) == 4, "the next note")


def _refuse(*message: Body) -> None:
    if message[-1] == "nonsense":
        raise WireError("that is nonsense")


def test_what_its_reader_refuses_is_counted_first_or_later_and_at_both_ends(bench: Bench) -> None:
    """The first message of a peer is understood in another place than those that begin with the same bytes."""
    server, client = both(bench)
    server.lane._on_message, client.lane._on_message = _refuse, _refuse
    for times, body in enumerate(("nonsense", "good", "nonsense"), 1):
        client.lane.send(Kind.NOTE, body)
        server.lane.send("queue.a", Kind.NOTE, body)
        expected = (times + 1) // 2
        bench.until(lambda: client.lane.malformed == server.lane.malformed == expected, f"refusal {expected}")  # noqa: B023
    assert all("that is nonsense" in line for line in server.log.lines)


def test_a_message_longer_than_an_envelope_may_be_is_refused_to_its_sender(bench: Bench) -> None:
    server, client = both(bench)
    with pytest.raises(WireError, match=f"is more than {limits.MAX_ENVELOPE}"):
        client.lane.send(Kind.NOTE, "x" * limits.MAX_ENVELOPE)
    assert client.lane.send(Kind.NOTE, "y")
    bench.until(lambda: server.messages == [("queue.a", Kind.NOTE, "y")], "the next one")


def test_a_packer_whose_first_buffer_has_one_size_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of msgpack before 1.1, as Debian 12 has it."""
    real = msgpack.Packer

    def old(**options: int) -> msgpack.Packer:
        if options:
            raise TypeError("__cinit__() got an unexpected keyword argument 'buf_size'")
        return real()

    monkeypatch.setattr(msgpack, "Packer", old)
    assert bus.lane._packer().pack(1) == b"\x01"


def test_a_message_for_another_generation_is_dropped_and_counted(bench: Bench) -> None:
    server = Server(bench.loop, bench.context(), bench.endpoint, 7)
    bench.stranger_says(Envelope(Kind.NOTE, "queue.a", 5, 6, {}).encode())
    bench.until(lambda: server.lane.stale == 1, "the stale message")
    assert server.messages == []


@pytest.mark.parametrize("data", [b"x", b"\xc1", b"\x95\x01\x02\x03\x04\x05", b"\x80"])
def test_malformed_bytes_are_counted_and_harmless(bench: Bench, data: bytes) -> None:
    server = Server(bench.loop, bench.context(), bench.endpoint, 7)
    bench.stranger_says(data)
    bench.until(lambda: server.lane.malformed == 1, "the refusal")
    assert "dropped a message" in server.log.lines[0]
    client = Client(bench.loop, bench.context(), bench.endpoint, 5)
    bench.until(lambda: client.peers == [7], "an honest client to be served")


def test_a_message_that_came_in_while_we_were_sending_is_read_before_the_loop_sleeps(tmp_path: Path) -> None:
    """ZMQ_FD is not readable then: sending has taken in what had arrived."""
    context, loop, read = zmq.Context(), Loop(), list[bytes]()
    ours, theirs = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    ours.bind(f"ipc://{tmp_path}/pair")
    theirs.connect(f"ipc://{tmp_path}/pair")
    theirs.send(b"first")
    ours.poll(5000)

    def readable() -> None:
        while ours.poll(0):
            read.append(ours.recv(zmq.DONTWAIT))
        if read[-1] == b"second":
            loop.stop()

    def send_and_take_in() -> None:
        theirs.send(b"second")
        while not ours.getsockopt(zmq.EVENTS) & zmq.POLLIN:  # type: ignore[operator]
            time.sleep(0.001)
        ours.send(b"anything")
        loop.stir(ours)

    loop.watch(ours, readable)
    loop.after(0.05, send_and_take_in)
    loop.after(5, lambda: loop.stop(1))
    assert loop.run() == 0 and read == [b"first", b"second"]
    context.destroy(linger=0)


def both(bench: Bench) -> tuple[Server, Client]:
    server = Server(bench.loop, bench.context(), bench.endpoint, 1)
    client = Client(bench.loop, bench.context(), bench.endpoint, 1)
    bench.until(lambda: bool(server.peers and client.peers), "both to know each other")
    return server, client


def test_both_ends_of_a_zeromq_lane_ask_their_socket_after_they_have_sent(tmp_path: Path) -> None:
    bench = Bench(f"ipc://{tmp_path}/lane", False)
    server, client = both(bench)
    stirred: list[object] = []
    bench.loop.stir = stirred.append  # type: ignore[method-assign, assignment]
    assert server.lane.send("queue.a", Kind.NOTE, {}) and client.lane.send(Kind.NOTE, {})
    assert isinstance(server.lane.end, ZmqRouter) and isinstance(client.lane.end, ZmqDealer)
    assert stirred == [server.lane.end.socket, client.lane.end.socket]
    bench.close()


def test_a_flood_is_read_in_bursts_and_to_its_end(bench: Bench) -> None:
    server, client = both(bench)
    for number in range(1000):
        assert client.lane.send(Kind.NOTE, {"n": number})
    bench.until(lambda: len(server.messages) == 1000, "all messages")
    assert [body["n"] for _, _, body in server.messages] == list(range(1000))


def test_a_direct_lane_to_a_peer_that_does_not_read_keeps_all_of_it_in_order(tmp_path: Path) -> None:
    """More than a socket's buffer takes: the rest waits in the sender, and leaves when there is room."""
    bench = Bench(f"ipc://{tmp_path}/lane", True)
    server, client = both(bench)
    text = "x" * 60_000
    for number in range(20):
        assert client.lane.send(Kind.NOTE, {"n": number, "text": text})
    assert client.lane.end._connection._waiting, "the buffer was to be full"  # type: ignore[union-attr]
    bench.until(lambda: len(server.messages) == 20, "all messages")
    assert [body["n"] for _, _, body in server.messages] == list(range(20))
    assert client.lane.end._connection._writable == -1  # type: ignore[union-attr]


def test_a_direct_lane_refuses_what_is_above_its_high_water_mark(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("common.limits.LANE_HWM", 3)
    bench = Bench(f"ipc://{tmp_path}/lane", True)
    server, client = both(bench)
    text, taken = "x" * 60_000, 0
    while client.lane.send(Kind.NOTE, {"n": taken, "text": text}):
        taken += 1
    assert len(client.lane.end._connection._waiting) == 3  # type: ignore[union-attr]
    bench.until(lambda: len(server.messages) == taken, "what was taken")
    assert client.lane.send(Kind.NOTE, {"n": taken, "text": text})


def test_a_message_longer_than_an_envelope_may_be_is_refused_on_a_direct_lane(tmp_path: Path) -> None:
    bench = Bench(f"ipc://{tmp_path}/lane", True)
    server = Server(bench.loop, bench.context(), bench.endpoint, 7)
    bench.stranger_says(b"x" * (65536 + 100))
    bench.until(lambda: server.lane.malformed == 1, "the refusal")
    bench.close()
