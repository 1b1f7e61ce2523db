"""`python -m tools.docs`: write the documents that are made from the code; `... build [DIR]`: all of them as HTML."""

import sys
from pathlib import Path

from tools.cli.document import reference
from tools.docs.messages import every_message
from tools.docs.pages import man, markdown
from tools.docs.sources import sources

ROOT = Path(__file__).parents[2]
PAGES = {
    "docs/reference/commands.md": markdown,
    "docs/reference/every-message.md": every_message,
    "docs/reference/sources.md": sources,
    "docs/status-json.md": reference,
    "packaging/replug.1": man,
}


def main(argv: list[str]) -> int:
    if argv[:1] == ["build"]:
        from tools.docs.build import show  # its parser is one of the tools of the project, not of an installation

        stale = [name for name, make in PAGES.items() if (ROOT / name).read_text() != make()]
        return show(ROOT, Path(argv[1]) if argv[1:] else ROOT / "dist/docs", stale)
    for name, make in PAGES.items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(make())
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
