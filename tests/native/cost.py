"""What an I/O costs each role on this machine: CPU time and switches, with the kernels modelled.

`python -m tests.native.cost`. The roles, their bus and their loops are real; aio, usbfs and ublk are sockets to the
model process, so figures compare one tree with another on one machine and say nothing of a kernel. Used for
docs/performance.md, where an emulated guest that shares its machine is too restless for small steps.
"""

import tempfile
import threading
import time
from pathlib import Path

from bus.runtime import Runtime, Side
from tests.native.bench import Bench, bench
from tests.native.disk import ModelDisk
from tools.bench import usage
from tools.supervise.launch import all_living

_BYTES = 16 << 20
_ROLES = ("queue", "usb", "source")
_LOADS = ((4096, 1, 1500, False), (4096, 14, 4000, False), (131072, 4, 600, False), (131072, 4, 600, True))


def _processes() -> dict[str, int]:
    named = {f"{side}.{r.role.partition('.')[0]}": r.pid for side in Side for r in all_living(Runtime(side))}
    return {role: pid for role, pid in named.items() if role.partition(".")[2] in _ROLES}


def _users(here: Bench, size: int, depth: int, count: int, write: bool) -> None:
    def work(first: int) -> None:
        disk, memory = ModelDisk(here.devices[0]), memoryview(bytearray(size))
        for number in range(count // depth):
            offset = (number * 7919 + first * 31) % (_BYTES // size) * size
            if write:
                disk.write(memory, offset, False)
            else:
                disk.read(memory, offset)
        disk.close()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(depth)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        file = Path(place) / "disk.img"
        file.write_bytes(bytes(_BYTES))
        with bench([file]) as here:
            _users(here, 4096, 1, 300, False)
            for size, depth, count, write in _LOADS:
                before, began = usage.all_spent(_processes()), time.monotonic()
                _users(here, size, depth, count, write)
                took = time.monotonic() - began
                spent = usage.since(before, usage.all_spent(_processes()))
                cpu_us = sum(cost.cpu_s for cost in spent.values()) / count * 1e6
                switches = sum(cost.switches for cost in spent.values()) / count
                print(
                    f"{'write' if write else 'read'} {size >> 10}K x{depth}: {count / took:.0f}/s, {cpu_us:.0f} us, "
                    f"{switches:.1f} switches; "
                    + ", ".join(f"{role} {cost.cpu_s / count * 1e6:.0f} us" for role, cost in spent.items()),
                    flush=True,
                )


if __name__ == "__main__":
    main()
