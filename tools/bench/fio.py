"""One load on one block device by fio, and what it says of it."""

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import Exit, Refused
from tools.bench import usage
from tools.bench.core import Figure, Load

_SLACK_S = 60.0  # beyond its run time: its own start and end, which an emulated guest stretches


def require() -> None:
    if shutil.which("fio") is None:
        raise Refused("fio: not found on this machine: 'apt-get install fio'", Exit.LACKING)


def run(system: str, device: Path, load: Load, seconds: float, processes: Callable[[], Mapping[str, int]]) -> Figure:
    """Refused if fio fails. fio's own CPU time is told as role `fio`."""
    pids = processes()
    before = usage.all_spent(pids)
    [job] = _jobs(system, [device], load, seconds)
    return figure(system, load, job, usage.since(before, usage.all_spent(pids)))


def run_many(system: str, devices: Sequence[Path], load: Load, seconds: float) -> list[Figure]:
    """The same load on each of them, at once; what each did."""
    return [figure(system, load, job, {}) for job in _jobs(system, devices, load, seconds)]


def _jobs(system: str, devices: Sequence[Path], load: Load, seconds: float) -> list[Any]:
    command = [
        "fio", "--ioengine=libaio", "--direct=1", "--thread", f"--rw={load.pattern}", f"--bs={load.block_bytes}",
        f"--iodepth={load.depth}", "--time_based", f"--runtime={seconds:g}", "--randseed=7", "--output-format=json",
        "--percentile_list=50:95:99",
    ]  # fmt: skip
    for device in devices:
        command += [f"--name={device.name}", f"--filename={device}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + _SLACK_S)
    if done.returncode:
        raise Refused(f"{system}: {load.name}: fio: {done.stderr.strip() or done.stdout.strip()[-300:]}", Exit.FAULT)
    return list(json.loads(done.stdout[done.stdout.index("{") :])["jobs"])


def figure(system: str, load: Load, job: Mapping[str, Any], costs: Mapping[str, Any]) -> Figure:
    """From a job of fio's JSON (version 3.33). Of a mixed load latencies are those of the reads."""
    ways = [job[way] for way in ("read", "write") if job[way]["total_ios"]]
    if not ways:
        raise Refused(f"{system}: {load.name}: not one I/O was done", Exit.FAULT)
    latency = ways[0]["clat_ns"]
    tail = {f"p{float(share):g}": value / 1000 for share, value in latency.get("percentile", {}).items()}
    return Figure(
        system,
        load.name,
        max(way["runtime"] for way in ways) / 1000,
        sum(way["total_ios"] for way in ways),
        sum(way["io_bytes"] for way in ways),
        {"mean": ways[0]["lat_ns"]["mean"] / 1000, **tail},
        costs,
    )
