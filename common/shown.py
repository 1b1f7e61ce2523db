"""Other people's words in a line of ours: printable, one line, not without end.

What a web server, a device or a file says goes into messages that a terminal shows: it must not move the cursor there.
"""

from typing import Final

LONGEST: Final = 400  # characters; several lines of a terminal


def shown(text: str, longest: int = LONGEST) -> str:
    """`text` on one line, with `?` for what cannot be printed."""
    line = "".join(letter if letter.isprintable() else "?" for letter in text.strip())
    return line if len(line) <= longest else f"{line[:longest]}..."
