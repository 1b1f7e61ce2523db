#!/bin/bash
# dracut module: the gadget side in the initramfs, for a root file system on /dev/ublkbN (docs/how-to/root-on-replug.md).

check() {
    require_binaries python3 modprobe || return 1
    return 255 # only where it is asked for
}

depends() {
    echo base
}

installkernel() {
    instmods ublk_drv libcomposite usb_f_fs =drivers/usb/gadget/udc =drivers/usb/dwc2 =drivers/usb/dwc3 =drivers/usb/musb
}

# Where Python has its own modules, and those that replug imports: each distribution has another place.
python_directories() {
    python3 -P -c 'import importlib.util, sysconfig
found = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
for name in ("zmq", "msgpack", "psutil"):
    found |= set(importlib.util.find_spec(name).submodule_search_locations)
print("\n".join(sorted(found)))'
}

install() {
    local files libraries directories
    inst_multiple python3 modprobe /usr/bin/replug || return 1
    mapfile -t directories < <(python_directories)
    if [ "${#directories[@]}" = 0 ]; then
        dfatal "replug: python3 lacks zmq, msgpack or psutil"
        return 1
    fi
    # cgi.py names an interpreter that is nowhere, which is an error to dracut-install
    mapfile -t files < <(find /usr/lib/replug "${directories[@]}" \( -name test -o -name cgi.py \) -prune -o \
        \( -name '*.py' -o -name '*.so' \) -print)
    # dracut looks for the libraries of executable files only, which Python's modules are not
    mapfile -t libraries < <(printf '%s\n' "${files[@]}" | grep '\.so$' | xargs -d '\n' ldd 2>/dev/null |
        sed -n 's/.* => \(\/[^ ]*\) .*/\1/p' | sort -u)
    inst_multiple "${files[@]}" "${libraries[@]}" || return 1
    inst_hook pre-mount 10 "$moddir/replug-up.sh"
}
