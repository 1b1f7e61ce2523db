"""Exports that the operator takes away before the host is unplugged or powered off: which, how far, and their file.

Two steps, each said to the gadget before the next: nothing more is asked of the export (EJECTED), then, when its source
has flushed, everything that was ever answered is on stable storage (FLUSHED). A v0 gadget cannot be told either; its
export is simply not announced any more. The file is for the session's successor. Called by host/session/offer.py.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bus.runtime import Runtime
from common.errors import MALFORMED
from common.wire_v1 import ExportFlag, ExportV1


@dataclass(frozen=True)
class Ejection:
    """Export ids. `flushed` is part of `ejected`."""

    ejected: frozenset[int] = frozenset()
    flushed: frozenset[int] = frozenset()

    def eject(self, export_ids: Iterable[int]) -> "Ejection":
        """These too. What was flushed before stays so: nothing was written since."""
        return replace(self, ejected=self.ejected | set(export_ids))

    def flush(self, export_ids: Iterable[int]) -> "Ejection":
        return replace(self, flushed=self.flushed | (self.ejected & set(export_ids)))

    def forget(self, export_id: int) -> "Ejection":
        """It is not an export of ours any more, or one anew."""
        return Ejection(self.ejected - {export_id}, self.flushed - {export_id})

    def marked(self, export: ExportV1) -> ExportV1:
        """`export` as it is announced to a v1 gadget."""
        export_id, flags = export.record.export_id, export.flags
        if export_id in self.ejected:
            flags |= ExportFlag.EJECTED
        if export_id in self.flushed:
            flags |= ExportFlag.FLUSHED
        return replace(export, flags=flags)


def _path(runtime: Runtime) -> Path:
    return Path(runtime.root) / "ejected.json"


def load_ejection(runtime: Runtime) -> Ejection:
    """What a predecessor was told; nothing if its file makes no sense: the operator sees that no export is ejected."""
    try:
        fields: dict[str, Any] = json.loads(_path(runtime).read_bytes())
        ejected = frozenset(int(n) for n in fields["ejected"])
        return Ejection(ejected, ejected & {int(n) for n in fields["flushed"]})
    except (OSError, *MALFORMED):
        return Ejection()


def save_ejection(runtime: Runtime, ejection: Ejection) -> None:
    path = _path(runtime)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps({"ejected": sorted(ejection.ejected), "flushed": sorted(ejection.flushed)}))
    temporary.replace(path)
