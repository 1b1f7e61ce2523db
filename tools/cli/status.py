"""`replug status`: one look at a side, or one after the other, for people or for programs.

Exit status: 0 healthy, 1 degraded, 5 down. rich is imported only for a terminal.
"""

import json
import sys
import time
from typing import Any

from common.errors import Exit, Refused
from common.units import show_size, show_time
from tools.cli.document import json_schema
from tools.cli.look import judge as judge
from tools.cli.look import look as look
from tools.cli.look import look_for, time_of_day, why_not
from tools.cli.where import find

_STATES = {"healthy": Exit.DONE, "degraded": Exit.FAULT, "down": Exit.DOWN}


def show(side: str | None, instance: str, as_json: bool) -> int:
    """Print the document of the side meant; returns the exit status for its state."""
    document = look_for(side, instance) if as_json else look(find(side, instance))
    if as_json:
        print(json.dumps(document, indent=1))
    elif sys.stdout.isatty():
        _table(document)
    else:
        print("\n".join(lines(document)))
    return _STATES[document["state"]]


def schema() -> int:
    print(json.dumps(json_schema(), indent=1))
    return Exit.DONE


def watch(side: str | None, instance: str, as_json: bool, interval_s: float) -> int:
    """One line for each interval, and one for each event in between; goes on while the side is down."""
    from tools.top.events import events

    if interval_s < 0.05:
        raise Refused(f"--interval {interval_s:g}s: below 50ms it would be the load that it shows: choose a longer one")
    before: dict[str, Any] | None = None
    while True:
        due = time.monotonic() + interval_s
        document = look_for(side, instance)
        if as_json:
            print(json.dumps(document), flush=True)
        else:
            now = time.strftime("%H:%M:%S")
            for text in [*events(before, document), summary(document)]:
                print(f"{now} {text}", flush=True)
        before = document
        time.sleep(max(0.0, due - time.monotonic()))


def summary(document: dict[str, Any]) -> str:
    """One line: state, link, and the rates of each export."""
    parts = [f"{document['side'] or 'replug'}:{document['instance']} {document['state']}"]
    parts.append(f"link {document['link']['state']}")
    for export in document["exports"]:
        text = f"{export['name']} {export.get('state')}"
        if export.get("read_bytes_s") is not None:
            text += f" read {show_size(export['read_bytes_s'])}/s write {show_size(export['write_bytes_s'])}/s"
            text += f" in flight {export.get('in_flight', 0)}"
        parts.append(text)
    return ", ".join(parts)


def lines(document: dict[str, Any]) -> list[str]:
    """For people, without a terminal: one line each, no colour."""
    link = document["link"]
    since = f" since {link['since']}" if link.get("since") else ""
    head = f"{document['side']}:{document['instance']} {document['state']}, link {link.get('state')}{since}"
    text = [head + (f", session {document['session_id']}" if document["session_id"] else "")]
    if document.get("reason"):
        text.append(f"  {document['reason']}")
    for row in document["processes"]:
        cells = zip(process_cells(row), _WIDTHS, strict=True)
        text.append("  " + "  ".join(cell.ljust(width) for cell, width in cells))
    text += ["  " + "  ".join(export_cells(export)) for export in document["exports"]]
    return [line.rstrip() for line in text]


_WIDTHS = (16, 7, 9, 3, 7, 6, 0)
_HEADS = ("PROCESS", "PID", "STATE", "RESTARTS", "MEM", "CPU", "LAST EXIT")


def process_cells(row: dict[str, Any]) -> list[str]:
    """One process as text: role, pid, state, restarts, memory, CPU, last exit or reason."""
    last = row.get("reason") if row["state"] in ("failed", "stuck", "starting") else row["last_exit"]
    if row["state"] == "running" and row.get("answers") is False:
        last = why_not(row).removeprefix(f"{row['role']} ")
    pause = f", pause {row['pause_ms']} ms" if row["last_exit"] and row["pause_ms"] is not None else ""
    return [
        row["role"],
        str(row["pid"] or "-"),
        row["state"],
        str(row["restarts"]),
        show_size(row["rss_bytes"]),
        f"{row['cpu_percent']:.0f}%",
        f"{last or row['last_exit']}{pause}",
    ]


def export_cells(export: dict[str, Any]) -> list[str]:
    reason = str(export.get("reason", ""))
    since = f" since {time_of_day(export['since'])}" if export.get("since") and " since " not in reason else ""
    state = str(export.get("state", "")) + since + (f": {reason}" if reason else "")
    if export.get("read_bytes_s") is not None:
        rates = f"read {show_size(export['read_bytes_s'])}/s, write {show_size(export['write_bytes_s'])}/s"
        state += f"; {rates}, {export.get('in_flight', 0)} in flight"
    if export.get("unflushed_bytes"):
        state += f", {show_size(export['unflushed_bytes'])} not flushed"
    if export.get("limit_s"):
        state += f", fails when parked for {show_time(export['limit_s'])}"
    size = show_size(int(export.get("size_bytes", 0)))
    return [str(export.get("name")), str(export.get("device") or export.get("source") or "-"), size, state]


def _table(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    head = lines({**document, "processes": [], "exports": []})
    mark = {"healthy": "green", "degraded": "yellow", "down": "red"}[document["state"]]
    console.print(Text(head[0], style=f"bold {mark}"))
    for line in head[1:]:
        console.print(Text(line))
    table = Table(box=None, pad_edge=False)
    for name in _HEADS:
        table.add_column(name, justify="right" if name in ("PID", "RESTARTS", "MEM", "CPU") else "left")
    for row in document["processes"]:
        table.add_row(*map(Text, process_cells(row)))
    console.print(table)
    if document["exports"]:
        exports = Table(box=None, pad_edge=False)
        for name in ("EXPORT", "DEVICE" if document["side"] == "gadget" else "SOURCE", "SIZE", "STATE"):
            exports.add_column(name, justify="right" if name == "SIZE" else "left")
        for export in document["exports"]:
            exports.add_row(*map(Text, export_cells(export)))
        console.print(exports)
