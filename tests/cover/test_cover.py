"""What ran is known: statements by their lines, also those of a process that was killed and of one it forked."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.cover.statements import missed
from tests.cover.tracer import WHERE

SOURCE = '''"""Of what there is."""

import os

@decorated
def f(
    a,
):
    """Nothing."""
    if (a ==
            1):
        return [
            2,
        ]
    return 3

match os:
    case 1: pass
'''

CHILD = """
import os, signal, sys, threading
from tests.cover.tracer import start
start()
from common import units
if os.fork() == 0:
    threading.Thread(target=lambda: units.parse_size("4K")).start()
    [thread.join() for thread in threading.enumerate() if thread is not threading.current_thread()]
    os.kill(os.getpid(), signal.SIGKILL)
os.wait()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_statements_are_counted_by_their_heads_and_docstrings_are_none() -> None:
    assert missed(SOURCE, b"") == (7, [3, 5, 10, 12, 15, 17, 18])
    ran = bytes(n in (3, 5, 11, 13) for n in range(20))
    assert missed(SOURCE, ran)[1] == [15, 17, 18]


def test_what_a_killed_thread_of_a_forked_child_ran_is_known(tmp_path: Path) -> None:
    environment = {**os.environ, WHERE: str(tmp_path)}
    child = subprocess.run([sys.executable, "-c", CHILD], env=environment, timeout=60)
    assert child.returncode == -signal.SIGKILL
    source = Path("common/units.py").read_text()
    _, lines = missed(source, (tmp_path / "common+units.py.lines").read_bytes())
    text = source.splitlines()
    body = next(n for n, line in enumerate(text, 1) if line.startswith("def parse_size"))
    assert body not in lines and lines, "all or nothing was seen"
    inner = next(n for n in range(body + 1, len(text)) if text[n - 1].startswith("    ") and '"""' not in text[n - 1])
    assert inner not in lines, "what ran in the thread of the killed child is lost"
