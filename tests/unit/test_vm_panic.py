"""What a guest's kernel said as it died, read from its console."""

from tools.vm.panic import panic_of

_HEAD = "[  1.000000] usb 1-1: New USB device found\n"
_TAIL = "[ 1097.586827] Kernel panic - not syncing: Fatal exception in interrupt\n"
IN_ALLOCATOR = (
    _HEAD
    + """\
[ 1097.585001] Oops: general protection fault, probably for non-canonical address 0x5a5a: 0000 [#1] PREEMPT SMP NOPTI
[ 1097.585010] CPU: 0 UID: 0 PID: 77 Comm: python3 Not tainted 6.12.117 #1
[ 1097.585020] RIP: 0010:__kmalloc_node_track_caller_noprof+0x12a/0x3f0
[ 1097.585100] Call Trace:
[ 1097.585101]  <TASK>
[ 1097.585110]  ? die_addr+0x36/0x90
[ 1097.585120]  kstrdup+0x31/0x60
[ 1097.585130]  ublk_ctrl_add_dev+0x20/0x40 [ublk_drv]
[ 1097.585140]  </TASK>
[ 1097.585200] ---[ end trace 0000000000000000 ]---
[ 1097.585300] RIP: 0010:elsewhere+0x1/0x2
"""
    + _TAIL
)


def test_a_kernel_that_lived_has_not_panicked() -> None:
    assert panic_of(_HEAD) is None


def test_the_first_fault_is_told_with_its_place_and_its_callers() -> None:
    panic = panic_of(IN_ALLOCATOR)
    assert panic is not None and panic.where == "__kmalloc_node_track_caller_noprof"
    assert panic.trace == ("kstrdup", "ublk_ctrl_add_dev [ublk_drv]")
    assert str(panic).startswith("Oops: general protection fault") and "called by kstrdup < ublk" in str(panic)


def test_a_panic_without_a_fault_that_can_be_read_is_told_by_its_own_line() -> None:
    panic = panic_of(_HEAD + _TAIL)
    assert panic is not None and "Fatal exception" in str(panic)
