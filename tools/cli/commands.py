"""What each command does with its options: one function for each, which returns the exit status.

Every import that costs time happens in the function that needs it: `replug status` must answer at once.
"""

import argparse
from collections.abc import Callable
from typing import Any

from common.errors import Refused
from tools.cli.grammar import DELEGATED


def run(options: argparse.Namespace) -> int:
    """The exit status of what tools.cli.parser made of a command line."""
    return _RUN[options.command, getattr(options, "action", None)](options)


def _delegate(options: argparse.Namespace) -> int:
    if options.command == "vm":
        from tools.vm.__main__ import main

        return main(options.arguments)
    import importlib

    try:
        demo: Any = importlib.import_module("tools.demo")
    except ModuleNotFoundError as error:
        if error.name != "tools.demo":
            raise
        raise Refused("demo: not part of this installation: run it from the source tree") from None
    return int(demo.main(options.arguments))


def _gadget_up(options: argparse.Namespace) -> int:
    from tools.cli import gadget

    o = options
    wish = gadget.Wish(o.udc, o.serial, o.vid, o.pid, o.identity, o.queue_depth, o.max_io, o.metrics, o.ffs_dir)
    return gadget.up(options.instance, wish, options.adopt)


def _gadget_down(options: argparse.Namespace) -> int:
    from tools.cli import gadget

    return gadget.down(options.instance, options.force, options.if_running)


def _host_serve(options: argparse.Namespace) -> int:
    from tools.cli import host

    wishes = [
        host.Wish(o.instance, tuple(o.source), o.block_size, o.read_only, o.gadget, o.metrics)
        for o in getattr(options, "several", [options])
    ]
    return host.serve(wishes, host.How(options.background, options.adopt))


def _host_down(options: argparse.Namespace) -> int:
    from tools.cli import host

    return host.down([o.instance for o in getattr(options, "several", [options])], options.if_running)


def _host_add(options: argparse.Namespace) -> int:
    from tools.cli import exports

    return exports.add(options.instance, options.source, options.block_size, options.read_only)


def _host_remove(options: argparse.Namespace) -> int:
    from tools.cli import exports

    return exports.remove(options.instance, options.name)


def _host_eject(options: argparse.Namespace) -> int:
    from tools.cli import eject

    return eject.eject(options.instance, options.name)


def _export(options: argparse.Namespace) -> int:
    from tools.cli import export

    return export.decide(options.action, options.instance, options.export, getattr(options, "limit", None))


def _status(options: argparse.Namespace) -> int:
    from tools.cli import status

    if options.schema:
        return status.schema()
    if options.watch:
        return status.watch(options.side, options.instance, options.json, options.interval)
    return status.show(options.side, options.instance, options.json)


def _top(options: argparse.Namespace) -> int:
    if options.interval < 0.1:
        raise Refused(f"--interval {options.interval:g}s: below 100ms it would be the load that it shows")
    from pathlib import Path

    from tools.top.app import Picture, run

    if options.for_s is not None and options.record is None:
        raise Refused("--for: it is how long to record: name the picture with --record FILE.svg")
    picture = Picture(Path(options.record), options.for_s) if options.record else None
    return run(options.side, options.instance, options.interval, picture)


def _replace(options: argparse.Namespace) -> int:
    from tools.cli import roles

    return roles.replace(options.command, options.side, options.instance, options.role)


def _upgrade(options: argparse.Namespace) -> int:
    from tools.cli import upgrade

    return upgrade.upgrade(options.side, options.instance)


def _metrics(options: argparse.Namespace) -> int:
    from tools.cli import metrics

    return metrics.show(options.side, options.instance)


def _doctor(options: argparse.Namespace) -> int:
    from tools.doctor.show import show

    return show(options.side, options.json)


def _bench(options: argparse.Namespace) -> int:
    from tools.bench import main

    return main(options)


def _capture(options: argparse.Namespace) -> int:
    from common import limits
    from tools.capture.record import Wish, capture

    o, most = options, limits.CAPTURE_BYTES if options.max_size is None else options.max_size
    if most < limits.CAPTURE_MIN_BYTES:
        raise Refused(f"--max-size {most}: below {limits.CAPTURE_MIN_BYTES} bytes there would be nothing to see")
    return capture(Wish(o.file, o.bus, o.device, most, o.for_s))


def _config_check(options: argparse.Namespace) -> int:
    from tools.config.file import check

    return check(options.file)


def _completion(options: argparse.Namespace) -> int:
    from bus.runtime import Side
    from tools.cli import completion

    if options.exports:
        return completion.exports(Side(options.exports), options.instance)
    return completion.roles(options.instance) if options.roles else completion.show()


def _log(options: argparse.Namespace) -> int:
    from tools.cli import logs

    if options.level:
        return logs.set_level(options.side, options.instance, options.role, options.level)
    return logs.log(options.side, options.instance, options.role, options.format, options.follow)


def _trace(options: argparse.Namespace) -> int:
    from tools.cli import logs

    o = options
    return logs.trace(o.side, o.instance, o.role, o.io, o.for_s, o.format)


Run = Callable[[argparse.Namespace], int]
_RUN: dict[tuple[str, str | None], Run] = {
    ("gadget", "up"): _gadget_up,
    ("gadget", "down"): _gadget_down,
    ("host", "serve"): _host_serve,
    ("host", "add"): _host_add,
    ("host", "remove"): _host_remove,
    ("host", "eject"): _host_eject,
    ("host", "down"): _host_down,
    **{("export", action): _export for action in ("fail", "limit", "resume")},
    ("status", None): _status,
    ("top", None): _top,
    **{(how, None): _replace for how in ("restart", "drain", "kill")},
    ("upgrade", None): _upgrade,
    ("log", None): _log,
    ("trace", None): _trace,
    ("metrics", None): _metrics,
    ("doctor", None): _doctor,
    ("bench", None): _bench,
    ("capture", None): _capture,
    ("config", "check"): _config_check,
    ("completion", None): _completion,
    **{(command, None): _delegate for command in DELEGATED},
}
