"""A process from before switch_root(8) sees an empty root; bus.newroot has it follow. In namespaces of their own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# As an initramfs and systemd do it: /run moves into the new root, which is then laid over the old one.
_SWITCH = """\
set -e
mount -n -t tmpfs old "$1"; cd "$1"; mkdir run proc new
for name in usr lib lib64 bin dev {more}; do
    [ ! -e "/$name" ] || {{ mkdir -p "./$name"; mount -n --rbind "/$name" "./$name"; }}
done
mount -n -t tmpfs run run; mkdir run/replug; mkfifo run/orders run/answers
mount --rbind /proc proc
mount -n --move . /
exec chroot . /bin/sh -ec '
cd / # whatever this directory was called in the world outside, which may be there too
{python} -c "$PROGRAM" <run/orders &
exec 3>run/orders
read answer <run/answers
mount -n -t tmpfs new new; mkdir new/run new/proc
touch new/this-is-the-new-one
cd new; {python} -c "$MOVES"; echo >&3
wait'
"""
# By the system call: mount(8) wants /proc to know what it does.
_MOVES = """\
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for source, target in ((b"/run", b"run"), (b"/proc", b"proc"), (b".", b"/")):
    if libc.mount(source, target, None, 0x2000, None):  # MS_MOVE
        raise OSError(ctypes.get_errno(), f"{source!r} to {target!r}")
"""
_PROGRAM = """\
import os, sys, threading, time
from pathlib import Path
from bus import newroot

place = Path("/run/replug")
gate = threading.Event()
threading.Thread(target=gate.wait, daemon=True).start()  # ZeroMQ has some: all of a process share one root
said = [str(newroot.keep_up(place))]
with open("/run/answers", "w") as answers:
    answers.write("ready\\n")
sys.stdin.readline()
said.append(str(place.exists()))
said.append(str(newroot.keep_up(place)))
said.append(str(place.exists() and Path("/this-is-the-new-one").exists()))
said.append(str(newroot.keep_up(place)))
print(*said)
"""


def switched(tmp_path: Path) -> str:
    """What the program says: before, sees its runtime directory, followed, sees it and the new root, again."""
    more = " ".join(sorted({p.parts[1] for p in (ROOT, Path(sys.prefix).resolve(), Path(sys.executable).resolve())}))
    script = _SWITCH.format(more=more, python=sys.executable)
    own = [] if os.geteuid() == 0 else ["-r"]
    command = ["unshare", *own, "--mount", "--propagation", "private", "bash", "-c", script, "switch", str(tmp_path)]
    environment = {**os.environ, "PROGRAM": _PROGRAM, "MOVES": _MOVES, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_who_is_left_in_the_old_root_follows_once_and_sees_its_runtime_directory_again(tmp_path: Path) -> None:
    assert switched(tmp_path) == "False False True True False"


def test_a_place_that_is_nowhere_is_not_followed_anywhere(tmp_path: Path) -> None:
    """The runtime directory is gone because the side is down: the root stays what it is."""
    program = "from pathlib import Path; from bus import newroot; print(newroot.keep_up(Path('/nowhere/at/all')))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert done.stdout.strip() == "False", done.stderr
