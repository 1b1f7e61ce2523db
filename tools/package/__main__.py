"""`python -m tools.package deb|rpm|apk|app [DIRECTORY]`: build a package (into dist/)."""

import sys
from pathlib import Path

from common.errors import ReplugError
from tools.package import apk, app, deb, rpm

ROOT = Path(__file__).parents[2]
BUILDERS = {"deb": deb.build, "rpm": rpm.build, "apk": apk.build, "app": app.build}


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in BUILDERS or len(argv) > 2:
        print(f"replug: package: say which: {', '.join(BUILDERS)}, and maybe a directory", file=sys.stderr)
        return 2
    try:
        print(BUILDERS[argv[0]](ROOT, Path(argv[1]) if len(argv) > 1 else ROOT / "dist"))
    except ReplugError as error:
        print(f"replug: {error}", file=sys.stderr)
        return int(getattr(error, "status", 1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
