"""Metrics: text as the format wants it whatever the names are, a port for this machine only, rude scrapers."""

import socket
import time
from collections.abc import Iterator

import pytest

from bus.metrics import checked_address
from bus.runtime import Runtime, Side
from common import limits
from common.errors import Refused
from common.exposition import Family, families, text
from tests.chaos.test_seen import parse
from tools.cli.metrics import scrape
from tools.cli.side import bring_up, take_down
from tools.supervise.plan import Plan, RoleSpec


def free_port() -> int:
    with socket.socket() as end:
        end.bind(("127.0.0.1", 0))
        return int(end.getsockname()[1])


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def side(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, port: int) -> Iterator[Runtime]:
    monkeypatch.setenv("REPLUG_RUNTIME", str(tmp_path_factory.mktemp("r")))
    runtime = Runtime(Side.HOST)
    args = {"exports": [{"name": "disk", "role": "source.disk"}], "metrics": f"127.0.0.1:{port}"}
    roles = (
        RoleSpec("source.disk", "tests.unit.roles.counting"),
        RoleSpec("session", "tests.unit.roles.telling", args),
    )
    spawner = bring_up(Plan(Side.HOST, "default", roles), runtime)
    yield runtime
    take_down(runtime)
    spawner.wait(5.0)


def ask(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as end:
        end.sendall(request)
        return b"".join(iter(lambda: end.recv(65536), b""))


def test_names_with_quotes_backslashes_and_newlines_are_escaped() -> None:
    family = Family("replug_x_bytes", "gauge", "Of\nwhat\\ever.")
    family.add(1.5, export='a"b\\c\nd')
    family.add(None, export="unknown")
    assert text([family]) == (
        '# HELP replug_x_bytes Of\\nwhat\\\\ever.\n# TYPE replug_x_bytes gauge\n'
        'replug_x_bytes{export="a\\"b\\\\c\\nd"} 1.5\n'
    )  # fmt: skip
    assert parse(text([family])) == {"replug_x_bytes": {'export="a\\"b\\\\c\\nd"': 1.5}}


def test_a_side_where_nobody_answers_is_still_in_the_format() -> None:
    found = parse(text(families("host", "default", {"exports": [{"name": "d", "state": "parked"}]}, {})))
    assert found["replug_export_state"]['export="d",state="parked"'] == 1
    assert "replug_export_bytes_total" not in found


@pytest.mark.parametrize("where", ["0.0.0.0:9781", "192.168.1.2:9781", "9781", "127.0.0.1:0", "127.0.0.1:x", "[::]:1"])
def test_a_port_that_other_machines_reach_is_refused(where: str) -> None:
    with pytest.raises(Refused, match=r"^'.+'(: its port is not| is not a loopback)"):
        checked_address(where)
    assert checked_address("127.0.0.1:9781") == ("127.0.0.1", 9781)
    assert checked_address("[::1]:9781") == ("::1", 9781)


def test_the_port_and_the_socket_tell_the_same_and_nothing_else_is_there(side: Runtime, port: int) -> None:
    head, _, body = ask(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8")
    there = parse(body.decode())
    assert there.keys() == parse(scrape(str(side.metrics_socket()))).keys()
    assert there["replug_export_bytes_total"]['export="disk",direction="read"'] == 40960
    assert ask(port, b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 404 ")
    assert ask(port, b"POST /metrics HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 405 ")
    assert ask(port, b"x" * 9000) == b"", "a head without end"


def test_scrapers_that_say_nothing_are_left_after_a_while_and_do_not_pile_up(side: Runtime, port: int) -> None:
    idle = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(limits.SCRAPES)]
    try:
        assert ask(port, b"") == b"", "one more is closed at once"
        began = time.monotonic()
        assert [end.recv(1) for end in idle] == [b""] * limits.SCRAPES
        assert time.monotonic() - began < limits.SCRAPE_S + 3
    finally:
        for end in idle:
            end.close()
    assert parse(scrape(str(side.metrics_socket())))["replug_info"]


def test_a_port_in_use_costs_the_port_and_not_the_session(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, port: int
) -> None:
    monkeypatch.setenv("REPLUG_RUNTIME", str(tmp_path_factory.mktemp("r")))
    runtime = Runtime(Side.HOST)
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        spec = RoleSpec("session", "tests.unit.roles.telling", {"exports": [], "metrics": f"127.0.0.1:{port}"})
        spawner = bring_up(Plan(Side.HOST, "default", (spec,)), runtime)
        try:
            assert parse(scrape(str(runtime.metrics_socket())))["replug_info"]
            assert f"no metrics on 127.0.0.1:{port}: " in runtime.log_path("session").read_text()
        finally:
            take_down(runtime)
            spawner.wait(5.0)
