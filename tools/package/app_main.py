"""What the one-file application runs first (tools.package.app puts it in as __main__): unpack once, go on there.

Compiled modules cannot be loaded out of a zip, and a role must not read the application's file while it serves a disk.
Only the standard library; nothing of ours can be imported yet.
"""

import os
import pwd
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NoReturn


def refuse(what: str, status: int = 4) -> NoReturn:
    print(f"replug: {what}", file=sys.stderr)
    sys.exit(status)


def cache() -> Path:
    """Ours alone: what lies there is executed. Not by $HOME, which sudo may leave as another user's."""
    chosen = os.environ.get("REPLUG_CACHE_HOME")
    base = Path(chosen) if chosen else Path(pwd.getpwuid(os.geteuid()).pw_dir) / ".cache"
    path = base / "replug-app"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        refuse(f"{path}: others may write to it: remove it, or set REPLUG_CACHE_HOME to a directory of your own", 2)
    return path


def unpacked(application: Path) -> Path:
    """The directory of this very application's files; made whole or not at all, also by two at once."""
    with zipfile.ZipFile(application) as archive:
        name = archive.comment.decode()  # tools.package.app: python tag, machine, digest of all
        tag, machine = f"cp{sys.version_info[0]}{sys.version_info[1]}", os.uname().machine
        if name.split("-")[:2] != [tag, machine]:
            refuse(
                f"this application is for {' on '.join(name.split('-')[:2])}, here are {tag} on {machine}: get that one"
            )
        target = cache() / name
        if not target.exists():
            temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".new-"))
            archive.extractall(temporary)
            try:
                temporary.rename(target)
            except OSError:
                shutil.rmtree(temporary, ignore_errors=True)  # another was faster
                if not target.exists():
                    raise
    return target


if __name__ == "__main__":
    here = unpacked(Path(sys.path[0]))
    sys.path[0] = str(here)
    from tools.cli import main

    sys.exit(main())
