"""`replug metrics`: what the side's session tells about all its processes, as Prometheus text.

A scraper may ask the same socket itself: `curl --unix-socket /run/replug/gadget-default/metrics http://replug/metrics`.
"""

import os
import socket
import sys

from common import limits
from common.errors import Exit, Gone, Refused
from tools.cli.where import find


def show(side: str | None, instance: str) -> int:
    runtime = find(side, instance)
    try:
        sys.stdout.write(scrape(os.fspath(runtime.metrics_socket())))
    except Gone as error:
        raise Refused(
            f"metrics: {error}: the session is being replaced, or cannot go on: see 'replug status'", Exit.FAULT
        ) from None
    return Exit.DONE


def scrape(path: str) -> str:
    """The body of one answer. Gone if none comes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as end:
        end.settimeout(limits.SCRAPE_S)
        try:
            end.connect(path)
            end.sendall(b"GET /metrics HTTP/1.1\r\nHost: replug\r\n\r\n")
            data = b"".join(iter(lambda: end.recv(65536), b""))
        except OSError as error:
            raise Gone(f"{path}: {error.strerror or 'no answer'}") from None
    head, _, body = data.partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n")[0]:
        raise Gone(f"{path}: {head[:80]!r}")
    return body.decode()
