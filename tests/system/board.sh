#!/bin/sh
# A Debian 12 for the boot test, as a board has it: systemd, a kernel, both makers of an initramfs, and what our package
# depends on, so that it can be installed without a network. Made once. Usage: board.sh DIRECTORY, as root.
set -eu
directory=$1
packages="systemd-sysv,udev,kmod,e2fsprogs,zstd,cpio,dracut-core,initramfs-tools,linux-image-6.12-amd64,\
python3,python3-zmq,python3-msgpack,python3-psutil,python3-usb,python3-rich"
mkdir -p "$(dirname "$directory")"
exec 9>"$directory.lock"
flock 9
[ "$(cat "$directory/.done" 2>/dev/null)" != "$packages" ] || exit 0
rm -rf "$directory"
if ! command -v mmdebstrap >/dev/null; then
    apt-get install -y -q --no-install-recommends mmdebstrap >/dev/null || {
        echo "replug: cannot install mmdebstrap, which makes the board's Debian: run 'apt-get update' and try again" >&2
        exit 4
    }
fi
mkdir -p "$directory"
# Documents and translations would only have to travel to the guest.
mmdebstrap --quiet --variant=minbase --mode=root --aptopt='Acquire::Languages "none"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --include="$packages" bookworm "$directory/root"
printf "%s" "$packages" >"$directory/.done"
