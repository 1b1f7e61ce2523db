"""The command line of the guest: `python -m tools.vm run|shell|pytest|count|setup`, and `replug vm ...`.

Only reads arguments and prints; the work is in the other files of this package.
"""

from __future__ import annotations

import argparse
import compileall
import os
import signal
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from tools.vm import counts, parallel
from tools.vm.accel import Accel, choose
from tools.vm.arch import Arch
from tools.vm.foreign import ensure_root
from tools.vm.guest import Ended, Machine, Result, Sink, run
from tools.vm.images import Lacking, cache_directory, ensure_image
from tools.vm.initrd import Job, Speed
from tools.vm.kernels import Kernel

ROOT = Path(__file__).parents[2]
PACKAGES = ("common", "bus", "gadget", "host", "tools", "tests")
TAIL_LINES = 60
RUN_LIMIT_S = 300.0
PYTEST_LIMIT_S = 1900.0
SHELL_LIMIT_S = 86400.0
SHELL = ("sh", "-c", 'exec setsid -cw "$@" </dev/hvc0 >/dev/hvc0 2>&1', "sh")  # and what to run on the terminal


def main(argv: list[str]) -> int:
    """Run one sub-command; returns the exit status. 124: time limit, 125: guest died, 4: something lacks."""
    options, rest = parse(argv)
    # `timeout` and CI end us by SIGTERM: unwind, so that guests and temporary directories go with us
    before = signal.signal(signal.SIGTERM, _unwind)
    try:
        return ACTIONS[options.action](options, rest)
    except Lacking as lacking:
        say(str(lacking))
        return 4
    except BrokenPipeError:
        return 141  # whoever read our output has gone, as under SIGPIPE
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def say(text: str) -> None:
    """One line for people, beside whatever the guest writes."""
    print(f"replug: {text}", file=sys.stderr, flush=True)


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options before `--`; the command, or pytest's arguments, behind it. Exits with 2 on wrong use."""
    cut = argv.index("--") if "--" in argv else len(argv)
    words = parser()
    options, rest = words.parse_args(argv[:cut]), argv[cut + 1 :]
    if options.action == "run" and not rest:
        words.error("no command: replug vm run [OPTIONS] -- COMMAND...")
    if options.action == "pytest" and options.jobs < 1:
        words.error("--jobs must be at least 1")
    return options, rest


def parser() -> argparse.ArgumentParser:
    """What stands before `--`; also what the reference is made from."""
    found = argparse.ArgumentParser(prog="replug vm", description="a guest with a real kernel")
    actions = found.add_subparsers(dest="action", required=True)
    one = actions.add_parser("run", help="one command, behind --, in a guest")
    _machine_options(one, RUN_LIMIT_S)
    one.add_argument("--arch", choices=[arch.value for arch in Arch], default=Arch.here().value,
                     help="arm64: a root of Debian packages of its own, with replug in it")  # fmt: skip
    one.add_argument("--share", action="append", default=[], metavar="DIR", help="writable, at the same path")
    one.add_argument("--console", type=Path, metavar="FILE", help="write the kernel's console there")
    one.add_argument("--dmesg", type=Path, metavar="FILE", help="write the kernel's log there at the end")
    shell = actions.add_parser(
        "shell", help="a shell, or the command behind --, in a guest on this terminal; what it writes is lost"
    )
    _machine_options(shell, SHELL_LIMIT_S)
    shell.set_defaults(arch=Arch.here().value, share=[], dmesg=None, console=None)
    for each in (one, shell):
        each.add_argument("--visible", action="append", default=[], metavar="DIR", help="under /tmp or /run: show it")
        kernels, text = [kernel.value for kernel in Kernel], "newer: the newest of trixie-backports (default: 6.12)"
        each.add_argument("--kernel", choices=kernels, default=Kernel.DEBIAN_12.value, help=text)
    many = actions.add_parser("pytest", help="a pytest, with the arguments behind --, in guests")
    _machine_options(many, PYTEST_LIMIT_S)
    many.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="guests")
    many.add_argument("--results", type=Path, metavar="DIR", help="keep junit files and consoles there")
    many.add_argument("--direct", action="store_true", default=os.environ.get("REPLUG_E2E_DIRECT") == "1",
                      help="on this machine itself, on dummy controllers only")  # fmt: skip
    count = actions.add_parser("count", help="counts over junit files and directories of them, and what failed")
    count.add_argument("junit", nargs="+", type=Path, metavar="FILE", help="of junit, or a directory of them")
    setup = actions.add_parser("setup", help="fetch the kernel and probe this machine")
    setup.add_argument("--refresh", action="store_true", help="take the newest kernel even if one is there")
    return found


def _machine_options(parser: argparse.ArgumentParser, limit_s: float) -> None:
    limit = f"default {limit_s:.0f}"
    parser.add_argument("--timeout", type=float, default=limit_s, metavar="SECONDS", help=limit)
    parser.add_argument("--memory", default="1G", metavar="SIZE", help="of the guest (default: 1G)")
    parser.add_argument("--udcs", type=int, choices=range(33), default=1, metavar="N", help="controllers")
    speeds, text = [speed.value for speed in Speed], "of the dummy USB (default: high)"
    parser.add_argument("--speed", choices=speeds, default=Speed.HIGH.value, help=text)
    parser.add_argument("--module", action="append", default=[], metavar="NAME", help="load it too")
    parser.add_argument("--env", action="append", default=[], type=_pair, metavar="K=V", help="for the command")
    parser.add_argument("--append", default="", metavar="WORDS", help="for the kernel's command line (slub_debug=FZPU)")
    accels, text = [accel.value for accel in Accel], "kvm is used where it really works, which is tried (default: auto)"
    parser.add_argument("--accel", choices=accels, default=Accel.AUTO.value, help=text)


def _pair(text: str) -> str:
    if "=" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not K=V")
    return text


def _setup(options: argparse.Namespace, _rest: list[str]) -> int:
    image = ensure_image(cache_directory(), say, options.refresh, Arch.here())
    choose(Accel.AUTO, cache_directory(), image, say)
    print(image.directory)
    return 0


def _shell(options: argparse.Namespace, rest: list[str]) -> int:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        say("shell: stdin and stdout are not a terminal: use 'replug vm run -- COMMAND...'")
        return 2
    before = termios.tcgetattr(0)
    options.env = [f"TERM={os.environ.get('TERM', 'dumb')}", *options.env]
    try:
        return _run(options, [*SHELL, *(rest or ("bash", "-i"))], terminal=True)
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)  # QEMU made it raw and is killed at the end


def _run(options: argparse.Namespace, command: list[str], terminal: bool = False) -> int:
    arch = Arch(options.arch)
    image = ensure_image(cache_directory(), say, arch=arch, kernel=Kernel(options.kernel))
    accel = choose(Accel(options.accel), cache_directory(), image, say)
    root = "/"
    if arch.foreign:
        root = str(ensure_root(cache_directory(), arch, ROOT / "requirements.lock", say))
        # our modules, beside that root's own libraries; what is compiled there stays there
        options.share.append(str(ROOT))
        options.env += [f"PYTHONPATH={ROOT}", "PYTHONDONTWRITEBYTECODE=1"]
    _precompile()
    try:
        image.load_order(options.module)
    except KeyError as unknown:
        choice = ", ".join(sorted(image.needs))
        say(f"--module {unknown.args[0]}: not in the guest's set: choose from {choice}")
        return 2
    for share in options.share:
        Path(share).mkdir(parents=True, exist_ok=True)
    machine = Machine(accel, options.memory, terminal, root, options.append)
    result = run(image, _job(options, command), machine, options.timeout, _to(1), _to(2))
    if options.console:
        options.console.write_text(result.console)
    if options.dmesg:
        options.dmesg.write_text(result.dmesg)
    if result.ended is not Ended.COMMAND:
        _explain(result, command)
    return result.exit_code


def _job(options: argparse.Namespace, command: list[str]) -> Job:
    kept = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
    environment = {name: os.environ.get(name, default) for name, default in kept.items()}
    environment |= {"LANG": "C.UTF-8", **dict(pair.split("=", 1) for pair in options.env)}
    seen = (os.getcwd(), sys.prefix, sys.base_prefix, str(ROOT))
    return Job(
        command=command,
        cwd="/" if Arch(options.arch).foreign else os.getcwd(),
        environment=environment,
        udcs=options.udcs,
        speed=Speed(options.speed),
        modules=options.module,
        visible=[] if Arch(options.arch).foreign else [*seen, *map(os.path.abspath, options.visible)],
        shares=[str(Path(share).absolute()) for share in options.share],
        dmesg=options.dmesg is not None,
    )


def _precompile() -> None:
    """Compile our modules here, where it is ten times faster; a read-only tree just stays slow."""
    for package in PACKAGES:
        if (ROOT / package).is_dir() and os.access(ROOT / package, os.W_OK):
            compileall.compile_dir(ROOT / package, quiet=2)


def _pytest(options: argparse.Namespace, arguments: list[str]) -> int:
    if options.direct:
        total = parallel.directly(arguments, ROOT)
    else:
        cache = cache_directory()
        # once, before the guests start side by side: fetching and probing
        choose(Accel(options.accel), cache, ensure_image(cache, say, arch=Arch.here()), say)
        total = parallel.in_guests(arguments, options.jobs, options.results, _again(options), cache, ROOT)
    print(total)
    return total.exit_code


def _count(options: argparse.Namespace, _rest: list[str]) -> int:
    for line in counts.failures(options.junit):
        print(f"FAILED {line}")
    total = counts.count(options.junit)
    print(total)
    return total.exit_code


def _again(options: argparse.Namespace) -> list[str]:
    """The machine's options as words, for each guest's own `vm run`."""
    words = ["--timeout", str(options.timeout), "--memory", options.memory, "--udcs", str(options.udcs)]
    words += ["--speed", options.speed, "--accel", options.accel, f"--append={options.append}"]
    words += [word for name in options.module for word in ("--module", name)]
    return words + [word for pair in options.env for word in ("--env", pair)]


ACTIONS: dict[str, Callable[[argparse.Namespace, list[str]], int]] = {
    "run": _run,
    "shell": _shell,
    "pytest": _pytest,
    "count": _count,
    "setup": _setup,
}


def _unwind(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _to(fd: int) -> Sink:
    def write(data: bytes) -> None:
        while data:
            data = data[os.write(fd, data) :]

    return write


def _explain(result: Result, command: list[str]) -> None:
    tail = "\n".join(result.console.splitlines()[-TAIL_LINES:])
    print(f"--- the guest's console, last {TAIL_LINES} lines:\n{tail}\n---", file=sys.stderr)
    why = "kernel panic" if "Kernel panic" in result.console else result.ended.value
    boot = "before its first command" if result.boot_s is None else f"after {result.total_s:.0f} s"
    say(f"{why}, {boot}: {' '.join(command)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
