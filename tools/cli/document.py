"""The document of `replug status --json`, version 1: its fields, types and meanings, in one place.

The JSON schema (`replug status --schema`), the reference page (docs/status-json.md) and the check of the tests are all
made from these tables. Fields may be added; a field that is there keeps its name and meaning.
"""

from typing import Any

VERSION = 1
STATES = ("healthy", "degraded", "down")
LINK_STATES = ("online", "parked", "absent")
PROCESS_STATES = ("running", "starting", "stopping", "stuck", "failed", "gone")
EXPORT_STATES = ("live", "parked", "recovering", "failed")

# name, with a ? if it may be missing: (JSON type, or the choices, or a table, or a list of one of these; what it means)
Fields = dict[str, tuple[Any, str]]

LATENCY: Fields = {
    "p50": ("number|null", "half of the I/Os of the last second took less; null: there were none"),
    "p99": ("number|null", "99 of 100 took less; both are exact to a factor of 2"),
}
COUNTERS: Fields = {
    "read_count": ("integer", "reads that ended"),
    "write_count": ("integer", "writes that ended"),
    "flush_count": ("integer", "flushes that ended"),
    "discard_count": ("integer", "discards that ended"),
    "read_bytes": ("integer", "bytes read"),
    "write_bytes": ("integer", "bytes written"),
    "error_count": ("integer", "I/Os of any kind that ended with an error"),
}
LINK: Fields = {
    "state": (LINK_STATES, "absent: never seen, or gone; parked: was there, everything waits for it"),
    "since": ("string", "since when it is in this state, ISO 8601; empty: nobody knows"),
    "peer": ("string", "the protocol spoken: v0 or v1; empty: none yet"),
    "speed": ("string", "of the USB link, as the kernel names it: high-speed, super-speed; empty without a link"),
    "epoch": ("string", "of the data plane, as 0x...; empty with v0, or where only the other side knows"),
    "reason?": ("string", "why it is not online"),
}
PROCESS: Fields = {
    "role": ("string", "its name, as commands take it"),
    "pid": ("integer|null", "null: there is no process at present"),
    "generation": ("integer", "grows with each successor: CLOCK_BOOTTIME at its fork, in ns; 0: none"),
    "state": (
        PROCESS_STATES,
        "stopping: asked to end, or what it left is taken away; "
        "stuck: killed, but the kernel does not let it die; failed: not started again",
    ),
    "since": ("string", "running: when it was forked; else since when it is in this state; empty: nobody knows"),
    "restarts": ("integer", "successors since the side came up"),
    "last_exit": ("string", "how the predecessor ended; empty: there was none"),
    "pause_ms": ("integer|null", "from the predecessor's death until the successor was ready"),
    "rss_bytes": ("integer", "resident memory"),
    "cpu_percent": ("number", "of one processor, since the status before"),
    "reason?": ("string", "why it is not running, or does not answer"),
    "answers?": ("boolean", "false: it runs, and has not answered this look: stopped, or it hangs; its I/O waits"),
    "silent_since?": ("string", "if it does not answer: its last sign of life, at most 5 s before it fell silent"),
    "phase?": ("string", "the watchdog's own name for the state"),
}
EXPORT: Fields = {
    "name": ("string", "its name on the host, else on the gadget"),
    "id": ("string", "its id on the wire, as 0x..."),
    "role?": ("string", "the process that serves it"),
    "device": ("string", "the block device of the gadget side; empty on the host side"),
    "source?": ("string", "host side: what is served, as the command line takes it"),
    "size_bytes": ("integer", "its size"),
    "block_size": ("integer", "bytes of a block"),
    "read_only": ("boolean", "writes are refused"),
    "state": (
        EXPORT_STATES,
        "live; parked: waits for the host, or for a stuck process; recovering: its process is being replaced",
    ),
    "since?": ("string", "since when it is in this state, ISO 8601, or at least then; missing if it is live"),
    "reason?": ("string", "what it waits for and since when, or why it failed"),
    "unflushed_bytes?": (
        "integer",
        "bytes acknowledged and not covered by a FLUSH: a power cut of the host takes them",
    ),
    "needs_operator?": ("boolean", "it waits for `replug export resume` or `fail`: the reason says why (gadget side)"),
    "limit_s?": ("number", "parked for so many seconds, it fails (gadget side); 0: it waits without a limit"),
    "grown_to_bytes?": ("integer", "host side: the size of a file that is larger than what is served of it; else 0"),
    "in_flight": ("integer|null", "I/Os taken and not yet ended; null, here and below: its process does not answer"),
    "oldest_ms?": ("integer", "for how long the oldest of them waits (gadget side); 0: none does"),
    "read_iops": ("number|null", "reads a second, over the last whole second"),
    "write_iops": ("number|null", "writes a second"),
    "read_bytes_s": ("integer|null", "bytes read a second"),
    "write_bytes_s": ("integer|null", "bytes written a second"),
    "latency_ms?": (LATENCY, "gadget side: of the whole I/O; host side: of the source alone"),
    "counters?": (COUNTERS, "since the start of the process that serves it"),
    "latency_log2_us?": (["integer"], "number n counts I/Os that took less than 2**n µs, and at least half of it"),
}
DOCUMENT: Fields = {
    "version": ("integer", "of this schema: 1"),
    "side": (("gadget", "host", None), "null: nothing runs, and no side was named"),
    "instance": ("string", "which of several sides"),
    "time": ("string", "when it was looked at, ISO 8601"),
    "since?": ("string", "when the side was brought up, ISO 8601"),
    "state": (STATES, "degraded: something waits or fails; the exit status is 0, 1 or 5"),
    "reason?": ("string", "why it is not healthy, if a process does not say it"),
    "session_id": ("string|null", "kept for as long as the gadget's devices live, as 0x...; null: not known"),
    "link": (LINK, "the USB link to the other side"),
    "processes": ([PROCESS], "watchdog, spawner, twin, and each role"),
    "exports": ([EXPORT], "each block device, or what is served"),
}
LINK_NAMES, EXPORT_NAMES = (frozenset(name.rstrip("?") for name in fields) for fields in (LINK, EXPORT))


def json_schema() -> dict[str, Any]:
    """As JSON Schema 2020-12."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "replug status"}
    return {**head, **_object(DOCUMENT)}


def _object(fields: Fields) -> dict[str, Any]:
    properties = {name.rstrip("?"): {**_type(kind), "description": text} for name, (kind, text) in fields.items()}
    return {"type": "object", "properties": properties, "required": [name for name in fields if name[-1] != "?"]}


def _type(kind: Any) -> dict[str, Any]:
    if isinstance(kind, tuple):
        return {"enum": list(kind)}
    if isinstance(kind, list):
        return {"type": "array", "items": _type(kind[0])}
    if isinstance(kind, dict):
        return _object(kind)
    return {"type": kind.split("|") if "|" in kind else kind}


def reference() -> str:
    """The reference page, as Markdown."""
    parts = [
        "# `replug status --json`, version 1\n",
        "One JSON object; with `--watch` one on each line. Fields may be added, none changes its name or meaning.",
        "`replug status --schema` prints this as JSON Schema. Fields with a `?` may be missing.",
    ]
    tables = {"": DOCUMENT, "link": LINK, "processes[]": PROCESS, "exports[]": EXPORT}
    tables |= {"exports[].latency_ms": LATENCY, "exports[].counters": COUNTERS}
    for title, fields in tables.items():
        parts += [f"\n## `{title}`\n" if title else "", "| field | type | meaning |", "|---|---|---|"]
        for name, (kind, text) in fields.items():
            parts.append(f"| `{name.rstrip('?')}`{'?' if name[-1] == '?' else ''} | {_named(kind)} | {text} |")
    return "\n".join(parts) + "\n"


def _named(kind: Any) -> str:
    if isinstance(kind, tuple):
        return ", ".join(f"`{choice}`" if choice else "null" for choice in kind)
    if isinstance(kind, list):
        return f"list of {_named(kind[0])}"
    return "object" if isinstance(kind, dict) else str(kind).replace("|", " or ")


_PYTHON: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def faults(value: Any, kind: Any = DOCUMENT, at: str = "") -> list[str]:
    """Where `value` is not what the tables say; empty if it is."""
    if isinstance(kind, tuple):
        return [] if value in kind else [f"{at}: {value!r} is none of {kind}"]
    if isinstance(kind, list):
        items = value if isinstance(value, list) else [value]
        return [fault for n, item in enumerate(items) for fault in faults(item, kind[0], f"{at}[{n}]")]
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            return [f"{at}: {value!r} is not an object"]
        known = {name.rstrip("?"): inner for name, (inner, _) in kind.items()}
        wrong = [f"{at}.{name}: missing" for name in kind if name[-1] != "?" and name not in value]
        wrong += [f"{at}.{name}: not in the schema" for name in value if name not in known]
        return wrong + [f for n, inner in known.items() if n in value for f in faults(value[n], inner, f"{at}.{n}")]
    allowed = tuple(t for word in kind.split("|") for t in _PYTHON[word])
    fine = isinstance(value, allowed) and not (isinstance(value, bool) and bool not in allowed)
    return [] if fine else [f"{at}: {value!r} is not {kind}"]
