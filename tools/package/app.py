"""The one-file application: our modules and those that they import, as pinned here, in one executable zip.

For machines without a package of replug: it wants only the Python and the architecture that it was built for.
tools.package.app_main unpacks it at its first start.
"""

import hashlib
import importlib.metadata
import os
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

from common.errors import Exit, Refused
from tools.package.tree import LIBRARY, installed
from tools.version import VERSION

_SHEBANG = b"#!/usr/bin/env -S python3 -P\n"
_EPOCH = (2024, 1, 1, 0, 0, 0)  # the same bytes for the same files
_REQUIREMENT = re.compile(r"([A-Za-z0-9_.-]+)(.*)")
ROOTS = ("pyzmq", "msgpack", "pyusb", "psutil", "rich", "libusb-package")


def build(root: Path, destination: Path) -> Path:
    """Make it from the source tree `root` and this environment's packages; returns its path."""
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}-{os.uname().machine}"
    files = dict(_files(root))
    digest = hashlib.sha256()
    for path, data in sorted(files.items()):
        digest.update(f"{path}\0{len(data)}\0".encode() + data)
    destination.mkdir(parents=True, exist_ok=True)
    target = destination / f"replug-{VERSION}-{tag}.pyz"
    with target.open("wb") as file:
        file.write(_SHEBANG)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.comment = f"{tag}-{digest.hexdigest()[:16]}".encode()
            for path, data in sorted(files.items()):
                archive.writestr(zipfile.ZipInfo(path, _EPOCH), data, zipfile.ZIP_DEFLATED)
    target.chmod(0o755)
    return target


def _files(root: Path) -> Iterator[tuple[str, bytes]]:
    for file in installed(root):
        if file.path.startswith(f"{LIBRARY}/"):
            yield file.path.removeprefix(f"{LIBRARY}/"), file.data
    yield "__main__.py", (Path(__file__).parent / "app_main.py").read_bytes()
    for name in _distributions():
        for path in importlib.metadata.files(name) or ():
            inside = ".." not in path.parts and not path.is_absolute()
            if inside and "__pycache__" not in path.parts and "tests" not in path.parts:
                yield str(path), Path(str(path.locate())).read_bytes()


def _distributions() -> list[str]:
    """What we import, and what that needs here: markers with an `extra` are nobody's wish."""
    found: list[str] = []
    todo = list(ROOTS)
    while todo:
        name = todo.pop()
        if name in found:
            continue
        try:
            wanted = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            if name in ROOTS:
                raise Refused(f"app: {name}: not in this environment: run 'make setup'", Exit.LACKING) from None
            continue  # for another platform or Python
        found.append(name)
        todo += [match[1] for text in wanted if "extra ==" not in text and (match := _REQUIREMENT.match(text))]
    return sorted(found)
