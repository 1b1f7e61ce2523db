"""How a source is written, on the command line, in configuration and in status: one text, one parser, pure.

    /images/a.img                        a path that begins with / or ./ is taken as it is, whatever is in it
    file:/images/a%3F.img?ro             percent-encoded, with options
    http://host/a.img  https://...       the whole rest is the URL, as it is
    fsspec:s3://bucket/a.img             the same, of any store that fsspec knows
    random:SEED?size=64M
    overlay:/images/a.map?over=SOURCE
    fault:/run/switch?error=EIO&over=SOURCE

`over=` is always the last option and everything behind it is the inner source as it would be written alone, so nesting
needs no quoting: fault:/s?error=EIO&over=overlay:/m?over=https://host/a.img?x=1&y=2 has one meaning. Elsewhere %, ?
and & of a body or value are percent-encoded. `Spec.text` is the canonical form: parsed again it is the same Spec.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import quote, unquote, urlsplit

from common.errors import Refused

_MAX_DEPTH = 8  # wrappers about a source: more is a mistake, and each costs a copy of every byte


class Scheme(StrEnum):
    FILE = "file"
    HTTP = "http"
    HTTPS = "https"
    FSSPEC = "fsspec"
    RANDOM = "random"
    OVERLAY = "overlay"
    FAULT = "fault"


# Each kind's own options, with what they mean: the parser knows no others, and the reference is made from them.
OPTIONS: dict[Scheme, dict[str, str]] = {
    Scheme.FILE: {"ro": "writes are refused"},
    Scheme.HTTP: {},
    Scheme.HTTPS: {},
    Scheme.FSSPEC: {},
    Scheme.RANDOM: {"size": "its size, a multiple of 512, as 64M; must be given"},
    Scheme.OVERLAY: {},
    Scheme.FAULT: {
        "error": "the errno that is told, by its name, as EIO or ENOSPC",
        "ops": "which operations fail, as read,write (default: all): read, write, flush, discard, write_zeroes",
        "delay_ms": "what is waited before each of them, in milliseconds",
        "torn": "a failing read or write has done its first half",
        "short": "a read ends after its first half, and then fails, as if the file had been cut",
    },
}
MEANINGS: dict[Scheme, str] = {
    Scheme.FILE: "an image file or a block device, read and written in place",
    Scheme.HTTP: "a file that a server has, read-only; the server must know ranges",
    Scheme.HTTPS: "the same, encrypted; trusted are the system's certificates, or the file in `SSL_CERT_FILE`",
    Scheme.FSSPEC: "an object of any store that fsspec knows, read-only",
    Scheme.RANDOM: "random bytes from a seed, the same ones each time, read-only",
    Scheme.OVERLAY: "another source, left as it is: what is written lies in a map file beside it",
    Scheme.FAULT: "another source that misbehaves while its switch file exists: for tests",
}
WRAPPERS = (Scheme.OVERLAY, Scheme.FAULT)
OVER = "the source under it, written as it would be alone; always the last option; must be given"
_BODY = {
    Scheme.FILE: "the path of an image or block device",
    Scheme.RANDOM: "a seed",
    Scheme.OVERLAY: "the path of its map file",
    Scheme.FAULT: "the path of its switch file",
}


@dataclass(frozen=True, slots=True)
class Spec:
    """One source, parsed. `body` is decoded: a path, a seed, or the whole URL."""

    scheme: Scheme
    body: str
    options: tuple[tuple[str, str], ...] = ()
    over: "Spec | None" = None

    def option(self, name: str) -> str | None:
        return dict(self.options).get(name)

    @property
    def text(self) -> str:
        if self.scheme in (Scheme.HTTP, Scheme.HTTPS):
            return self.body
        if self.scheme is Scheme.FSSPEC:
            return f"{self.scheme}:{self.body}"
        if self.scheme is Scheme.FILE and not self.options and self.body.startswith("/"):
            return self.body
        parts = [f"{key}={quote(value, safe='/,:')}" if value else key for key, value in self.options]
        if self.over is not None:
            parts.append(f"over={self.over.text}")
        return f"{self.scheme}:{quote(self.body, safe='/:@')}" + (f"?{'&'.join(parts)}" if parts else "")


def parse(text: str, _depth: int = 0) -> Spec:
    """Refused with one line: what is wrong, why, what to write instead."""
    if not text:
        raise Refused("a source is empty: give the path of an image or block device")
    if _depth > _MAX_DEPTH:
        raise Refused(f"{text}: more than {_MAX_DEPTH} sources inside each other: use fewer")
    match = re.match(r"([a-z][a-z0-9+.-]+):", text)
    if match is None:
        return Spec(Scheme.FILE, _checked(text, text))
    if match[1] not in list(Scheme):
        known = ", ".join(f"{scheme}:" for scheme in Scheme)
        raise Refused(
            f"{text}: {match[1]}: is not a kind of source here: use a path (./{text} if it is one) or {known}"
        )
    scheme = Scheme(match[1])
    if scheme in (Scheme.HTTP, Scheme.HTTPS):
        return Spec(scheme, _url(text))
    if scheme is Scheme.FSSPEC:
        return Spec(scheme, _store_url(text, text[match.end() :]))
    body, question, query = text[match.end() :].partition("?")
    if not body:
        raise Refused(f"{text}: nothing behind {scheme}:, give {_BODY[scheme]}")
    options, over = _options(text, scheme, query, _depth) if question else ((), None)
    if scheme in WRAPPERS and over is None:
        raise Refused(f"{text}: a source is missing under it: end with over=SOURCE")
    return Spec(scheme, _checked(_decoded(text, body), text), options, over)


def _options(text: str, scheme: Scheme, query: str, depth: int) -> tuple[tuple[tuple[str, str], ...], Spec | None]:
    found: dict[str, str] = {}
    while query:
        if query.startswith("over="):
            if scheme not in WRAPPERS:
                raise Refused(f"{text}: {scheme}: lies over nothing: leave out over=")
            return tuple(sorted(found.items())), parse(query[len("over=") :], depth + 1)
        item, _, query = query.partition("&")
        key, _, value = item.partition("=")
        if key not in OPTIONS[scheme]:
            names = sorted(OPTIONS[scheme]) + (["over"] if scheme in WRAPPERS else [])
            cure = f"use {', '.join(names)}; a ? or & of a name is written %3F or %26"
            raise Refused(f"{text}: {key!r} is not an option of {scheme}: {cure}")
        if key in found:
            raise Refused(f"{text}: {key} is given twice: give it once")
        found[key] = _checked(_decoded(text, value), text)
    return tuple(sorted(found.items())), None


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        good = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or not text.isascii() or not text.isprintable() or " " in text:
        raise Refused(f"{text}: not a URL: give http://HOST[:PORT]/PATH, other characters percent-encoded")
    if parts.username is not None:
        raise Refused(f"{parts.scheme}://...@{parts.hostname}: a password in a URL is seen by all: leave it out")
    return text.partition("#")[0]


def _store_url(text: str, url: str) -> str:
    """fsspec's own. What a # means is the store's business."""
    if "::" in url:
        raise Refused(f"{text}: a chain: its caches would mix versions of an object: give the store's own URL")
    try:
        parts = urlsplit(url)
        good = "://" in url and (not parts.netloc or parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or not url.isascii() or not url.isprintable() or " " in url:
        raise Refused(f"{text}: not a URL of a store: give fsspec:s3://BUCKET/KEY, other characters percent-encoded")
    if parts.password is not None:
        raise Refused(f"fsspec:{parts.scheme}://...: a password in a URL is seen by all: use fsspec's configuration")
    return url


def _decoded(text: str, part: str) -> str:
    if re.search(r"%(?![0-9A-Fa-f]{2})", part):
        raise Refused(f"{text}: a % without two hexadecimal digits: write %25 for a %")
    return unquote(part, errors="surrogateescape")


def _checked(part: str, text: str) -> str:
    if "\0" in part:
        raise Refused(f"{text!r}: has a NUL in it: no path has")
    return part
