"""One look at a side: every process is asked at once, and the answers become the document of `replug status`.

Who does not answer is said so (tools.cli.presence), and of the others what they say: a side whose watchdog is dead is
not without processes, exports and link. Nobody is waited for longer than ANSWER_S. Used by status and top.
"""

import time
from datetime import UTC, datetime
from typing import Any

from bus.runtime import Runtime, living, modified, recorded_roles
from common.errors import Exit, Gone, Refused, ReplugError
from common.units import show_size
from tools.cli.document import EXPORT_NAMES, LINK_NAMES, VERSION
from tools.cli.presence import DEAF, hopeless, with_answer, works
from tools.cli.where import elsewhere, exists, meant

ANSWER_S = 1.5  # for all answers together; who is busy for longer does no I/O either
QUIET_S = 0.3  # without any answer: then those that are dead or stopped are not waited for
NO_LINK: dict[str, Any] = {"state": "absent", "since": "", "peer": "", "speed": "", "epoch": ""}
NOTHING: dict[str, Any] = {"session_id": None, "link": NO_LINK, "processes": [], "exports": []}
UNCOUNTED = dict.fromkeys(("in_flight", "read_iops", "write_iops", "read_bytes_s", "write_bytes_s"))
Document = dict[str, Any]


def look(runtime: Runtime) -> Document:
    """The document of one side, running or not."""
    head = {"version": VERSION, "side": runtime.side.value, "instance": runtime.instance, "time": _now()}
    if not exists(runtime):
        return {**head, "state": "down", **NOTHING, "reason": "nothing runs"}
    names = [role for role in recorded_roles(runtime) if living(runtime, role) is not None]
    if not names:
        return {**head, "state": "down", **NOTHING, "reason": "its supervision is dead: start the side again"}
    answers = ask_all(runtime, [role for role in names if role not in DEAF])
    watched = answers.get("watchdog")
    if not isinstance(watched, dict):
        watched = _unwatched(runtime)
    told = answers.get("session")
    rows = [with_answer(runtime, row, answers) for row in watched["processes"]]
    session: dict[str, Any] = told if isinstance(told, dict) else {"reason": _absent("session", told, rows)}
    exports = [dated(held_up(_export(export, answers), rows), rows) for export in session.get("exports", [])]
    link = session.get("link") or _link_by_usb(answers.get("usb"))
    brought_up = modified(runtime.root / "plan.json")
    return {
        **head,
        **({} if brought_up is None else {"since": brought_up.isoformat(timespec="milliseconds")}),
        "state": judge({**watched, "processes": rows}, session),
        "session_id": session.get("session_id"),
        "link": NO_LINK | {name: value for name, value in link.items() if name in LINK_NAMES},
        "processes": rows,
        "exports": [UNCOUNTED | {name: value for name, value in e.items() if name in EXPORT_NAMES} for e in exports],
        "reason": "going down" if watched["going_down"] else _reason(runtime, session, rows),
    }


def look_for(side: str | None, instance: str) -> Document:
    """As look(), where it may be that nothing runs at all. Refused if both sides do and none is named."""
    runtime = meant(side, instance)
    if runtime is not None:
        return look(runtime)
    head = {"version": VERSION, "side": side, "instance": instance, "time": _now()}
    return {**head, "state": "down", **NOTHING, "reason": elsewhere(side, instance) or "nothing runs"}


def judge(watched: dict[str, Any], session: dict[str, Any]) -> str:
    """`healthy` if every process runs, session answers, and no export waits for anything but its host."""
    running = all(works(row) or row["state"] == "gone" for row in watched["processes"])
    exports = all(e.get("state") not in ("failed", "recovering") for e in session.get("exports", []))
    exports = exports and not any(e.get("needs_operator") for e in session.get("exports", []))
    # A link that is absent is not a fault of this side; one that was there and is parked is.
    parked = session.get("link", {}).get("state") == "parked"
    fine = running and exports and not parked and not watched["going_down"] and not session.get("reason")
    return "healthy" if fine else "degraded"


def _export(export: dict[str, Any], answers: dict[str, Any]) -> dict[str, Any]:
    """What session says of it, with what its own process counts."""
    answer = answers.get(str(export.get("role")))
    own = answer if isinstance(answer, dict) else {}
    counted = {name: own[name] for name in EXPORT_NAMES if name in own and name not in export}
    if own.get("state") == "failed":  # a source that can write no more says it itself
        counted |= {"state": "failed", "reason": own.get("reason", "")}
    elif own.get("grown_to_bytes") and not export.get("reason"):
        size = show_size(int(own["grown_to_bytes"]))
        counted["reason"] = f"its file has grown to {size}: what was announced is served, a new `host serve` offers all"
    return {**export, **counted}


def held_up(export: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """An export is not live while a process that its I/O goes through is not: which, since when, and why.

    Session knows the link and the gadget's queues; of a usb or a source that is dead or silent just now it does not.
    """
    if export.get("state") != "live":
        return export
    for row in rows:
        if row["role"] in ("usb", export.get("role")) and not works(row):
            state = {"failed": "failed", "stuck": "parked"}.get(row["state"], "recovering")
            return {**export, "state": state, "reason": why_not(row), "since": row.get("silent_since") or row["since"]}
    return export


def dated(export: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Whatever waits says since when: of one whose own process is told to be the reason, that is its row's."""
    row = next((row for row in rows if row["role"] == export.get("role")), None)
    if export.get("since") or export.get("state") == "live" or row is None or not row["since"]:
        return export
    return {**export, "since": row["since"]}


def why_not(row: dict[str, Any]) -> str:
    """`usb is starting since 20:13:00: killed by signal 9`, or `usb does not answer since 20:13:00: ...`."""
    if row.get("answers") is False and row["state"] == "running":
        since = f" since {time_of_day(row['silent_since'])}" if row.get("silent_since") else ""
        return f"{row['role']} does not answer{since}" + (f": {row['reason']}" if row.get("reason") else "")
    since = f" since {time_of_day(row['since'])}" if row["since"] else ""
    why = row.get("reason") or row["last_exit"]
    return f"{row['role']} is {row['state']}{since}" + (f": {why}" if why else "")


def _link_by_usb(answer: Any) -> dict[str, Any]:
    """While session cannot tell: its death is not the link's."""
    own = answer if isinstance(answer, dict) else {}
    state = {"attached": "online", "online": "online", "parked": "parked"}.get(str(own.get("link")), "absent")
    return {"state": state, **({"since": own["since"]} if own.get("since") else {})}


def time_of_day(iso: str) -> str:
    return datetime.fromisoformat(iso).astimezone().strftime("%H:%M:%S")


def _unwatched(runtime: Runtime) -> dict[str, Any]:
    from tools.supervise.report import Report  # only where it is needed: `replug status` is to start fast

    return Report(runtime).without_watchdog()


def _reason(runtime: Runtime, session: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Of the whole side: what supervises it or does its I/O, and cannot."""
    said = [str(session.get("reason", ""))]
    if not any(living(runtime, role) is not None for role in ("watchdog", *DEAF)):
        said.append("its supervision is dead, and what else dies is not started again: start the side again")
    else:
        said += [why_not(row) for row in rows if row["role"] == "watchdog" and row["state"] != "running"]
    said += [why_not(row) for row in rows if row["state"] == "running" and not works(row)]
    return "; ".join(dict.fromkeys(filter(None, said)))


def _absent(role: str, answer: Any, rows: list[dict[str, Any]]) -> str:
    row = next((row for row in rows if row["role"] == role), None)
    return why_not(row) if row is not None and not works(row) else _silent(role, answer)


def _silent(role: str, answer: Any) -> str:
    return str(answer) if isinstance(answer, ReplugError) else f"{role}: no process: it is being replaced"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def ask_all(runtime: Runtime, roles: list[str], timeout_s: float = ANSWER_S) -> dict[str, Any]:
    """The status of each role, or the error that came instead."""
    import zmq

    from bus.envelope import ANY_GENERATION, Envelope, Kind

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        poller, asked = zmq.Poller(), {}
        records = {role: living(runtime, role) for role in roles}
        call = Envelope(Kind.CALL, "command.status", 0, ANY_GENERATION, [1, "status", {}]).encode()
        for role in roles:
            socket = context.socket(zmq.DEALER)
            socket.set(zmq.LINGER, 0)
            socket.set(zmq.RECONNECT_IVL, 20)
            socket.connect(runtime.endpoint(role, "control"))
            socket.send(call)
            poller.register(socket, zmq.POLLIN)
            asked[socket] = role
        late = Gone(f"no answer to 'status' in {timeout_s:g} s")
        answers: dict[str, Any] = {role: Gone(f"{role}: {late}") for role in roles}
        deadline = time.monotonic() + timeout_s
        while asked and (left := deadline - time.monotonic()) > 0:
            ready = poller.poll(int(min(left, QUIET_S) * 1000) + 1)
            for socket, _ in ready:
                poller.unregister(socket)
                answers[asked.pop(socket)] = _answer(Envelope.decode(socket.recv()).body)
            if not ready and all(hopeless(runtime, records[role]) for role in asked.values()):
                break
        return answers
    finally:
        context.destroy(linger=0)


def _answer(body: Any) -> Any:
    if not isinstance(body, list) or len(body) != 4:
        return Gone("its answer is malformed")
    return body[2] if body[1] else Refused(str(body[2]), Exit(body[3]))
