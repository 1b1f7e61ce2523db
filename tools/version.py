"""The version of replug: what `replug --version` says and what packages carry. pyproject.toml has it too (tested)."""

VERSION = "0.1.0"
