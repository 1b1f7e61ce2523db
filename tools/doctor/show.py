"""Prints what the doctor found. Exit status: 0 each side asked about can run here, 4 one lacks something."""

import json
from dataclasses import asdict

from common.errors import Exit
from tools.doctor.core import Finding, Level, findings, sides
from tools.doctor.probe import look

VERSION = 1
_WORDS = {Level.OK: "can run here", Level.WARN: "can run here, with remarks", Level.LACK: "cannot run here"}


def show(side: str | None, as_json: bool) -> int:
    found = [finding for finding in findings(look()) if side in (None, finding.side)]
    verdicts = sides(found)
    if as_json:
        document = {"version": VERSION, "sides": verdicts, "findings": [asdict(finding) for finding in found]}
        print(json.dumps(document, indent=1))
    else:
        print("\n".join(lines(found)))
    return Exit.LACKING if Level.LACK in verdicts.values() else Exit.DONE


def lines(found: list[Finding]) -> list[str]:
    """One line for each finding, and one more for what mends it."""
    text = []
    for side, verdict in sides(found).items():
        text.append(f"{side} side: {_WORDS[verdict]}")
        for finding in (finding for finding in found if finding.side == side):
            text.append(f"  {finding.level:<5} {finding.check:<18} {finding.text}")
            if finding.cure:
                text.append(f"        cure: {finding.cure}")
    return text
