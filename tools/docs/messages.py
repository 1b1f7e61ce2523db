"""Every message with which a command refuses something, found in the code: the page docs/reference/every-message.md.

A message is what Refused, Lacking or ArgumentTypeError is made with. A name in capitals stands for what is put in its
place; what a variable of the same function holds is put in if it is a text. Who passes on another's words has none.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.errors import Exit

ROOT = Path(__file__).parents[2]
PACKAGES = ("common", "bus", "gadget", "host", "tools")
RAISED = ("Refused", "Lacking", "ArgumentTypeError")
_INTRODUCTION = """\
# Every message

Made from the code by `python -m tools.docs`. [Messages](messages.md) tells what to do about those that people meet;
here is all that a command may refuse with. A word in capitals stands for what is put in its place. The number is the
[exit status](commands.md#exit-statuses).
"""


@dataclass(frozen=True)
class Message:
    module: str
    line: int
    text: str
    status: int


def messages() -> list[Message]:
    """In the order of the code."""
    files = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return [message for path in files for message in in_module(path.read_text(), str(path.relative_to(ROOT)))]


def in_module(code: str, module: str) -> Iterator[Message]:
    """A site without words of its own passes on another's, and is left out."""
    for function, call in _sites(ast.parse(code)):
        text = _text(call.args[0], _texts(function)) if call.args else ""
        if any(c.islower() for c in text) or ": " in text:
            yield Message(module, call.lineno, " ".join(text.split()), _status(call))


def _sites(tree: ast.Module) -> Iterator[tuple[ast.AST, ast.Call]]:
    """Each call, with the innermost function about it."""
    todo: list[tuple[ast.AST, ast.AST]] = [(tree, tree)]
    while todo:
        function, node = todo.pop()
        if isinstance(node, ast.Call) and _name(node.func) in RAISED:
            yield function, node
        inner = node if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) else function
        todo += [(inner, child) for child in reversed(list(ast.iter_child_nodes(node)))]


def _name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _texts(function: ast.AST) -> dict[str, ast.expr]:
    """Variables of it that hold a text from one place."""
    found: dict[str, list[ast.expr]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    found.setdefault(target.id, []).append(node.value)
    return {name: values[0] for name, values in found.items() if len(values) == 1 and _is_text(values[0])}


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _text(node: ast.expr, texts: dict[str, ast.expr], depth: int = 0) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(_text(part, texts, depth) for part in parts)
        case ast.FormattedValue(value=value):
            return _text(value, texts, depth)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text(left, texts, depth) + _text(right, texts, depth)
        case ast.IfExp(body=body):
            return _text(body, texts, depth)
        case ast.Name(id=name) if name in texts and depth < 4:
            return _text(texts[name], texts, depth + 1)
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name.strip("_").upper()
        case ast.Call(func=function, args=[first, *_]) if _name(function) in ("str", "repr", "quote", "show_size"):
            return _text(first, texts, depth)
        case ast.Call(func=ast.Attribute(value=table, attr="get")):
            return _text(table, {}, depth)
        case ast.Call(func=function):
            return _name(function).strip("_").upper()
        case ast.Subscript(value=value):
            return _text(value, texts, depth)
    return "..."


def _status(call: ast.Call) -> int:
    if _name(call.func) == "Lacking":
        return Exit.LACKING
    names = [_name(arg) for arg in [*call.args[1:], *(word.value for word in call.keywords)]]
    return next((int(Exit[name]) for name in names if name in Exit.__members__), int(Exit.BAD_INPUT))


def every_message() -> str:
    """The page, as Markdown."""
    lines, module = [_INTRODUCTION], ""
    for message in messages():
        if message.module != module:
            module = message.module
            lines += [f"{'' if len(lines) == 1 else chr(10)}## `{module}`\n", "| message | status |", "|---|---|"]
        lines.append(f"| {_code(message.text)} | {message.status} |")
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    text = text.replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"
