"""`replug status`: what watchdog and session say, as one document (version 1), for programs or for people.

Exit status: 0 healthy, 1 degraded, 5 down. rich is imported only for a terminal.
"""

import json
import sys
from typing import Any

from bus.control import ask
from bus.runtime import Runtime, Side
from common.errors import Exit, Gone, ReplugError
from common.units import show_size
from tools.cli.side import find, processes
from tools.supervise.launch import supervised

VERSION = 1
_SESSION_S = 1.5
_STATES = {"healthy": Exit.DONE, "degraded": Exit.FAULT, "down": Exit.DOWN}


def show(side: str | None, instance: str, as_json: bool) -> int:
    """Print the document of the side meant; returns the exit status for its state."""
    if as_json and not any(Runtime(s, instance).root.is_dir() for s in ([Side(side)] if side else Side)):
        document = {"version": VERSION, "side": side, "instance": instance, "state": "down", **_NOTHING}
    else:
        document = look(find(side, instance))
    if as_json:
        print(json.dumps(document, indent=1))
    elif sys.stdout.isatty():
        _table(document)
    else:
        print("\n".join(lines(document)))
    return _STATES[document["state"]]


_NOTHING: dict[str, Any] = {"session_id": None, "link": {"state": "absent"}, "processes": [], "exports": []}


def look(runtime: Runtime) -> dict[str, Any]:
    """The document of one side. Says what does not answer; never waits long."""
    document: dict[str, Any] = {"version": VERSION, "side": runtime.side.value, "instance": runtime.instance}
    if not supervised(runtime):
        return {**document, "state": "down", **_NOTHING, "reason": "its supervision is dead: start the side again"}
    try:
        watched = processes(runtime)
    except (Gone, ReplugError) as error:
        return {**document, "state": "degraded", **_NOTHING, "reason": str(error)}
    try:
        session: dict[str, Any] = ask(runtime, "session", "status", timeout_s=_SESSION_S)
    except (Gone, ReplugError) as error:
        session = {"reason": str(error)}
    return {
        **document,
        "state": judge(watched, session),
        "session_id": session.get("session_id"),
        "link": session.get("link", {"state": "absent"}),
        "processes": watched["processes"],
        "exports": session.get("exports", []),
        "reason": "going down" if watched["going_down"] else session.get("reason", ""),
    }


def judge(watched: dict[str, Any], session: dict[str, Any]) -> str:
    """`healthy` if every process runs, session answers, and no export waits for anything but its host."""
    running = all(row["state"] in ("running", "gone") for row in watched["processes"])
    exports = all(e.get("state") not in ("failed", "recovering") for e in session.get("exports", []))
    # A link that is absent is not a fault of this side; one that was there and is parked is.
    parked = session.get("link", {}).get("state") == "parked"
    fine = running and exports and not parked and not watched["going_down"] and not session.get("reason")
    return "healthy" if fine else "degraded"


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
    state = str(export.get("state", "")) + (f": {export['reason']}" if export.get("reason") else "")
    size = show_size(int(export.get("size_bytes", 0)))
    return [str(export.get("name")), str(export.get("device") or export.get("path") or "-"), size, state]


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
        for name in ("EXPORT", "DEVICE", "SIZE", "STATE"):
            exports.add_column(name, justify="right" if name == "SIZE" else "left")
        for export in document["exports"]:
            exports.add_row(*map(Text, export_cells(export)))
        console.print(exports)
