#!/usr/bin/python3 -P
"""What an initramfs must hold for `replug gadget up`, one path a line: for the dracut module and for initramfs-tools.

Python's standard library, the modules that replug imports, and replug itself: each distribution has them in another
place. Exit status 1, with a word why, if a module is not installed.
"""

import importlib.util
import sys
import sysconfig
from pathlib import Path

LEFT_OUT = {"test", "tests", "idlelib", "tkinter", "lib2to3", "ensurepip"}
BROKEN = {"cgi.py"}  # names an interpreter that is nowhere, which is an error to dracut-install

directories = {Path(__file__).resolve().parent, *(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))}
for name in ("zmq", "msgpack", "psutil"):
    spec = importlib.util.find_spec(name)
    if spec is None:
        sys.exit(f"replug: python3 lacks {name}: install it, and make the initramfs anew")
    directories.update(Path(place) for place in spec.submodule_search_locations or ())
for directory in sorted(directories):
    for path in sorted(directory.rglob("*")):
        inside = path.relative_to(directory)
        if inside.parts[0] in ("site-packages", "dist-packages") or LEFT_OUT.intersection(inside.parts):
            continue
        # Compiled ones too: a board that has to compile all of it first makes its root wait for that.
        if path.suffix in (".py", ".so", ".pyc") and ".opt-" not in path.name and path.name not in BROKEN:
            print(path)
