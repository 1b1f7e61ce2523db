"""A role that plays session: its link is online, and its exports are those of its arguments."""

from typing import Any

from bus.role import Role

EXPORT = {"id": "0x00000001", "device": "", "size_bytes": 4096, "block_size": 512, "read_only": False}


def start(role: Role) -> None:
    exports = [{**EXPORT, "state": "live", "reason": "", **export} for export in role.args["exports"]]
    link = {"state": "online", "since": "2026-01-01T00:00:00.000+00:00", "peer": "v0", "speed": "high-speed"}
    told: dict[str, Any] = {"session_id": "0x0000000000000005", "link": link, "exports": exports}
    role.status = lambda: told
    role.ready()
