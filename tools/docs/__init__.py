"""Documents made from the code: docs/reference/commands.md and the man page. `python -m tools.docs` writes them."""
