"""Lanes between real ZeroMQ sockets: any start order, every death noticed once, nothing from another generation."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from bus.envelope import Body, Envelope, Kind
from bus.lane import LaneClient, LaneServer
from bus.loop import Loop

Context = zmq.Context  # type: ignore[type-arg]


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

    def __init__(self, endpoint: str) -> None:
        self.endpoint, self.loop = endpoint, Loop()
        self._contexts: list[Context] = []

    def context(self) -> "Context":
        self._contexts.append(zmq.Context())
        return self._contexts[-1]

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
        self.loop.unwatch(end.lane._socket)
        context.destroy(linger=0)
        self._contexts.remove(context)

    def close(self) -> None:
        for context in self._contexts:
            context.destroy(linger=0)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(f"ipc://{tmp_path}/lane")
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


def test_a_message_for_another_generation_is_dropped_and_counted(bench: Bench) -> None:
    server = Server(bench.loop, bench.context(), bench.endpoint, 7)
    socket = bench.context().socket(zmq.DEALER)
    socket.connect(bench.endpoint)
    socket.send(Envelope(Kind.NOTE, "queue.a", 5, 6, {}).encode())
    bench.until(lambda: server.lane.stale == 1, "the stale message")
    assert server.messages == []


@pytest.mark.parametrize("data", [b"x", b"\xc1", b"\x95\x01\x02\x03\x04\x05", b"\x80"])
def test_malformed_bytes_are_counted_and_harmless(bench: Bench, data: bytes) -> None:
    server = Server(bench.loop, bench.context(), bench.endpoint, 7)
    socket = bench.context().socket(zmq.DEALER)
    socket.connect(bench.endpoint)
    socket.send(data)
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


def test_both_ends_of_a_lane_ask_their_socket_after_they_have_sent(bench: Bench) -> None:
    server, client = both(bench)
    stirred: list[object] = []
    bench.loop.stir = stirred.append  # type: ignore[method-assign, assignment]
    assert server.lane.send("queue.a", Kind.NOTE, {}) and client.lane.send(Kind.NOTE, {})
    assert stirred == [server.lane._socket, client.lane._socket]


def test_a_flood_is_read_in_bursts_and_to_its_end(bench: Bench) -> None:
    server, client = both(bench)
    for number in range(1000):
        assert client.lane.send(Kind.NOTE, {"n": number})
    bench.until(lambda: len(server.messages) == 1000, "all messages")
    assert [body["n"] for _, _, body in server.messages] == list(range(1000))
