"""What the tests of `replug status` during faults share: sides that are well, and looks at those that are not."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from bus.runtime import Runtime, Side
from common.limits import BEAT_S
from tests.native.bench import await_
from tools.cli.document import faults
from tools.cli.look import look
from tools.cli.status import lines

Document = dict[str, Any]
_SLACK_S = 2.0  # between the fault and what is told of its time


def both_well() -> None:
    await_(lambda: all(well(look(Runtime(side))) for side in Side), "both sides to be healthy")


def well(document: Document) -> bool:
    """Healthy, everything flows, and nothing is said of what was."""
    live = all(export["state"] == "live" and not export["reason"] for export in document["exports"])
    return document["state"] == "healthy" and live and not document["reason"] and document["link"]["state"] == "online"


def other(side: Side) -> Side:
    return Side.HOST if side is Side.GADGET else Side.GADGET


def seen(side: Side, condition: Callable[[Document], bool], what: str) -> Document:
    """The document in which it is told; it is as the schema says, and whatever is not well in it says since when."""
    last: list[Document] = []

    def told() -> bool:
        last[:] = [look(Runtime(side))]
        return condition(last[0])

    try:
        await_(told, what)
    except Exception as error:
        raise AssertionError(f"{error}: " + "\n".join(lines(last[0]))) from error
    assert not faults(last[0]), faults(last[0])
    assert not undated(last[0]), undated(last[0])
    return last[0]


def undated(document: Document) -> list[str]:
    """What waits or is dead, and does not say since when."""
    rows = [r["role"] for r in document["processes"] if r["state"] not in ("running", "gone") and not r["since"]]
    silent = [r for r in document["processes"] if r.get("answers") is False and not r.get("silent_since")]
    rows += [r["role"] for r in silent if r["role"] != "twin"]  # which is dormant, and gives no signs
    rows += [e["name"] for e in document["exports"] if e["state"] != "live" and not e.get("since")]
    link = document["link"]
    return rows + (["link"] if link["state"] != "online" and document["session_id"] and not link.get("since") else [])


def row(document: Document, role: str) -> Document:
    return next((row for row in document["processes"] if row["role"] == role), {})


def recent(iso: str, since: datetime) -> bool:
    return -_SLACK_S < (datetime.fromisoformat(iso) - since).total_seconds() < _SLACK_S


def meanwhile(iso: str, began: datetime) -> bool:
    return began < datetime.fromisoformat(iso) <= now()


def last_sign_before(iso: str, fault: datetime) -> bool:
    """A sign of life: at most a beat before the fault, and never after it."""
    return -BEAT_S - _SLACK_S < (datetime.fromisoformat(iso) - fault).total_seconds() < 0.1


def silent(role: str, why: str = "stopped by a signal") -> "re.Pattern[str]":
    return re.compile(rf"{re.escape(role)} does not answer since \d\d:\d\d:\d\d: {why}")


def now() -> datetime:
    return datetime.now(UTC)
