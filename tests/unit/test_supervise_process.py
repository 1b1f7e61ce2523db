"""What a process that serves a disk is, told by the kernel of a process that made itself one."""

import json
import os
import subprocess
import sys

import pytest

from common import limits

_LOOK = """
import json, os, pathlib, resource, sys
from tools.supervise import process
if sys.argv[1] != "root":
    os.setuid(65534)
refused = process.serve_block_devices()
child = os.fork()
if child == 0:
    group = pathlib.Path("/proc/self/autogroup")
    print(json.dumps({
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "group": int(group.read_text().split()[-1]) if group.exists() else None,
        "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
        "refused": refused,
    }))
    sys.stdout.flush()
    os._exit(0)
os.waitpid(child, 0)
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may go before others")


def child_of_a_server(who: str) -> dict[str, object]:
    run = [sys.executable, "-c", _LOOK, who]
    out = subprocess.run(run, capture_output=True, text=True, timeout=30, check=True, start_new_session=True).stdout
    fields: dict[str, object] = json.loads(out)
    return fields


@needs_root
def test_children_go_before_the_users_of_their_disk_and_dump_no_core_on_it() -> None:
    told = child_of_a_server("root")
    assert (told["nice"], told["core"]) == (limits.NICE, 0)
    assert "niceness" not in str(told["refused"])
    # A niceness counts within the autogroup only, so the group's own must be as low where there are groups.
    assert told["group"] in (limits.NICE, None)


@needs_root
def test_who_may_not_go_first_says_so_and_serves_all_the_same() -> None:
    told = child_of_a_server("nobody")
    assert told["nice"] == os.getpriority(os.PRIO_PROCESS, 0)
    assert f"niceness {limits.NICE}: Permission denied" in str(told["refused"])
