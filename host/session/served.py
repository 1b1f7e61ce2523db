"""Which sources the host's session serves now: what `host serve` began with, and what was added and removed since.

A removed export is kept until a gadget has heard of it: then its device may go. The file is replaced in one step before
anything is done, so that a session that is killed in between leaves it to its successor; `host serve` begins without
one. Called by host/session/offer.py; the command line clears it away.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bus.runtime import Runtime
from common import limits
from common.errors import MALFORMED, Exit, Refused, WireError
from host.session.export import Export

Args = Mapping[str, Any]


@dataclass(frozen=True)
class Served:
    """Arguments of source roles. `removed`: not served any more, and no gadget has been told."""

    sources: tuple[Args, ...]
    removed: tuple[Args, ...] = ()

    @property
    def exports(self) -> list[Export]:
        return [Export.of(args) for args in self.sources]

    @property
    def gone(self) -> list[Export]:
        return [Export.of(args) for args in self.removed]

    def add(self, args: Args) -> "Served":
        """Refused if it is served already, or there are too many. One that is said twice is the same."""
        new = Export.of(args)
        if any(dict(known) == dict(args) for known in self.sources):
            return self
        for known in self.exports:
            if new.export_id == known.export_id:
                raise Refused(f"{new.name}: served already, as {known.name}: nothing to do", Exit.BUSY)
            if new.name == known.name:
                raise Refused(f"{new.name}: another export has this name: give one as NAME=SOURCE", Exit.BUSY)
        if len(self.sources) >= limits.MAX_EXPORTS:
            raise Refused(f"{len(self.sources)} exports: more cannot be: serve it as another --instance")
        removed = tuple(a for a in self.removed if Export.of(a).export_id != new.export_id)
        return Served((*self.sources, dict(args)), removed)

    def remove(self, name: str) -> "Served":
        """Refused for the last one: a host that serves nothing is to be taken down."""
        going = [args for args in self.sources if args["name"] == name]
        if not going:
            known = ", ".join(export.name for export in self.exports)
            raise Refused(f"{name}: not served here: there are: {known}")
        if len(self.sources) == 1:
            raise Refused(f"{name}: is the only export: 'replug host eject' and 'replug host down' end it")
        return Served(tuple(args for args in self.sources if args["name"] != name), (*self.removed, *going))

    def told(self, removed: Sequence[Args]) -> "Served":
        """A gadget has heard that these are removed."""
        return replace(self, removed=tuple(args for args in self.removed if args not in removed))


def served_path(runtime: Runtime) -> Path:
    return Path(runtime.root) / "served.json"


def load_served(runtime: Runtime, first: Sequence[Args]) -> Served:
    """What a predecessor left; `first`, what `host serve` was given, if there is nothing or it makes no sense."""
    try:
        fields = json.loads(served_path(runtime).read_bytes())
        served = Served(tuple(fields["sources"]), tuple(fields["removed"]))
        if served.exports and served.gone is not None:
            return served
    except (OSError, WireError, *MALFORMED):
        pass
    return Served(tuple(first))


def save_served(runtime: Runtime, served: Served) -> None:
    path = served_path(runtime)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps({"sources": list(served.sources), "removed": list(served.removed)}))
    temporary.replace(path)
