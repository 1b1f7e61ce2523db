"""A web server that says anything at all: a source on it gives bytes, an errno or a refusal in one line, never more.

The server is a script on the loopback: each connection is answered with the next of its answers and closed, or reset.
"""

import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, repeat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import Refused
from host.source import http
from host.source.http import HttpSource
from tests.fuzz.hurt import hurt

SIZE = 512
BODY = bytes(SIZE)
HONEST_ERROR_CHARACTERS = 1000


def answer(status: str = "206 Partial Content", body: bytes = b"x", **headers: str) -> bytes:
    fields = {"ETag": '"one"', "Content_Range": f"bytes 0-0/{SIZE}", "Content_Length": str(len(body)), **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode("latin-1") + body


LOOK = answer()
WHOLE = answer(body=BODY, Content_Range=f"bytes 0-{SIZE - 1}/{SIZE}")
CHUNKED = (
    b'HTTP/1.1 206 x\r\nETag: "one"\r\nContent-Range: bytes 0-511/512\r\nTransfer-Encoding: chunked\r\n\r\n200\r\n'
    + BODY
    + b"\r\n0\r\n\r\n"
)
REDIRECT = answer("302 Found", b"", Location="/elsewhere")
UNAVAILABLE = answer("503 Service Unavailable", b"")


@dataclass
class Script:
    """`answers` in turn, the last for ever; `reset` ends each connection so, instead of closing it in good order."""

    answers: Iterator[bytes] = field(default_factory=lambda: repeat(WHOLE))
    reset: bool = False
    sent: int = 0
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def play(self, *answers: bytes, reset: bool = False) -> str:
        self.answers, self.reset, self.sent = chain(answers, repeat(answers[-1])), reset, 0
        return self.url

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, self.lock:
                try:
                    self._answer(connection)
                except OSError:
                    continue  # the source has heard enough

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(5)
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            if not (data := connection.recv(4096)):
                return
            request += data
        view = memoryview(next(self.answers))
        while view:
            count = connection.send(view[: 64 * 1024])
            self.sent += count
            view = view[count:]
        if self.reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):  # else an unread request would make a reset of the end
                pass


@pytest.fixture(scope="module")
def script() -> Iterator[Script]:
    script = Script()
    real = socket.create_connection

    def only_here(address: tuple[str, int], *rest: object, **more: object) -> socket.socket:
        """A redirection may name any machine: no test asks for it."""
        if address != listener.getsockname():
            raise ConnectionRefusedError(111, "Connection refused")
        return real(address, timeout=5)

    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "create_connection", only_here)
        script.url = f"http://127.0.0.1:{listener.getsockname()[1]}/image"
        thread = threading.Thread(target=script.serve, args=(listener,), daemon=True)
        thread.start()
        yield script
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def outcome(url: str) -> str:
    """Look at it, read it: what came of it. Anything but bytes, an errno or a refusal goes through."""
    try:
        source = HttpSource(url, sleep=lambda _: None)
    except (Refused, OSError) as error:
        return told(error)
    assert len(source.identity) < 2 * HONEST_ERROR_CHARACTERS, "it travels in an order to the spawner"
    size = min(source.geometry.size_bytes, SIZE)
    into = bytearray(size)
    try:
        source.read(0, memoryview(into))
    except OSError as error:
        return told(error)
    finally:
        source.close()
    return f"{size} bytes"


def told(error: Refused | OSError) -> str:
    text = str(error)
    assert not isinstance(error, OSError) or error.errno, f"an error without a number: {error!r}"
    assert text.isprintable() and len(text) < HONEST_ERROR_CHARACTERS, f"not a line for a terminal: {text[:80]!r}"
    return text


def test_the_good_answers_are_good(script: Script) -> None:
    for good in (WHOLE, CHUNKED):
        assert outcome(script.play(LOOK, good)) == f"{SIZE} bytes"
    assert outcome(script.play(LOOK, REDIRECT, UNAVAILABLE, WHOLE)) == f"{SIZE} bytes"


@given(data=st.data(), reset=st.booleans())
@settings(deadline=None)
@pytest.mark.parametrize("good", [LOOK, REDIRECT, UNAVAILABLE], ids=["look", "redirect", "503"])
def test_a_hurt_first_answer_is_a_refusal_an_errno_or_a_source(
    script: Script, good: bytes, data: st.DataObject, reset: bool
) -> None:
    outcome(script.play(data.draw(hurt(good)), LOOK, WHOLE, reset=reset))


@given(data=st.data(), reset=st.booleans())
@settings(deadline=None)
@pytest.mark.parametrize("good", [WHOLE, CHUNKED, REDIRECT], ids=["whole", "chunked", "redirect"])
def test_a_hurt_range_is_an_errno_or_bytes(script: Script, good: bytes, data: st.DataObject, reset: bool) -> None:
    outcome(script.play(LOOK, data.draw(hurt(good)), reset=reset))


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\r\n",
        b"HTTP/1.1 206\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
        b"HTTP/1.1 206 x\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 404 \x1b[2Jgone\r\n\r\n",
        b"HTTP/1.1 404 " + b"g" * 60_000 + b"\r\n\r\n",
        answer("302 Found", b"", Location="http://[::1"),
        answer("302 Found", b"", Location="http://a:99999/"),
        answer("302 Found", b"", Location=f"http://{'a' * 5000}/"),
        answer("302 Found", b"", Location="ftp://" + "\x9b" * 5000),
        answer("302 Found", b"", Location="/a b\x00"),
        answer(ETag='"' + "e" * 60_000 + '"'),
        answer(Content_Range="bytes 0-0/" + "9" * 18),
        answer(Content_Range="bytes 0-0/" + "\u00b2"),
        answer(Content_Range="c" * 60_000),
        answer(Content_Length="-1"),
        answer(Content_Length="9" * 5000),
        answer(Content_Length="1", Transfer_Encoding="chunked", body=b"-1\r\n"),
        answer(Content_Encoding="gzip"),
        answer("100 Continue") * 50,
    ],
    ids=lambda bad: repr(bad[:40]),
)
def test_an_answer_made_up_by_an_enemy_is_told_in_one_printable_line(script: Script, bad: bytes) -> None:
    outcome(script.play(bad))
    outcome(script.play(LOOK, bad))


@pytest.mark.parametrize("length", [{"Content_Length": str(1 << 40)}, {"Transfer_Encoding": "chunked"}], ids=str)
def test_a_body_without_end_is_left_unread(script: Script, length: dict[str, str]) -> None:
    head = answer(Content_Range=f"bytes 0-{SIZE - 1}/{SIZE}", **length).removesuffix(b"x")
    block = b"%x\r\n" % (1 << 20) + bytes(1 << 20) + b"\r\n" if "Transfer_Encoding" in length else bytes(1 << 20)
    endless = head + block * 64
    assert "bytes, not" in outcome(script.play(LOOK, endless))
    with script.lock:  # it has noticed that nobody reads
        assert script.sent < len(endless) * http.TRIES // 4, "most of it was taken"
