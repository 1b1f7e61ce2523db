#!/bin/sh
# What replug's tests and demo need from Debian: installs exactly what is missing, and nothing if nothing is.
# Called by the Makefile with the Python that will own the environment; exit 4 says what this machine lacks.
set -eu
python=${1:-python3}
PATH=$PATH:/usr/sbin:/sbin
export DEBIAN_FRONTEND=noninteractive

missing=
need() { # PACKAGE COMMAND...: PACKAGE is missing unless COMMAND succeeds
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}
has_libusb() { ldconfig -p | grep -q 'libusb-1\.0\.so\.0'; }

need python3 command -v "$python"
need python3-venv "$python" -c 'import venv, ensurepip'
need qemu-system-x86 command -v qemu-system-x86_64
need zstd command -v zstd
need e2fsprogs command -v mkfs.ext4
need xfsprogs command -v mkfs.xfs
need fio command -v fio
need tmux command -v tmux
need tshark command -v tshark
need rpm command -v rpmbuild
need procps command -v ps
need libusb-1.0-0 has_libusb
[ "${ARCH:-}" != arm64 ] || need qemu-system-arm command -v qemu-system-aarch64
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "replug: missing$missing: this is not Debian: install them by hand, then try again" >&2
    exit 4
fi
if [ "$(id -u)" != 0 ]; then
    echo "replug: missing$missing: needs root: 'apt-get install --no-install-recommends$missing'" >&2
    exit 4
fi
echo "replug: installing$missing"
install() { apt-get install -y -q --no-install-recommends $missing; }
# The first try fails on a machine with no package lists, or with old ones.
install >/dev/null 2>&1 || { apt-get update -q && install; } || {
    echo "replug: cannot install$missing: apt failed: see its words above" >&2
    exit 4
}
