"""Puts a mutant into a process that has imported its module: the code of functions is exchanged, the table changed.

In place, so that everybody who has the module's names has the mutant, and a forked child needs to import nothing.
"""

from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType

from tests.mutants.generate import TABLE, Mutant


def install(module: ModuleType, mutant: Mutant) -> None:
    """Raises LookupError if nothing of the module would be another than before."""
    mutant.apply(getattr(module, TABLE, {}))
    if mutant.entry:
        return
    new = {code.co_qualname: code for code in _codes(compile(mutant.source, str(module.__file__), "exec"))}
    changed = False
    for function in _functions(module):
        code = new.get(function.__qualname__)
        if code is not None and not _same(code, function.__code__):
            function.__code__ = code
            changed = True
    if not changed:
        raise LookupError(f"{module.__name__}: {mutant.name}: is in no function")


def _codes(code: CodeType) -> Iterator[CodeType]:
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield const
            yield from _codes(const)


def _same(one: CodeType, other: CodeType) -> bool:
    """Do they do the same? Line numbers, and so code objects, differ: the mutant was printed anew."""
    if one.co_code != other.co_code or one.co_names != other.co_names or len(one.co_consts) != len(other.co_consts):
        return False
    return all(
        _same(a, b) if isinstance(a, CodeType) and isinstance(b, CodeType) else a == b
        for a, b in zip(one.co_consts, other.co_consts, strict=True)
    )


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    for value in list(vars(module).values()):
        if getattr(value, "__module__", None) != module.__name__:
            continue
        members = list(vars(value).values()) if isinstance(value, type) else [value]
        for member in members:
            if isinstance(member, property):
                member = member.fget
            elif isinstance(member, staticmethod | classmethod):
                member = member.__func__
            if isinstance(member, FunctionType):
                yield member
