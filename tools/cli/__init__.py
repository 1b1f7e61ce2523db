"""The `replug` command: reads arguments, does or asks for what they say, prints one line for each error.

Every import that costs time happens in the sub-command that needs it: `replug status` must answer at once.
"""

import sys
from collections.abc import Sequence

from common.errors import Exit, ReplugError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status (0 done, 1 fault, 2 bad input, 3 busy, 4 lacking, 5 down)."""
    from tools.cli.commands import run
    from tools.cli.parser import parse

    words = list(sys.argv[1:] if argv is None else argv)
    try:
        options = parse(words)
        return run(options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # whoever read us has had enough
        return int(Exit.DONE)
    except (ReplugError, OSError) as error:
        if "--debug" in words:
            raise
        print(f"replug: {one_line(error)}", file=sys.stderr)
        return int(getattr(error, "status", Exit.FAULT))


def one_line(error: Exception) -> str:
    """What an error says to people."""
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{error.strerror}"
    return str(error).replace("\n", " ")
