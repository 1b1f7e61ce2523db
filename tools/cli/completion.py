"""`replug completion`: a bash script made from the parser, so that it never knows other words than the command does.

Names of roles and exports are asked of the runtime directories each time; nothing runs then that costs time.
"""

import argparse
import shlex
from collections.abc import Iterator

from bus.runtime import Runtime, Side, living, recorded_roles
from common.errors import Exit
from tools.cli.grammar import grammar, subcommands

_SCRIPT = """\
# bash completion of replug; made by 'replug completion'
_replug() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} path= words= i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "$path/${{COMP_WORDS[i]}}" in
            {paths}) path=$path/${{COMP_WORDS[i]}} ;;
        esac
    done
    case "$path:$prev" in
{values}
    esac
    case "$path" in
{words}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
    case "$path" in
        {files}) [[ $cur == -* ]] || COMPREPLY+=($(compgen -f -- "$cur")) ;;
    esac
}}
complete -o filenames -F _replug replug
"""
_FILES = ("SOURCE", "FILE", "F")


def show() -> int:
    print(script(grammar()), end="")
    return Exit.DONE


def roles(instance: str) -> int:
    """Names of the living roles of all sides of an instance."""
    for side in Side:
        runtime = Runtime(side, instance)
        for role in recorded_roles(runtime):
            if role != "twin" and living(runtime, role) is not None:
                print(role)
    return Exit.DONE


def exports(side: Side, instance: str) -> int:
    """Names of the exports of a side: what the host serves, and what the gadget's state file remembers."""
    runtime = Runtime(side, instance)
    if side is Side.HOST:
        served = [role for role in recorded_roles(runtime) if living(runtime, role) is not None]
        names = [role.partition(".")[2] for role in served if role.startswith("source.")]
    else:
        from gadget.session.state import load

        state = load(runtime.state_path(), instance)
        names = [device.label or device.name for device in state.devices] if state is not None else []
    print(*names, sep="\n")
    return Exit.DONE


def script(parser: argparse.ArgumentParser) -> str:
    paths: list[str] = []
    values: list[str] = []
    words: list[str] = []
    files: list[str] = []
    for path, command in _walk(parser, ""):
        if path:
            paths.append(path)
        options = [option for action in command._actions for option in action.option_strings if option.startswith("--")]
        names = [*subcommands(command), *options]
        asked = " $(replug completion --roles 2>/dev/null)" if _takes(command, ("ROLE",)) else ""
        if _takes(command, ("NAME",)):  # of an export: parked ones are the gadget's, what is served is the host's
            side = Side.HOST if path.startswith("/host/") else Side.GADGET
            asked = f" $(replug completion --exports {side} 2>/dev/null)"
        words.append(f'        "{path}") words="{" ".join(names)}{asked}" ;;')
        if _takes(command, _FILES):
            files.append(path)
        values += _values(path, command)
    return _SCRIPT.format(
        paths="|".join(paths), values="\n".join(values), words="\n".join(words), files="|".join(files) or '"-"'
    )


def _walk(parser: argparse.ArgumentParser, path: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield path, parser
    for name, command in subcommands(parser).items():
        yield from _walk(command, f"{path}/{name}")


def _takes(command: argparse.ArgumentParser, metavars: tuple[str, ...]) -> bool:
    return any(not action.option_strings and action.metavar in metavars for action in command._actions)


def _values(path: str, command: argparse.ArgumentParser) -> Iterator[str]:
    """What may follow an option that takes a value."""
    for action in command._actions:
        if action.option_strings and action.nargs != 0:
            choices = " ".join(shlex.quote(str(choice)) for choice in action.choices or ())
            kind = "-f" if action.metavar in _FILES else f'-W "{choices}"'
            patterns = "|".join(f'"{path}:{option}"' for option in action.option_strings)
            yield f'        {patterns}) COMPREPLY=($(compgen {kind} -- "$cur")); return ;;'
