"""Packages of replug, made from the source tree: `python -m tools.package deb|apk|app` (`make deb`, `apk`, `app`)."""
