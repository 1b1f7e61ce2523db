"""What `replug host serve` is given: each SOURCE parsed, looked at and refused with one line before anything starts.

The looks are for people; the source role takes its own lock when it opens the file, and that decides.
"""

import errno
import fcntl
import hashlib
import os
import re
import shlex
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bus.runtime import check_name
from common import limits
from common.errors import Exit, Refused
from host.source import interface
from host.source.interface import Can, Geometry
from host.source.inuse import refuse_in_use
from host.source.opening import check_values, open_source
from host.source.spec import WRAPPERS, Scheme, Spec, parse
from tools.cli.content import made_for

_NAME_CHARACTERS = 40  # leaves room for `source.` and a suffix in a socket's path


@dataclass(frozen=True)
class Source:
    """One export to serve. The fields are the source role's arguments; `path` is the source as one writes it."""

    name: str
    path: str
    export_id: int
    block_size: int
    size_bytes: int
    read_only: bool
    identity: str  # what was looked at: a successor of the source refuses anything else
    discard: bool = False
    write_zeroes: bool = False
    physical_block: int = 0  # bytes; 0: not known
    optimal_io: int = 0

    def role_args(self) -> dict[str, Any]:
        return asdict(self)


def look_at(
    arguments: Sequence[str], block_size: int | None, read_only: bool, present: Sequence[Source] = ()
) -> list[Source]:
    """The sources meant by the command line. Refused with one line for the first that cannot be served.

    `present`: those that a side serves already, whose names and ids are taken.
    """
    if len(arguments) > limits.MAX_EXPORTS:
        raise Refused(f"{len(arguments)} sources: more than {limits.MAX_EXPORTS}: serve the rest as another --instance")
    sources: list[Source] = []
    for argument in arguments:
        name, spec = _split(argument)
        if any(known.path == spec.text for known in sources):
            raise Refused(f"{argument}: given twice: serve it once")
        if known := next((known for known in present if known.path == spec.text), None):
            raise Refused(f"{argument}: served already, as {known.name}: nothing to do", Exit.BUSY)
        geometry, identity, can, content = _look(spec, read_only)
        size = block_size or _block_size(geometry, content)
        _check_size(spec.text, geometry, size)
        free_name = _unique(name or _safe(_path_in(spec)), {s.name for s in (*present, *sources)})
        export_id = _export_id(identity, {s.export_id for s in (*present, *sources)})
        sources.append(
            Source(
                free_name,
                spec.text,
                export_id,
                size,
                geometry.size_bytes,
                Can.WRITE not in can,
                identity,
                Can.DISCARD in can,
                Can.WRITE_ZEROES in can,
                geometry.physical_block_size or 0,
                geometry.optimal_io_bytes or 0,
            )
        )
    return sources


def understood(argument: str) -> Spec:
    """What is said, without a look at what it names. Refused if it makes no sense whatever is there."""
    spec = _split(argument)[1]
    check_values(spec)
    return spec


def _split(argument: str) -> tuple[str | None, Spec]:
    """`NAME=SOURCE` or `SOURCE`. A path with a `=` or `:` in it is written with a `/` before that, or exists."""
    name: str | None = None
    head, equals, tail = argument.partition("=")
    if equals and not re.search("[/:?]", head) and not os.path.exists(argument):
        name, argument = check_name(head, "name of an export"), tail
    return name, _absolute(Spec(Scheme.FILE, argument) if argument and os.path.exists(argument) else parse(argument))


def _absolute(spec: Spec) -> Spec:
    """Roles run elsewhere, and an id must not depend on how a path is written."""
    over = _absolute(spec.over) if spec.over else None
    has_path = spec.scheme in (Scheme.FILE, *WRAPPERS)
    return replace(spec, body=os.path.realpath(spec.body) if has_path else spec.body, over=over)


def _block_size(geometry: Geometry, content: int | None) -> int:
    """As large as its content and its size allow, and no smaller than its own."""
    size = content or 4096
    return max(geometry.block_size, size if geometry.size_bytes % size == 0 else 512)


def _look(spec: Spec, read_only: bool) -> tuple[Geometry, str, Can, int | None]:
    """Geometry, identity, what it can and its content's block size, after making sure that it can be served."""
    leaf, leaf_read_only = spec, read_only or spec.option("ro") is not None
    while leaf.over is not None:
        leaf_read_only |= leaf.scheme is Scheme.OVERLAY or leaf.over.option("ro") is not None
        leaf = leaf.over
    if leaf.scheme is Scheme.FILE and _size_of(leaf.body, leaf_read_only) == 0:
        _check_size(leaf.body, Geometry(0), 512)
    try:
        source = open_source(spec, read_only)
    except OSError as error:
        raise Refused(f"{spec.text}: {error.strerror}: check its paths and their permissions") from None
    try:
        return source.geometry, source.identity, source.can, _content(source)
    finally:
        source.close()


def _content(source: interface.Source) -> int | None:
    """None too if it cannot be read: whoever uses it will be told why."""
    size_bytes, unit = source.geometry.size_bytes, source.geometry.block_size

    def read(offset: int, size: int) -> bytes:
        first, end = offset // unit * unit, min(-(-(offset + size) // unit) * unit, size_bytes // unit * unit)
        if first >= end:
            return b""
        found = bytearray(end - first)
        source.read(first, memoryview(found))
        return bytes(found[offset - first : offset - first + size])

    try:
        return made_for(read, size_bytes)
    except OSError:
        return None


def _path_in(spec: Spec) -> Path:
    return Path(urlsplit(spec.body).path if spec.scheme in (Scheme.HTTP, Scheme.HTTPS) else spec.body)


def _size_of(path: str, read_only: bool) -> int:
    """Bytes, after making sure that it can be served: there, ours to open, nobody's else."""
    try:
        status = os.stat(path)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
            what = "a directory" if stat.S_ISDIR(status.st_mode) else "no file"
            raise Refused(f"{path}: {what}: give a disk image or a block device")
        exclusive = os.O_EXCL if stat.S_ISBLK(status.st_mode) else 0
        fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | exclusive)
    except OSError as error:
        raise _cannot_open(path, error, read_only) from None
    try:
        if stat.S_ISREG(status.st_mode):
            refuse_in_use(Path(path), status)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            cure = "end that first ('replug host down', or its Ctrl-C)"
            raise Refused(f"{path}: served already, or locked by another program: {cure}") from None
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)


def _cannot_open(path: str, error: OSError, read_only: bool) -> Refused:
    why = os.strerror(error.errno or 0)
    cures = {
        errno.ENOENT: "check the path",
        errno.EBUSY: "mounted or in use by the system: unmount it first",
        errno.EROFS: "add --read-only",
        errno.EACCES: "check its permissions" if read_only else "check its permissions, or add --read-only",
    }
    return Refused(f"{path}: {why}: {cures.get(error.errno or 0, 'give a readable disk image')}", Exit.BAD_INPUT)


def _check_size(path: str, geometry: Geometry, block_size: int) -> None:
    size_bytes = geometry.size_bytes
    if size_bytes == 0:
        raise Refused(f"{path}: empty: make it a size first, with 'truncate -s 64M {shlex.quote(path)}'")
    if block_size % geometry.block_size:
        raise Refused(f"{path}: its blocks are {geometry.block_size} bytes: use --block-size {geometry.block_size}")
    if size_bytes % block_size:
        whole = -(-size_bytes // block_size) * block_size
        raise Refused(
            f"{path}: {size_bytes} bytes is not a multiple of the block size {block_size}: "
            f"pad it with 'truncate -s {whole} {shlex.quote(path)}'"
        )


def _safe(path: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem).strip("-_")[:_NAME_CHARACTERS]
    return name or "disk"


def _unique(name: str, taken: set[str]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    return free


def _export_id(identity: str, taken: set[int]) -> int:
    """Stable for a disk, wherever its file lies: a host that comes back means the same one. Never 0, never twice.

    Another file in its place gets another id, so that even a v0 gadget, which is told no identity, cannot take it for
    the disk it knows.
    """
    number = int.from_bytes(hashlib.sha256(os.fsencode(identity)).digest()[:4], "big")
    while number in taken or not 0 < number < 1 << 32:
        number = (number + 1) % (1 << 32)
    return number
