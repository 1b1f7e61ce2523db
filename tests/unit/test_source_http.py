"""Web objects as sources: a real server on the loopback, well behaved and not; a change is an error, never a mix."""

import errno
import os
import random
import shutil
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from common.errors import Refused
from host.source.http import TRIES, HttpSource
from host.source.pieces import KEPT, PIECE_BYTES

SIZE = 5 * PIECE_BYTES + 1024
BYTES = random.Random(5).randbytes(SIZE)


class Server(ThreadingHTTPServer):
    """`mood` is how it misbehaves, `ill` for how many answers; `asked` counts."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bytes, self.etag, self.mood, self.ill, self.asked = BYTES, '"one"', "", 0, 0
        self.heeds_conditions, self.scheme = True, "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}/image"

    def secure(self, where: Path) -> Path:
        """From now on by TLS; returns the file of the certificate that it has signed itself."""
        certificate, key = where / "server.pem", where / "server.key"
        what = ["-subj", "/CN=replug test", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-nodes"]
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", *what]
        subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.socket, self.scheme = context.wrap_socket(self.socket, server_side=True), "https"
        return certificate

    def handle_error(self, *_: object) -> None:
        """A client that does not trust us hangs up; that is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        server.asked += 1
        mood = server.mood if server.ill else ""
        server.ill -= bool(mood)
        if mood == "redirect":
            return self._answer(302, b"", Location="/elsewhere")
        if mood == "ftp":
            return self._answer(302, b"", Location="ftp://x/")
        if mood.isdecimal():
            return self._answer(int(mood), b"")
        if server.heeds_conditions and self.headers.get("If-Match", server.etag) != server.etag:
            return self._answer(412, b"")
        first, last = (int(n) for n in self.headers["Range"].removeprefix("bytes=").split("-"))
        body, total = server.bytes[first : last + 1], len(server.bytes)
        if mood == "whole":
            return self._answer(200, server.bytes, ETag=server.etag)
        if mood == "other range":
            first += 512
        headers = {"Content-Range": f"bytes {first}-{last}/{total}", "ETag": server.etag}
        if mood == "weak":
            headers["ETag"] = "W/" + server.etag
        if mood in ("reset", "short"):
            self.send_response(206)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if mood == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                os.close(self.connection.detach())  # before the server shuts it down in good order
            self.close_connection = True
            return None
        return self._answer(206, body + b"!" * (mood == "long"), **headers)

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def opened(server: Server) -> HttpSource:
    return HttpSource(server.url, sleep=lambda _: None)


def read(source: HttpSource, offset: int, size: int) -> bytes:
    into = bytearray(size)
    source.read(offset, memoryview(into))
    return bytes(into)


def test_reads_in_any_order_are_the_objects_bytes_and_the_end_is_the_end(server: Server) -> None:
    source, rng = opened(server), random.Random(1)
    assert (source.geometry.size_bytes, source.read_only) == (SIZE, True)
    for _ in range(40):
        first = rng.randrange(SIZE // 512)
        count = rng.randint(1, SIZE // 512 - first)
        assert read(source, first * 512, count * 512) == BYTES[first * 512 : (first + count) * 512]
    for offset, size in ((SIZE, 512), (0, 100), (SIZE - 512, 1024)):
        with pytest.raises(OSError) as raised:
            read(source, offset, size)
        assert raised.value.errno == errno.EINVAL
    with pytest.raises(OSError) as raised:
        source.write(0, memoryview(bytes(512)))
    assert raised.value.errno == errno.EROFS
    source.close()


def test_what_was_read_is_kept_and_what_is_kept_is_bounded(server: Server) -> None:
    server.bytes = bytes((KEPT + 8) * PIECE_BYTES)
    source = opened(server)
    for _ in range(2):
        read(source, 0, 4096)
    assert server.asked == 2
    read(source, 0, len(server.bytes))
    assert len(source._pieces) == KEPT
    source.close()


@pytest.mark.parametrize("mood", ["reset", "short", "503", "429", "other range", "long", "redirect"])
def test_a_passing_trouble_is_not_seen(server: Server, mood: str) -> None:
    source = opened(server)
    server.mood, server.ill = mood, TRIES - 1
    assert read(source, 0, SIZE) == BYTES
    assert server.ill == 0, "the trouble never came"
    source.close()


@pytest.mark.parametrize(
    ("mood", "number"),
    [
        ("reset", errno.ECONNRESET),
        ("short", errno.EIO),
        ("503", errno.EIO),
        ("whole", errno.EIO),
        ("other range", errno.EIO),
        ("long", errno.EIO),
        ("404", errno.ENOENT),
        ("403", errno.EACCES),
        ("redirect", errno.ELOOP),
        ("ftp", errno.EACCES),
    ],
)
def test_a_lasting_trouble_is_an_errno_after_a_few_tries_and_its_end_is_noticed(
    server: Server, mood: str, number: int
) -> None:
    source = opened(server)
    server.mood, server.ill, server.asked = mood, 1000, 0
    with pytest.raises(OSError) as raised:
        read(source, 0, 4096)
    assert raised.value.errno == number
    assert server.asked <= 6
    server.ill = 0
    assert read(source, 0, 4096) == BYTES[:4096]
    source.close()


@pytest.mark.parametrize("heeds_conditions", [True, False])
def test_a_replaced_object_is_estale_and_never_a_mix(server: Server, heeds_conditions: bool) -> None:
    source = opened(server)
    identity = source.identity
    assert read(source, 0, 512) == BYTES[:512]
    server.bytes, server.etag, server.heeds_conditions = bytes(SIZE), '"two"', heeds_conditions
    with pytest.raises(OSError) as raised:
        read(source, 0, SIZE)
    assert raised.value.errno == errno.ESTALE
    assert opened(server).identity != identity, "a successor of the source must see that it is another disk"
    source.close()


@pytest.mark.parametrize(
    ("mood", "why"), [("whole", "the server sends no ranges"), ("weak", "neither a strong ETag nor Last-Modified")]
)
def test_a_server_that_cannot_do_it_is_refused_at_once(server: Server, mood: str, why: str) -> None:
    server.mood, server.ill = mood, 1000
    with pytest.raises(Refused, match=f"^{server.url}: {why}"):
        opened(server)


def test_nobody_at_the_address_is_its_errno() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            HttpSource(f"http://127.0.0.1:{unused.getsockname()[1]}/", sleep=lambda _: None)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here to make a certificate with")
def test_https_trusts_what_ssl_cert_file_names_and_nobody_else(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    certificate = server.secure(tmp_path)
    with pytest.raises(OSError, match=f"{server.url}: its certificate is not trusted: .*SSL_CERT_FILE") as raised:
        HttpSource(server.url, sleep=lambda _: pytest.fail("tried again"))
    assert raised.value.errno == errno.EACCES and server.asked == 0
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    source = opened(server)
    assert read(source, 0, SIZE) == BYTES
    source.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here to make a certificate with")
@pytest.mark.parametrize(("mood", "number"), [("short", errno.EIO), ("404", errno.ENOENT)])
def test_https_tells_the_errnos_that_http_tells(
    server: Server, mood: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(server.secure(tmp_path)))
    source = opened(server)
    server.mood, server.ill = mood, 1000
    with pytest.raises(OSError) as raised:
        read(source, 0, 4096)
    assert raised.value.errno == number
    source.close()


def test_a_server_that_speaks_no_tls_is_eio(server: Server) -> None:
    """The numbers of TLS are no errnos: its 1 would be EPERM."""
    with pytest.raises(OSError) as raised:
        HttpSource(server.url.replace("http:", "https:"), sleep=lambda _: None)
    assert raised.value.errno == errno.EIO
