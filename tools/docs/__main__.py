"""`python -m tools.docs`: write the documents that are made from the code; `... build [DIR]`: all of them as HTML."""

import sys
from pathlib import Path

from tools.cli.document import reference
from tools.docs.pages import man, markdown

ROOT = Path(__file__).parents[2]
PAGES = {"docs/reference/commands.md": markdown, "docs/status-json.md": reference, "packaging/replug.1": man}


def main(argv: list[str]) -> int:
    if argv[:1] == ["build"]:
        from tools.docs.build import show  # its parser is one of the tools of the project, not of an installation

        return show(ROOT, Path(argv[1]) if argv[1:] else ROOT / "dist/docs")
    for name, make in PAGES.items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(make())
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
