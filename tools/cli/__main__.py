"""`python -m tools.cli`: the `replug` command from a source tree."""

import sys

from tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
