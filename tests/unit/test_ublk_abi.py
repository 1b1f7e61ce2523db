"""ublk's, io_uring's and the system call table's layouts and numbers, against the C headers where they are new enough.

REPLUG_KERNEL_HEADERS names a directory with linux/ublk_cmd.h to be preferred to the system's (a kernel
source's include/uapi, or an unpacked linux-libc-dev).
"""

import ctypes
import os
import platform
import re
import shutil
import subprocess
from enum import IntEnum, IntFlag
from pathlib import Path

import pytest

from common.syscalls import NUMBERS, Arch, Name, syscall
from gadget.ublk import abi, uring

STRUCTS: list[type[ctypes.Structure]] = [
    abi.ublksrv_ctrl_cmd,
    abi.ublksrv_ctrl_dev_info,
    abi.ublksrv_io_desc,
    abi.ublksrv_io_cmd,
    abi.ublk_param_basic,
    abi.ublk_param_discard,
    abi.ublk_param_devt,
    abi.ublk_param_zoned,
    abi.ublk_params,
    uring.io_uring_params,
    uring.io_sqring_offsets,
    uring.io_cqring_offsets,
    uring.io_uring_getevents_arg,
]
PREFIXES: list[tuple[str, type[IntEnum] | type[IntFlag]]] = [
    ("UBLK_U_CMD_", abi.CtrlOp),
    ("UBLK_U_IO_", abi.IoOp),
    ("UBLK_F_", abi.Feature),
    ("UBLK_S_DEV_", abi.DeviceState),
    ("UBLK_IO_OP_", abi.BlockOp),
    ("UBLK_IO_F_", abi.IoFlag),
    ("UBLK_ATTR_", abi.Attribute),
    ("UBLK_PARAM_TYPE_", abi.ParamType),
]
NEWER_THAN_6_12 = {
    "UBLK_F_USER_RECOVERY_FAIL_IO",
    "UBLK_F_UPDATE_SIZE",
    "UBLK_F_QUIESCE",
    "UBLK_S_DEV_FAIL_IO",
}
RENAMED_MEMBERS = {"pad": "min_wait_usec"}  # io_uring_getevents_arg, 6.12 headers


def compile_and_run(tmp_path: Path, includes: str, body: str) -> dict[str, int]:
    """What a C program with these lines of printf prints: name and number on each line."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to compare with the kernel's headers")
    source = tmp_path / "abi.c"
    source.write_text(f"{includes}\nint main(void)\n{{\n{body}\n\treturn 0;\n}}\n")
    preferred = os.environ.get("REPLUG_KERNEL_HEADERS")
    command = [compiler, *(["-I", preferred] if preferred else []), "-o", str(tmp_path / "abi"), str(source)]
    subprocess.run(command, check=True)
    output = subprocess.run([str(tmp_path / "abi")], check=True, capture_output=True, text=True).stdout
    return {name: int(number) for name, number in (line.split() for line in output.splitlines())}


def skip_unless_new_header(tmp_path: Path) -> None:
    found = compile_and_run(
        tmp_path,
        "#include <stdio.h>\n#if __has_include(<linux/ublk_cmd.h>)\n#include <linux/ublk_cmd.h>\n#endif",
        '#ifdef UBLK_U_CMD_DEL_DEV_ASYNC\n\tprintf("new 1\\n");\n#endif',
    )
    if not found:
        pytest.skip("linux/ublk_cmd.h is missing or older than 6.6: set REPLUG_KERNEL_HEADERS to compare with another")


def our_constants() -> dict[str, int]:
    constants = {prefix + item.name: item.value for prefix, kind in PREFIXES for item in kind if item.name}
    for module, pattern in ((abi, r"UBLK_[A-Z_]+"), (uring, r"IORING_(SETUP|OFF|SQ|ENTER|FEAT)_[A-Z0-9_]+")):
        constants |= {name: value for name, value in vars(module).items() if re.fullmatch(pattern, name)}
    return constants


def test_constants_are_the_headers(tmp_path: Path) -> None:
    skip_unless_new_header(tmp_path)
    ours = our_constants()
    lines = "".join(f'#ifdef {name}\n\tprintf("{name} %lld\\n", (long long)({name}));\n#endif\n' for name in ours)
    theirs = compile_and_run(
        tmp_path,
        "#include <errno.h>\n#include <stdio.h>\n#include <linux/ublk_cmd.h>\n#include <linux/io_uring.h>",
        lines,
    )
    assert len(ours) > 60
    assert {name for name in ours if name not in theirs and name.startswith("UBLK")} <= NEWER_THAN_6_12
    assert {name: ours[name] & 0xFFFFFFFF for name in theirs} == {
        name: value & 0xFFFFFFFF for name, value in theirs.items()
    }


def test_struct_sizes_and_offsets_are_the_headers(tmp_path: Path) -> None:
    skip_unless_new_header(tmp_path)
    lines, ours = "", {}
    for kind in STRUCTS:
        name = kind.__name__
        lines += f'\tprintf("{name} %zu\\n", sizeof(struct {name}));\n'
        ours[name] = ctypes.sizeof(kind)
        for member in (field[0] for field in kind._fields_):
            if name == "io_uring_getevents_arg" and member in RENAMED_MEMBERS:
                continue
            lines += f'\tprintf("{name}.{member} %zu\\n", offsetof(struct {name}, {member}));\n'
            ours[f"{name}.{member}"] = getattr(kind, member).offset
    includes = "#include <stdio.h>\n#include <stddef.h>\n#include <linux/ublk_cmd.h>\n#include <linux/io_uring.h>"
    assert compile_and_run(tmp_path, includes, lines) == ours


def test_packed_layouts_agree_with_the_structures() -> None:
    assert abi.IO_DESC.size == ctypes.sizeof(abi.ublksrv_io_desc) == 24
    assert abi.IO_SQE.size == 48 + ctypes.sizeof(abi.ublksrv_io_cmd) == 64
    assert abi.CTRL_SQE.size == 128
    assert ctypes.sizeof(abi.ublksrv_ctrl_cmd) == 32
    packed = abi.IO_SQE.pack(46, 0, 0, 3, 4, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0x1234, -5, 1 << 40)
    command = abi.ublksrv_io_cmd.from_buffer_copy(packed, 48)
    assert (command.q_id, command.tag, command.result, command.addr) == (0, 0x1234, -5, 1 << 40)
    control = abi.CTRL_SQE.pack(46, 0, 0, 3, 4, 0, 0, 0, 0, 5, 0, 0, 0, 7, 0xFFFF, 64, 1 << 40, 9, 12, 0, 0)
    decoded = abi.ublksrv_ctrl_cmd.from_buffer_copy(control, 48)
    assert (decoded.dev_id, decoded.queue_id, decoded.len, decoded.addr) == (7, 0xFFFF, 64, 1 << 40)
    assert (decoded.data[0], decoded.dev_path_len) == (9, 12)


@pytest.mark.parametrize(
    ("arch", "header"), [(Arch.AARCH64, "asm-generic/unistd.h"), (Arch(platform.machine()), "asm/unistd.h")]
)
def test_system_call_numbers_are_the_headers(tmp_path: Path, arch: Arch, header: str) -> None:
    names: list[Name] = list(NUMBERS[arch])
    lines = "".join(f'\tprintf("{name} %d\\n", __NR_{name});\n' for name in names)
    # fstat and friends of the generic table hide behind this; the numbers asked for do not depend on it.
    includes = f"#include <stdio.h>\n#define __ARCH_WANT_NEW_STAT\n#include <{header}>"
    assert compile_and_run(tmp_path, includes, lines) == NUMBERS[arch]


def test_every_architecture_knows_every_call() -> None:
    assert len({frozenset(table) for table in NUMBERS.values()}) == 1


def test_system_call_error_carries_its_errno() -> None:
    with pytest.raises(OSError, match="munlock: ") as caught:
        syscall("munlock", 0x1000, 4096)
    assert caught.value.errno == 12  # ENOMEM: nothing is mapped there
    assert syscall("munlock", 0, 0) == 0
