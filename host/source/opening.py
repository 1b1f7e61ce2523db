"""From a Spec to the open Source, wrappers and all. Called by host.source.role and by the command line's first look.

Raises Refused with one line for what makes no sense, OSError of open(2) for what cannot be opened.
"""

import errno
from pathlib import Path

from common.errors import Refused
from common.units import parse_size
from host.source.fault import Fault, FaultSource, Operation
from host.source.file import open_path
from host.source.interface import Source
from host.source.noise import NoiseSource
from host.source.overlay import open_overlay
from host.source.spec import Scheme, Spec

_MAX_DELAY_MS = 600_000  # longer than anybody waits for a test


def open_source(spec: Spec, read_only: bool) -> Source:
    """Open and lock it. `read_only` is the operator's wish; a source may be so by itself."""
    if spec.scheme is Scheme.FILE:
        return open_path(Path(spec.body), read_only or spec.option("ro") is not None)
    if spec.scheme is Scheme.RANDOM:
        return NoiseSource(spec.body, _noise_bytes(spec))
    if spec.scheme is Scheme.FSSPEC:
        from host.source.remote import RemoteSource  # the store's own packages, too

        return RemoteSource(spec.body)
    if spec.over is None:
        from host.source.http import HttpSource  # ssl and more: only for who serves such a thing

        return HttpSource(spec.body)
    fault = _fault(spec) if spec.scheme is Scheme.FAULT else None
    inner = open_source(spec.over, read_only or fault is None)
    try:
        return FaultSource(Path(spec.body), fault, inner) if fault else open_overlay(Path(spec.body), inner, read_only)
    except BaseException:
        inner.close()
        raise


def check_values(spec: Spec) -> None:
    """Refused if an option's value makes no sense. Nothing is opened."""
    if spec.scheme is Scheme.RANDOM:
        _noise_bytes(spec)
    elif spec.scheme is Scheme.FAULT:
        _fault(spec)
    if spec.over is not None:
        check_values(spec.over)


def _noise_bytes(spec: Spec) -> int:
    try:
        size_bytes = parse_size(spec.option("size") or "")
    except ValueError:
        size_bytes = 0
    if size_bytes <= 0 or size_bytes % 512:
        raise Refused(f"{spec.text}: its size is no multiple of 512: give one, as random:{spec.body}?size=64M")
    return size_bytes


def _fault(spec: Spec) -> Fault:
    name, delay = spec.option("error") or "", spec.option("delay_ms") or "0"
    number = {text: value for value, text in errno.errorcode.items()}.get(name, 0)
    if name and not 0 < number < 256:
        raise Refused(f"{spec.text}: error={name}: not the name of an errno: give one as EIO or ENOSPC")
    if not delay.isdecimal() or int(delay) > _MAX_DELAY_MS:
        raise Refused(f"{spec.text}: delay_ms={delay}: not a number up to {_MAX_DELAY_MS}: give milliseconds")
    names = [word for word in (spec.option("ops") or "").split(",") if word]
    if wrong := [word for word in names if word not in list(Operation)]:
        raise Refused(f"{spec.text}: ops={wrong[0]}: not an operation: use {', '.join(Operation)}")
    operations = frozenset(Operation(word) for word in names) or frozenset(Operation)
    torn, short = spec.option("torn") is not None, spec.option("short") is not None
    if not (number or short or int(delay)):
        raise Refused(f"{spec.text}: a fault that does nothing: give error=EIO, delay_ms=N or short")
    return Fault(number, operations, int(delay) / 1000, torn, short)
