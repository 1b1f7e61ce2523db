"""The statements of a source file, and which of them the lines that ran belong to. Pure."""

import ast
from collections.abc import Iterator


def spans(source: str) -> list[range]:
    """The lines of each statement; of a compound one its head's, decorators included. Docstrings and `...` are none."""
    return sorted(_spans(ast.parse(source)), key=lambda span: (span.start, span.stop))


def _spans(tree: ast.AST) -> Iterator[range]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.stmt) or isinstance(node, ast.Global | ast.Nonlocal):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        decorators = getattr(node, "decorator_list", [])
        first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
        inner = getattr(node, "body", None) or getattr(node, "cases", None)
        last = node.end_lineno or node.lineno
        if isinstance(inner, list):
            head = inner[0].lineno if isinstance(inner[0], ast.stmt) else inner[0].pattern.lineno
            last = max(node.lineno, head - 1)
        yield range(first, last + 1)


def missed(source: str, seen: bytes) -> tuple[int, list[int]]:
    """How many statements there are, and the first line of each that did not run."""
    ran = {number for number, count in enumerate(seen) if count}
    found = spans(source)
    return len(found), [span.start for span in found if not ran.intersection(span)]
