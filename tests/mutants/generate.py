"""The mutants of one module: each comparison turned, each entry of a table dropped, led elsewhere or robbed of a step.

A mutant's name says where it is and what it does, without line numbers, so that the reviewed list outlives an edit
elsewhere. Pure: source text in, source text out.
"""

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

_TURNED: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
TABLE = "TABLE"


@dataclass(frozen=True, slots=True)
class Mutant:
    """`source` in the place of the module's own; then `entry` of its table, if one is named, gets `value` or goes."""

    name: str
    source: str
    entry: tuple[str, ...] = ()  # names of the members of its key
    drop: bool = False
    state: str = ""  # the other state it leads to
    without: int = -1  # the step that is taken out

    def apply(self, table: dict[Any, Any]) -> None:
        """Change the table of the module just executed."""
        if not self.entry:
            return
        key = next(key for key in table if _names(key) == self.entry)
        if self.drop:
            del table[key]
            return
        state, steps = table[key]
        if self.state:
            state = type(state)[self.state]
        if self.without >= 0:
            steps = steps[: self.without] + steps[self.without + 1 :]
        table[key] = (state, steps)


def of_source(source: str) -> list[Mutant]:
    """Of its comparisons, `and`, `or` and `not`."""
    found: list[Mutant] = []
    tree = ast.parse(source)
    for path, node, function in _walk(tree):
        for changed in _changed(node):
            mutated = copy.deepcopy(tree)
            _put(mutated, path, changed)
            name = f"{function}: {_line(node)} -> {_line(changed)}"
            found.append(Mutant(name, ast.unparse(ast.fix_missing_locations(mutated))))
    return _numbered(found)


def of_table(table: dict[Any, Any], source: str) -> list[Mutant]:
    """Of a table from (state, event) to (state, steps)."""
    found: list[Mutant] = []
    for key, value in table.items():
        name = f"{TABLE}[{', '.join(_names(key))}]"
        found.append(Mutant(f"{name} dropped", source, _names(key), drop=True))
        if not isinstance(value, tuple):
            continue
        state, steps = value
        states = [*type(state).__members__.values()]
        other = states[(states.index(state) + 1) % len(states)]
        found.append(Mutant(f"{name} to {other.name}", source, _names(key), state=other.name))
        for at, step in enumerate(steps):
            found.append(Mutant(f"{name} without {step.name}", source, _names(key), without=at))
    return _numbered(found)


def _names(key: Any) -> tuple[str, ...]:
    return tuple(member.name for member in (key if isinstance(key, tuple) else (key,)))


def _numbered(mutants: list[Mutant]) -> list[Mutant]:
    """The second one of a name has a number."""
    seen: Counter[str] = Counter()
    numbered = []
    for mutant in mutants:
        seen[mutant.name] += 1
        more = f" ({seen[mutant.name]})" if seen[mutant.name] > 1 else ""
        numbered.append(replace(mutant, name=mutant.name + more))
    return numbered


Path = tuple[tuple[str, int | None], ...]


def _walk(node: ast.AST, path: Path = (), function: str = "module") -> Iterator[tuple[Path, ast.AST, str]]:
    """Every node, the way to it, and the function it is in."""
    yield path, node, function
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        function = node.name if function == "module" else f"{function}.{node.name}"
    for field, value in ast.iter_fields(node):
        if isinstance(value, ast.AST):
            yield from _walk(value, (*path, (field, None)), function)
        elif isinstance(value, list):
            for at, inner in enumerate(value):
                if isinstance(inner, ast.AST):
                    yield from _walk(inner, (*path, (field, at)), function)


def _put(tree: ast.AST, path: Path, node: ast.AST) -> None:
    at: Any = tree
    for field, index in path[:-1]:
        at = getattr(at, field) if index is None else getattr(at, field)[index]
    field, index = path[-1]
    if index is None:
        setattr(at, field, node)
    else:
        getattr(at, field)[index] = node


def _changed(node: ast.AST) -> Iterator[ast.expr]:
    if isinstance(node, ast.Compare):
        for at, op in enumerate(node.ops):
            for other in _TURNED[type(op)]:
                yield ast.Compare(node.left, [*node.ops[:at], other(), *node.ops[at + 1 :]], node.comparators)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand


def _line(node: ast.AST) -> str:
    return " ".join(ast.unparse(node).split())
