"""A configuration file: the table [gadget] holds options of `gadget up`, [host] those of `host serve`.

A table in one of these, [host.board1], is an instance of that name: what it does not say its parent says for it.

Keys, types and limits are the parser's own: an option is a key by the same name, without the dashes. Used by the
parser (--config) and by `replug config check`. Every fault is told with file, line and key.
"""

import argparse
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from bus.runtime import check_name
from common import limits
from common.errors import Exit, Refused
from common.shown import shown
from tools.cli.grammar import grammar, leaf
from tools.cli.values import queue_depth, serial, source
from tools.config.lines import line_of

COMMANDS = {"gadget": ("gadget", "up"), "host": ("host", "serve")}
_TEXTS = (None, serial, source)  # of which a number is not one
_FAULT_CHARACTERS = 1500  # of a line about a fault, the names of all keys included
_NOT_KEYS = frozenset({"help", "debug", "config", "instance"})  # an instance is named where it is started


def options_of(side: str) -> dict[str, argparse.Action]:
    """Key: the option it stands for."""
    actions = leaf(grammar(), *COMMANDS[side])._actions
    return {a.dest.replace("_", "-"): a for a in actions if a.dest not in _NOT_KEYS}


def defaults(path: str, side: str, instance: str = "default") -> dict[str, Any]:
    """What the file says for an instance, by the parser's names. Refused with the first fault of the whole file."""
    names = instances(path, side)
    if names and instance not in names:
        raise Refused(f"{path}: no table [{side}.{instance}]: there are {', '.join(names)}")
    values = read(path)[0]
    return values[side] | values.get(f"{side}.{instance}", {})


def instances(path: str, side: str) -> list[str]:
    """Names of the instances of a side, in the order of the file; none if it has no tables for them."""
    values, faults = read(path)
    if faults:
        raise Refused(faults[0])
    return [table.partition(".")[2] for table in values if table.startswith(f"{side}.")]


def check(paths: list[str]) -> int:
    """Tell every fault of every file."""
    found = [fault for path in paths for fault in read(path)[1]]
    for fault in found:
        print(f"replug: {fault}", file=sys.stderr)
    if not found:
        print(f"replug: {', '.join(paths)}: no fault", file=sys.stderr)
    return Exit.BAD_INPUT if found else Exit.DONE


def read(path: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Values for each side, and faults as lines `FILE:LINE: KEY: what: what to do`."""
    values, faults = _read(path)
    return values, [shown(fault, _FAULT_CHARACTERS) for fault in faults]


def _read(path: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    values: dict[str, dict[str, Any]] = {side: {} for side in COMMANDS}
    try:
        with Path(path).open("rb") as file:
            content = file.read(limits.CONFIG_BYTES + 1)
        if len(content) > limits.CONFIG_BYTES:
            return values, [f"{path}: more than {limits.CONFIG_BYTES} bytes: is it a configuration file?"]
        text = content.decode()
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return values, [_not_toml(path, text, str(error))]
    except UnicodeDecodeError as error:
        return values, [f"{path}: not UTF-8 at byte {error.start}: TOML is UTF-8"]
    except (RecursionError, ValueError) as error:  # tomllib's, of a nest without end and of a number of 4301 digits
        return values, [f"{path}: not TOML that can be read: {error}"]
    faults = []
    for side, table in tables.items():
        at = _place(path, text, (side,))
        if side not in COMMANDS:
            faults.append(f"{at}: {side}: not known here: the tables are [gadget] and [host]")
        elif not isinstance(table, dict):
            faults.append(f"{at}: {side}: not a table: write it as [{side}]")
        else:
            faults += _read_side(path, text, side, table, values)
    return values, faults


def _not_toml(path: str, text: str, error: str) -> str:
    """tomllib's own words, with the line where every other fault has it."""
    place = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", error)
    if place is None:
        return f"{path}: not TOML: {error}"
    what = error[: place.start()]
    if place[1] is None:
        return f"{path}:{text.rstrip().count(chr(10)) + 1}: not TOML: {what} at the end of the file"
    return f"{path}:{place[1]}: not TOML: {what} at column {place[2]}"


def _read_side(path: str, text: str, side: str, table: dict[str, Any], values: dict[str, dict[str, Any]]) -> list[str]:
    known = options_of(side)
    own = {key: value for key, value in table.items() if key in known or not isinstance(value, dict)}
    faults = _read_table(path, text, (side,), own, values[side])
    for name, instance in table.items():
        if name not in own:
            try:
                check_name(name, "instance name")
            except Refused as error:
                faults.append(f"{_place(path, text, (side, name))}: {error}")
            faults += _read_table(path, text, (side, name), instance, values.setdefault(f"{side}.{name}", {}))
    return faults


def _read_table(
    path: str, text: str, keys: tuple[str, ...], table: dict[str, Any], values: dict[str, Any]
) -> list[str]:
    known, faults = options_of(keys[0]), []
    for key, value in table.items():
        at = f"{_place(path, text, (*keys, key))}: {key}"
        if key not in known:
            faults.append(f"{at}: not an option of {' '.join(COMMANDS[keys[0]])}: the keys are {', '.join(known)}")
            continue
        try:
            values[known[key].dest] = _value(known[key], value)
        except (ValueError, argparse.ArgumentTypeError) as error:
            faults.append(f"{at}: {error}")
    return faults


def _place(path: str, text: str, keys: tuple[str, ...]) -> str:
    line = line_of(text, keys)
    return path if line is None else f"{path}:{line}"


def _value(action: argparse.Action, value: Any) -> Any:
    """As the command line would have it. Raises ValueError with `what: what to do`."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError(f"{value!r} is not true or false: write it without quotes")
        return value
    if action.nargs in ("*", "+"):
        items = value if isinstance(value, list) else [value]
        return [_one(action, item) for item in items]
    return _one(action, value)


def _one(action: argparse.Action, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{value!r} is not a text or a whole number")
    if action.type in (int, queue_depth) and not isinstance(value, int):
        raise ValueError(f"{value!r} is not a whole number: write it without quotes")
    if action.type in _TEXTS and not isinstance(value, str):
        raise ValueError(f"{value!r} is not a text: put it in quotes")
    if action.type is None:
        result: Any = value
    else:
        assert callable(action.type)
        result = action.type(str(value))
    if action.choices is not None and result not in action.choices:
        raise ValueError(f"{value!r} is none of {', '.join(map(str, action.choices))}")
    return result
