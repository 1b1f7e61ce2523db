"""Packages of replug, made from the source tree: `python -m tools.package deb` (`make deb`)."""
