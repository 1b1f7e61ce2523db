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


def show_time(seconds: float) -> str:
    """A duration for tables, at most five characters: `14s`, `3m07s`, `2h14m`, `12d`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 36000:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 3600}h" if whole < 172800 else f"{whole // 86400}d"


def show_latency(milliseconds: float | None) -> str:
    """A latency for tables, at most five characters: `345us`, `2.1ms`, `61ms`, `9.8s`; `-` for none."""
    if milliseconds is None:
        return "-"
    if milliseconds < 0.9995:
        return f"{milliseconds * 1000:.0f}us"
    if milliseconds < 9.95:
        return f"{milliseconds:.1f}ms"
    return f"{milliseconds:.0f}ms" if milliseconds < 999.5 else f"{milliseconds / 1000:.1f}s"
