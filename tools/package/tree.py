"""What an installed replug consists of: each file's place, bytes and mode, the same for every kind of package.

Pure but for reading the source tree. The builders (tools.package.deb) write it out in their own form.
"""

import gzip
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("common", "bus", "gadget", "host", "tools")
LIBRARY = "usr/lib/replug"
_SUFFIXES = (".py", ".sh")
PROGRAM = """\
#!/usr/bin/python3 -P
# The replug command: its modules lie in ../lib/replug, for nobody else to import but our own child processes.
import os
import sys
from pathlib import Path

library = str(Path(__file__).resolve().parents[1] / "lib/replug")
sys.path.insert(0, library)
os.environ["PYTHONPATH"] = os.pathsep.join([library, *filter(None, [os.environ.get("PYTHONPATH")])])

from tools.cli import main

sys.exit(main())
"""


@dataclass(frozen=True)
class Installed:
    """A file of the package; `path` has no leading slash."""

    path: str
    data: bytes
    executable: bool = False


def installed(root: Path, openrc: bool = False) -> list[Installed]:
    """Every file, sorted by path. `root` is the source tree."""
    files = [*_modules(root), *_documents(root), *_integration(root, openrc)]
    files.append(Installed("usr/bin/replug", PROGRAM.encode(), True))
    return sorted(files, key=lambda file: file.path)


def _modules(root: Path) -> Iterator[Installed]:
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*")):
            if path.suffix in _SUFFIXES and "__pycache__" not in path.parts:
                yield _copied(path, f"{LIBRARY}/{path.relative_to(root)}")


def _documents(root: Path) -> Iterator[Installed]:
    for path in sorted((root / "docs").rglob("*.md")):
        yield _copied(path, f"usr/share/doc/replug/{path.relative_to(root / 'docs')}")
    yield _copied(root / "LICENSE", "usr/share/doc/replug/copyright")
    yield Installed("usr/share/doc/replug/changelog.gz", _gzip(root / "CHANGELOG.md"))
    yield Installed("usr/share/man/man1/replug.1.gz", _gzip(root / "packaging/replug.1"))


def _integration(root: Path, openrc: bool) -> Iterator[Installed]:
    from tools.cli.completion import script
    from tools.cli.grammar import grammar

    packaging = root / "packaging"
    yield Installed("usr/share/bash-completion/completions/replug", script(grammar()).encode())
    for rules in ("70-replug.rules", "71-replug-gadget.rules"):
        yield _copied(packaging / "udev" / rules, f"usr/lib/udev/rules.d/{rules}")
    for path in sorted((packaging / "dracut").rglob("*.sh")):
        yield _copied(path, f"usr/lib/dracut/modules.d/{path.relative_to(packaging / 'dracut')}")
    yield _copied(packaging / "initramfs/files.py", f"{LIBRARY}/initramfs-files")
    for name in ("hooks/replug", "scripts/local-block/replug"):
        yield _copied(packaging / "initramfs" / name, f"usr/share/initramfs-tools/{name}")
    yield _copied(packaging / "wireshark/replug.lua", "usr/share/replug/replug.lua")
    if openrc:
        for path in sorted((packaging / "openrc").iterdir()):
            yield _copied(path, f"etc/init.d/{path.name}")
    else:
        for path in sorted((packaging / "systemd").glob("*.service")):
            yield _copied(path, f"usr/lib/systemd/system/{path.name}")


def _copied(source: Path, path: str) -> Installed:
    return Installed(path, source.read_bytes(), bool(os.stat(source).st_mode & stat.S_IXUSR))


def _gzip(path: Path) -> bytes:
    return gzip.compress(path.read_bytes(), 9, mtime=0)
