"""`replug upgrade` of both sides with real processes under a verifying load (issue 4, item 4), the kernels modelled.

The new installation is a copy of this tree elsewhere. Everything on both sides is another process from there at the
end, the USB device has kept its address, and no request has failed.
"""

import subprocess
from pathlib import Path

import pytest

from bus.runtime import Runtime, Side
from tests.chaos.test_native import flow, loaded
from tests.native.bench import await_
from tests.native.wire import call
from tests.unit.test_supervise_succession import another_installation, runs_from, upgrade_command
from tools.supervise.launch import all_living
from tools.supervise.twin import TWIN

pytestmark = pytest.mark.timeout(240)


def pids(side: Side) -> dict[str, int]:
    return {record.role: record.pid for record in all_living(Runtime(side))}


def with_twin(side: Side) -> dict[str, int]:
    """Also of the newest spawner."""
    return dict(await_(lambda: found if TWIN in (found := pids(side)) else None, f"a twin on the {side} side"))


@pytest.mark.parametrize("first", list(Side))
def test_both_sides_are_upgraded_under_load_and_the_device_keeps_its_address(tmp_path: Path, first: Side) -> None:
    new = another_installation(tmp_path / "new")
    with loaded(tmp_path) as (_, loads):
        address = call("address")
        for side in (first, *(other for other in Side if other is not first)):
            before = pids(side)
            done = subprocess.run(
                upgrade_command(new, "--side", side), capture_output=True, text=True, timeout=100, check=False
            )
            assert done.returncode == 0, done.stderr
            flow(loads)
            after = with_twin(side)
            assert after.keys() == before.keys()
            assert set(after.values()).isdisjoint(before.values())
            assert {role: runs_from(pid) for role, pid in after.items()} == dict.fromkeys(after, new)
            assert "; I/O waited for " in done.stderr.splitlines()[-1]
        assert call("address") == address
