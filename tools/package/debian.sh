#!/bin/sh
# Debian 12's own packages of what replug imports, unpacked into a directory for the tests of the package: they show that
# it runs with the versions that its users have. Nothing is installed. Usage: debian.sh DIRECTORY
set -eu
directory=$1
mkdir -p "$(dirname "$directory")"
exec 9>"$directory.lock"
flock 9 # two workers of a test run come at once
packages="python3-zmq libzmq5 libsodium23 libpgm-5.3-0 libnorm1 libbsd0 python3-msgpack python3-psutil python3-usb
    libusb-1.0-0 python3-rich python3-markdown-it python3-mdurl python3-pygments udev libkmod2
    openrc librc1 libeinfo1 dracut-core"
# unless it has other packages than these
[ "$(cat "$directory/.done" 2>/dev/null)" != "$packages" ] || { touch "$directory/.done" && exit 0; }
rm -rf "$directory"
mkdir -p "$directory/root" "$directory/debs"
cd "$directory/debs"
download() { apt-get -q -o APT::Sandbox::User=root download $packages; }
# The first try fails on a machine with no package lists, or with old ones.
download >/dev/null 2>&1 || { apt-get update -q && download; } || {
    echo "replug: cannot download Debian's packages: apt failed: see its words above" >&2
    exit 4
}
for deb in *.deb; do
    dpkg-deb -x "$deb" "$directory/root"
done
printf "%s" "$packages" >"$directory/.done"
