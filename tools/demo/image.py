"""The disk the demo serves: an ext4 image full of real files, and a scratch disk for writes."""

import hashlib
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

IMAGE_BYTES = 64 << 20
SCRATCH_BYTES = 24 << 20
_CONTENT_BYTES = 20 << 20  # leaves room in the file system for the tree that is copied in
_SKIPPED = {"__pycache__", "site-packages", "test", "idlelib", "ensurepip"}


def make_content(directory: Path, limit_bytes: int = _CONTENT_BYTES) -> int:
    """Fill `directory` with this Python's library, up to a limit; returns the number of files."""
    source, total, count = Path(sysconfig.get_paths()["stdlib"]), 0, 0
    for folder, names, files in os.walk(source):
        names[:] = sorted(name for name in names if name not in _SKIPPED)
        for name in sorted(files):
            path = Path(folder) / name
            size = path.stat().st_size if path.is_file() else 0
            if size == 0 or total + size > limit_bytes or path.is_symlink():
                continue
            target = directory / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            total, count = total + size, count + 1
    return count


def make_image(image: Path, content: Path) -> None:
    """A 64 MiB ext4 with `content` in it. Raises CalledProcessError with mkfs's words."""
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    command = ["mkfs.ext4", "-q", "-F", "-b", "4096", "-d", os.fspath(content), os.fspath(image)]
    subprocess.run(command, check=True, capture_output=True, text=True)


def make_scratch(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(SCRATCH_BYTES)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_digest(directory: Path) -> dict[str, str]:
    """sha256 of every regular file below, by relative path; `lost+found` left out."""
    return {
        os.fspath(path.relative_to(directory)): sha256(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.is_symlink() and "lost+found" not in path.parts
    }
