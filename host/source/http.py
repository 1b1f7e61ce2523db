"""`http://...` and `https://...`: an object on a web server, read by ranges; never written.

Its validator (a strong ETag, else Last-Modified) is pinned at the first look and asked for with every range (If-Match,
If-Unmodified-Since) and compared with every answer: a changed object is ESTALE, never a mix. Python's http.client does
it in little code with what is installed anyway; one connection for each thread, a few retries, a small cache of pieces.
Whose certificates are trusted is OpenSSL's to say: what the system has, or the file that SSL_CERT_FILE names.
"""

import contextlib
import errno
import re
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

from common.errors import Refused
from common.shown import shown
from host.source.interface import Can, Geometry, Source, fails
from host.source.pieces import Pieces

TRIES = 4
TIMEOUT_S = 10.0  # of connecting, and of a silence in the middle of a body
_PAUSES_S = (0.1, 0.4, 1.6)  # between tries
_MAX_HOPS = 5
_VALIDATOR = 256  # characters of an ETag; it is part of what an export is known by, and travels in orders
_AGAIN = (408, 429, 500, 502, 503, 504)
_REDIRECTS = (301, 302, 303, 307, 308)
_DENIED = {401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT, 410: errno.ENOENT, 412: errno.ESTALE}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Validator:
    """What the object is known by: the header that says it, and the one that asks for exactly it."""

    says: str
    asks: str
    value: str


class _Broken(Exception):
    """This try has failed, the next may not. `number` is the errno if it was the last."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(why)
        self.number = number


def _fails(number: int, text: str) -> OSError:
    """A part of `text` is the server's words."""
    return fails(number, shown(text))


class HttpSource(Source):
    """Read-only. Raises OSError: ESTALE if the object changed, ENOENT, EACCES, the connection's own errno, else EIO."""

    def __init__(self, url: str, sleep: Callable[[float], None] = time.sleep) -> None:
        """Look at it once. Refused if it cannot be served by ranges; OSError if it cannot be had."""
        self._url, self._sleep = url, sleep
        self._local = threading.local()
        self.can = Can(0)
        self._pin: Validator | None = None
        self.geometry = Geometry(1)
        self._tried(self._first_look)
        self._pieces = Pieces(
            self.geometry.size_bytes, lambda first, end: self._tried(lambda: self._range(first, end - 1))
        )
        self.identity = f"{url} {self._pin}"

    def close(self) -> None:
        self._drop()

    def _read(self, offset: int, into: memoryview) -> None:
        self._pieces.read(offset, into)

    # -- tries -------------------------------------------------------------------------------------------------------
    def _tried(self, once: Callable[[], T]) -> T:
        for pause in (*_PAUSES_S, None):
            try:
                return once()
            except _Broken as error:
                self._drop()
                if pause is None:
                    raise _fails(error.number, f"{self._url}: {error}") from None
                self._sleep(pause)
            except (HTTPException, ValueError) as error:
                self._drop()
                if pause is None:
                    raise _fails(errno.EIO, f"{self._url}: {type(error).__name__}: {error}") from None
                self._sleep(pause)
            except BaseException:
                self._drop()
                raise
        raise AssertionError("the last pause is None")

    def _first_look(self) -> None:
        answer = self._ask(0, 0)
        if answer.status != 206:
            raise Refused(f"{self._url}: the server sends no ranges: give one that does, or a copy of the file")
        self._pin = _validator(answer, self._url)
        match = re.fullmatch(r"bytes 0-0/(\d{1,18})", answer.getheader("Content-Range", ""))
        if match is None:
            told = shown(repr(answer.getheader("Content-Range")))
            raise Refused(f"{self._url}: {told} tells no size: give another server")
        self._body(answer, 1)
        self.geometry = Geometry(int(match[1]))

    def _range(self, first: int, last: int) -> bytes:
        answer = self._ask(first, last)
        if answer.status != 206:
            # A server that ignores the condition sends the whole object when it is another one.
            raise _Broken(errno.EIO, f"asked for a range, answered {answer.status}")
        assert self._pin is not None
        if answer.getheader(self._pin.says) != self._pin.value:
            raise _fails(errno.ESTALE, f"{self._url}: the object was changed")
        want = f"bytes {first}-{last}/{self.geometry.size_bytes}"
        if (got := answer.getheader("Content-Range")) != want:
            raise _Broken(errno.EIO, f"asked for {want!r}, answered {got!r}")
        return self._body(answer, last - first + 1)

    def _ask(self, first: int, last: int) -> HTTPResponse:
        """The answer after redirects, its body unread. Errors of status are raised."""
        headers = {"Range": f"bytes={first}-{last}", "Accept-Encoding": "identity", "User-Agent": "replug"}
        if self._pin is not None:
            headers[self._pin.asks] = self._pin.value
        url = self._url
        for _ in range(_MAX_HOPS + 1):
            answer = self._send(url, headers)
            if answer.status not in _REDIRECTS:
                break
            target = urljoin(url, answer.getheader("Location", ""))
            answer.close()  # one that ends with its connection is not closed by that
            self._drop()
            if urlsplit(target).scheme not in ("https", urlsplit(url).scheme):
                raise _fails(errno.EACCES, f"{url}: redirected to {target}: not safe, or no web address")
            url = target
        else:
            raise _fails(errno.ELOOP, f"{self._url}: redirected more than {_MAX_HOPS} times")
        if answer.status in _AGAIN:
            raise _Broken(errno.EIO, f"answered {answer.status} {answer.reason}")
        if answer.status >= 400:
            raise _fails(_DENIED.get(answer.status, errno.EIO), f"{url}: answered {answer.status} {answer.reason}")
        return answer

    def _send(self, url: str, headers: dict[str, str]) -> HTTPResponse:
        parts = urlsplit(url)
        key = (parts.scheme, parts.hostname, parts.port)
        if getattr(self._local, "key", None) != key:
            self._drop()
            kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
            self._local.connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
            self._local.key = key
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            self._local.connection.request("GET", target, headers=headers)
            answer: HTTPResponse = self._local.connection.getresponse()
            return answer
        except ssl.SSLCertVerificationError as error:  # tried again it would be the same one
            cure = "name the file of whoever signed it by SSL_CERT_FILE"
            raise _fails(
                errno.EACCES, f"{url}: its certificate is not trusted: {error.verify_message}: {cure}"
            ) from None
        except OSError as error:
            raise _Broken(_number(error), str(error)) from None

    def _body(self, answer: HTTPResponse, size_bytes: int) -> bytes:
        if answer.getheader("Content-Encoding", "identity") != "identity":
            raise _Broken(errno.EIO, "the server compresses ranges")
        try:
            data = answer.read(size_bytes + 1)  # never more, whatever the server means to send
        except OSError as error:
            raise _Broken(_number(error), str(error)) from None
        if len(data) != size_bytes:
            raise _Broken(errno.EIO, f"a body of {len(data)} bytes, not {size_bytes}")
        return data

    def _drop(self) -> None:
        """Close this thread's connection: an unread body would be taken for the next answer."""
        connection = getattr(self._local, "connection", None)
        self._local.key = self._local.connection = None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.close()


def _number(error: OSError) -> int:
    """Its errno. Those of name resolution and TLS have numbers of their own."""
    if isinstance(error, TimeoutError):
        return errno.ETIMEDOUT
    if isinstance(error, ssl.SSLError) or not error.errno or error.errno < 0:
        return errno.EIO
    return error.errno


def _validator(answer: HTTPResponse, url: str) -> Validator:
    etag, modified = answer.getheader("ETag"), answer.getheader("Last-Modified")
    if max(len(etag or ""), len(modified or "")) > _VALIDATOR:
        raise Refused(f"{url}: an ETag or date of more than {_VALIDATOR} characters: give another server")
    if etag and not etag.startswith("W/"):
        return Validator("ETag", "If-Match", etag)
    if modified:
        return Validator("Last-Modified", "If-Unmodified-Since", modified)
    raise Refused(
        f"{url}: neither a strong ETag nor Last-Modified: a change could not be seen: give a copy of the file"
    )
