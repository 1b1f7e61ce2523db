"""Packages of replug, made from the source tree: `python -m tools.package deb|app` (`make deb`, `make app`)."""
