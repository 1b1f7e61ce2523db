"""How what comes from outside is hurt: bytes cut, flipped, doubled and inserted; values replaced by any other.

Shared by the fuzzers of this folder. More examples: `.venv/bin/python -m pytest tests/fuzz --hypothesis-profile=long`.
"""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

settings.register_profile("long", max_examples=20_000, deadline=None)


@st.composite
def hurt(draw: st.DrawFn, good: bytes) -> bytes:
    """`good` after one to four accidents."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 4)):
            case 0:
                del data[at:]
            case 1 if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case 2:
                data[at:at] = data[: draw(st.integers(0, len(data)))]
            case 3:
                data[at:at] = draw(st.binary(max_size=8))
            case _:
                data[at : at + 4] = draw(st.sampled_from([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"]))
    return bytes(data)


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything in it, itself included."""
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


def put(value: Any, path: tuple[Any, ...], other: Any) -> Any:
    if not path:
        return other
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(value[path[0]], path[1:], other)
    return copy
