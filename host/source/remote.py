"""`fsspec:URL`: an object in any store that fsspec knows (S3, GCS, Azure, SFTP, ...), read by ranges; never written.

An extra (`replug[fsspec]`, and what the store itself needs, as s3fs). What the store says of the object's version
(ETag, time of its last change, ...) is pinned at the first look and asked for again after every range: a changed object
is ESTALE, never a mix. Keys and endpoints come from fsspec's own configuration (~/.config/fsspec, FSSPEC_* variables),
as a command line is seen by all. Each store has exceptions of its own: what is no OSError with an errno is EIO.
"""

import errno
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from common.errors import Exit, Refused
from host.source.interface import Can, Geometry, Source, fails
from host.source.pieces import Pieces

# What stores call the version of an object, in the answer to `info`. Where it was seen last, or by whom, is none.
_VERSIONS: Final = (
    "ETag", "etag", "VersionId", "version_id", "generation", "md5Hash", "content_md5", "checksum",
    "LastModified", "last_modified", "updated", "modified", "mtime", "created", "ino",
)  # fmt: skip
_PAUSES_S: Final = (0.1, 0.4)  # between tries: most stores try again by themselves, too
_FINAL: Final = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ESTALE)

T = TypeVar("T")


class RemoteSource(Source):
    """Read-only. Raises OSError: ESTALE if the object changed, ENOENT, EACCES, the store's own errno, else EIO."""

    def __init__(self, url: str, sleep: Callable[[float], None] = time.sleep) -> None:
        """Look at it once. Refused if fsspec or the store's part is missing, or if a change could not be seen."""
        self._url, self._sleep = url, sleep
        self._store, self._path = _store(url)
        info = self._tried(self._info)
        if info.get("type") != "file" or not isinstance(info.get("size"), int):
            raise Refused(f"fsspec:{url}: is no object of a known size: give the URL of one")
        self._pin = _version(info)
        if not self._pin:
            raise Refused(f"fsspec:{url}: its store tells no version: a change could not be seen: give a copy of it")
        self.geometry = Geometry(info["size"])
        self.identity = f"fsspec:{url} {info['size']} {self._pin}"
        self.can = Can(0)
        self._pieces = Pieces(info["size"], lambda first, end: self._tried(lambda: self._range(first, end)))

    def close(self) -> None:
        pass

    def _read(self, offset: int, into: memoryview) -> None:
        self._pieces.read(offset, into)

    def _info(self) -> Mapping[str, Any]:
        self._store.invalidate_cache()  # else some stores answer what they heard at the first look
        info: Mapping[str, Any] = self._store.info(self._path)
        return info

    def _range(self, first: int, end: int) -> bytes:
        data: bytes = self._store.cat_file(self._path, start=first, end=end)
        info = self._info()  # after it: then these bytes are of the version that was pinned
        if info.get("size") != self.geometry.size_bytes or _version(info) != self._pin:
            raise fails(errno.ESTALE, f"{self._url}: the object was changed")
        if len(data) != end - first:
            raise fails(errno.EIO, f"{self._url}: {len(data)} bytes, not {end - first}")
        return data

    def _tried(self, once: Callable[[], T]) -> T:
        for pause in (*_PAUSES_S, None):
            try:
                return once()
            except Exception as error:  # every store raises what it likes; none of it may end the role
                number = _errno(error)
                if pause is None or number in _FINAL:
                    raise fails(number, f"{self._url}: {type(error).__name__}: {error}") from None
                self._sleep(pause)
        raise AssertionError("the last pause is None")


def _store(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError:
        raise Refused(
            f"fsspec:{url}: fsspec is not installed: 'pip install fsspec' where replug is", Exit.LACKING
        ) from None
    try:
        store, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise Refused(f"fsspec:{url}: {error}: install that", Exit.LACKING) from None
    except Exception as error:  # an unknown protocol, a configuration that a store does not like, ...
        raise Refused(f"fsspec:{url}: {error}: give a URL that fsspec knows, as s3://BUCKET/KEY") from None
    return store, path


def _version(info: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={info[name]}" for name in _VERSIONS if info.get(name) not in (None, ""))


def _errno(error: Exception) -> int:
    """FileNotFoundError and its like are often raised without their number."""
    if isinstance(error, OSError) and error.errno and 0 < error.errno < 256:
        return error.errno
    kinds = ((FileNotFoundError, errno.ENOENT), (PermissionError, errno.EACCES), (TimeoutError, errno.ETIMEDOUT))
    return next((number for kind, number in kinds if isinstance(error, kind)), errno.EIO)
