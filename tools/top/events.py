"""What has happened between two looks at a side, as lines for people. Pure; used by top and `status --watch`.

Only differences tell: what came and went between two looks is seen by its generation, restarts and counters.
"""

from typing import Any

from common.units import show_ms

Document = dict[str, Any]


def events(before: Document | None, after: Document) -> list[str]:
    """Lines in the order: the side, the link, processes, exports. The first look tells nothing."""
    if before is None:
        return []
    return [*_side(before, after), *_link(before, after), *_processes(before, after), *_exports(before, after)]


def _side(before: Document, after: Document) -> list[str]:
    lines = []
    if before["state"] != after["state"] or (before.get("reason") != after.get("reason") and after.get("reason")):
        why = f": {after['reason']}" if after.get("reason") else ""
        lines.append(f"side {after['state']}{why}")
    old, new = before.get("session_id"), after.get("session_id")
    if old and new and old != new and int(old, 16) and int(new, 16):
        lines.append(f"session {new} is new: the gadget lost its state, or another one came")
    return lines


def _link(before: Document, after: Document) -> list[str]:
    old, new = before["link"], after["link"]
    if not _known(before) or not _known(after) or old["state"] == new["state"]:
        return []
    why = f": {new['reason']}" if new.get("reason") else ""
    return [f"link {new['state']}{why}"]


def _known(document: Document) -> bool:
    """Did session answer? Without it link and exports are not absent, but not known."""
    return bool(document.get("session_id"))


def _processes(before: Document, after: Document) -> list[str]:
    if not before["processes"] or not after["processes"]:
        return []
    rows = {row["role"]: row for row in before["processes"]}
    lines = [line for row in after["processes"] if (line := process_event(rows.pop(row["role"], None), row))]
    return lines + [f"{role} is gone" for role, row in rows.items() if role != "twin" or row["pid"]]


def process_event(before: Document | None, row: Document) -> str | None:
    """One line about a process that is another than before, or in another state; None if all is as it was."""
    role = row["role"]
    if before is None:
        return f"{role} is new"
    state, why = row["state"], row.get("reason") or ""
    tail = f", respawned in {show_ms(row['pause_ms'] / 1000)}" if row["pause_ms"] is not None else ", respawned"
    if row["generation"] and before["generation"] and row["generation"] != before["generation"]:
        how = row["last_exit"] or "replaced"
        if state != "running":
            return f"{role} {how}, its successor is {state}" + (f": {why}" if why and why != how else "")
        more = row["restarts"] - before["restarts"]
        return f"{role} {how}{tail}" + (f" ({more} times)" if more > 1 else "")
    if not row["generation"] and before["generation"]:  # watchdog or spawner: there is no record of a successor yet
        return f"{role} {row['last_exit'] or 'is dead'}, its successor is starting"
    if row["generation"] and not before["generation"] and before["state"] == "starting" and state == "running":
        return f"{role} running{tail}"
    same = bool(row["pid"]) and row["pid"] == before["pid"]
    if same and state == "starting" and before["state"] == "running":
        return None  # a new watchdog has found it, and has not heard from it yet
    if same and state == "running" and before["state"] == "starting":
        return f"{role} running{tail}" if row["pause_ms"] != before["pause_ms"] else None
    if state != before["state"]:
        why = why or ("" if state == "running" else row["last_exit"])
        return f"{role} {state}" + (f": {why}" if why else "")
    return None


def _exports(before: Document, after: Document) -> list[str]:
    if not _known(before) or not _known(after):
        return []
    old = {export["id"]: export for export in before["exports"]}
    lines = []
    for export in after["exports"]:
        past = old.pop(export["id"], None)
        name = f"export {export['name']}"
        if past is None:
            lines.append(f"{name} is new: {export.get('state')}")
            continue
        if past.get("state") != export.get("state"):
            why = f": {export['reason']}" if export.get("reason") else ""
            count = export.get("in_flight") if export["state"] != "live" else 0
            waits = f", {count} I/O{'s wait' if count > 1 else ' waits'}" if count else ""
            lines.append(f"{name} {export['state']}{why}{waits}")
        errors = _errors(export) - _errors(past)
        if errors > 0:
            lines.append(f"{name}: {errors} I/Os failed")
    return lines + [f"export {export['name']} is gone" for export in old.values()]


def _errors(export: Document) -> int:
    return int(export.get("counters", {}).get("error_count", 0))
