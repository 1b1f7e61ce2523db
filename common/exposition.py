"""Metrics as Prometheus text (exposition format 0.0.4): families of samples in, text out. Pure; see bus/metrics.py.

Names follow the conventions: a prefix, base units (seconds, bytes), `_total` for what only grows, labels for what is
one of several.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Labels = Mapping[str, str]
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LINK_STATES = ("online", "parked", "absent")
EXPORT_STATES = ("live", "parked", "recovering", "failed")
_OPERATIONS = ("read", "write", "flush", "discard")


@dataclass
class Family:
    """One metric: its samples are (suffix of the name, labels, value)."""

    name: str
    kind: str  # gauge, counter, histogram
    help: str
    samples: list[tuple[str, Labels, float]] = field(default_factory=list)

    def add(self, value: float | None, suffix: str = "", **labels: str) -> None:
        """None: nobody knows, and then nothing is said."""
        if value is not None:
            self.samples.append((suffix, labels, value))


def text(families: Iterable[Family]) -> str:
    lines = []
    for family in families:
        if family.samples:
            lines += [f"# HELP {family.name} {_help(family.help)}", f"# TYPE {family.name} {family.kind}"]
            lines += [
                f"{family.name}{suffix}{_labels(labels)} {_number(value)}" for suffix, labels, value in family.samples
            ]
    return "\n".join(lines) + "\n"


def _help(words: str) -> str:
    return words.replace("\\", "\\\\").replace("\n", "\\n")


def _labels(labels: Labels) -> str:
    inner = ",".join(f'{name}="{_value(value)}"' for name, value in labels.items())
    return f"{{{inner}}}" if inner else ""


def _value(words: str) -> str:
    return words.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))


# -- what a side tells -----------------------------------------------------------------------------------------------
def families(side: str, instance: str, session: Mapping[str, Any], answers: Mapping[str, Any]) -> list[Family]:
    """`session` is its own status; `answers` are those of other roles by name, missing where one did not answer."""
    watched = answers.get("watchdog", {})
    about = Family("replug_info", "gauge", "Which side this is; always 1.")
    about.add(1, side=side, instance=instance)
    return [
        about,
        *_link(session.get("link", {})),
        _refusals({"session": session, **answers}),
        *_processes(watched.get("processes", []), answers),
        *_exports(session.get("exports", []), answers),
    ]


def _link(link: Mapping[str, Any]) -> list[Family]:
    state = Family("replug_link_state", "gauge", "1 for the state that the USB link is in, 0 for the others.")
    for name in LINK_STATES:
        state.add(float(link.get("state", "absent") == name), state=name)
    return [state]


def _refusals(answers: Mapping[str, Any]) -> Family:
    refusals = Family("replug_refusals_total", "counter", "What the peer sent and we did not do, since the role began.")
    for role, answer in answers.items():
        for kind, count in answer.get("refusals", {}).items():
            refusals.add(count, role=role, kind=kind)
    return refusals


def _processes(rows: Iterable[Mapping[str, Any]], answers: Mapping[str, Any]) -> list[Family]:
    running = Family("replug_process_running", "gauge", "1 if the process runs and is ready.")
    answers_ = Family("replug_process_answers", "gauge", "1 if the process answered within the time of this scrape.")
    restarts = Family("replug_process_restarts_total", "counter", "Successors since the side came up.")
    pause = Family("replug_process_pause_seconds", "gauge", "Last death until its successor was ready.")
    memory = Family("replug_process_resident_memory_bytes", "gauge", "Resident memory.")
    for row in rows:
        role = str(row["role"])
        running.add(float(row["state"] == "running"), role=role)
        if role not in ("spawner", "twin"):  # they cannot be asked
            answers_.add(float(role in answers or role == "session"), role=role)
        restarts.add(row["restarts"], role=role)
        pause.add(None if row["pause_ms"] is None else row["pause_ms"] / 1000, role=role)
        memory.add(row["rss_bytes"], role=role)
    return [running, answers_, restarts, pause, memory]


def _exports(exports: Iterable[Mapping[str, Any]], answers: Mapping[str, Any]) -> list[Family]:
    state = Family("replug_export_state", "gauge", "1 for the state that the export is in, 0 for the others.")
    size = Family("replug_export_size_bytes", "gauge", "Size of the disk.")
    flying = Family("replug_export_in_flight", "gauge", "I/Os taken and not yet ended.")
    unflushed = Family("replug_export_unflushed_bytes", "gauge", "Bytes acknowledged and not yet flushed.")
    operations = Family("replug_export_operations_total", "counter", "I/Os that ended, since the process started.")
    moved = Family("replug_export_bytes_total", "counter", "Bytes read and written, since the process started.")
    errors = Family("replug_export_errors_total", "counter", "I/Os that ended with an error.")
    latency = Family("replug_export_latency_seconds", "histogram", "From an I/O's begin to its end.")
    for export in exports:
        name = str(export["name"])
        own = answers.get(str(export.get("role")), {})
        shown = "failed" if own.get("state") == "failed" else export.get("state")
        for each in EXPORT_STATES:
            state.add(float(shown == each), export=name, state=each)
        size.add(export.get("size_bytes"), export=name)
        flying.add(own.get("in_flight"), export=name)
        unflushed.add(export.get("unflushed_bytes", own.get("unflushed_bytes")), export=name)
        counters = own.get("counters")
        if counters is not None:
            for operation in _OPERATIONS:
                operations.add(counters[f"{operation}_count"], export=name, operation=operation)
            moved.add(counters["read_bytes"], export=name, direction="read")
            moved.add(counters["write_bytes"], export=name, direction="write")
            errors.add(counters["error_count"], export=name)
            _histogram(latency, own["latency_log2_us"], own.get("latency_sum_s", 0.0), name)
    return [state, size, flying, unflushed, operations, moved, errors, latency]


def _histogram(latency: Family, log2_us: list[int], sum_s: float, export: str) -> None:
    """Bucket n of ours is below 2**n µs; theirs count everything below. The last of ours has no bound."""
    below = 0
    for bucket, count in enumerate(log2_us[:-1]):
        below += count
        latency.add(below, "_bucket", export=export, le=repr((1 << bucket) / 1e6))
    latency.add(sum(log2_us), "_bucket", export=export, le="+Inf")
    latency.add(sum_s, "_sum", export=export)
    latency.add(sum(log2_us), "_count", export=export)
