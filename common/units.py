"""Sizes and times as people write them (64K, 1G, 500ms, 30s), both directions. Used by the command line and status."""

import re

_SIZE = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_TIME = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}


def parse_size(text: str) -> int:
    """Bytes of `4096`, `64K`, `1G` (powers of 1024). Raises ValueError with one line."""
    match = re.fullmatch(r"(\d{1,15})([KMGT]?)(?:i?B)?", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: write it as 4096, 64K or 1G")
    return int(match[1]) * _SIZE[match[2]]


def parse_time(text: str) -> float:
    """Seconds of `500ms`, `30s`, `5min`. Raises ValueError with one line."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|min|h)", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a time: write it as 500ms, 30s or 5min")
    return float(match[1]) * _TIME[match[2]]


def show_size(size_bytes: int) -> str:
    """`67108864` as `64.0M`; at most six characters, for tables."""
    for unit, scale in (("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.1f}{unit}"
    return f"{size_bytes}"


def show_ms(seconds: float) -> str:
    """A pause for people: `61 ms`, `2.4 s`."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
