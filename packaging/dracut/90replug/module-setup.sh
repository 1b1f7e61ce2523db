#!/bin/bash
# dracut module: the gadget side in the initramfs, for a root file system on /dev/ublkbN (docs/how-to/root-on-replug.md).

check() {
    require_binaries python3 modprobe || return 1
    return 255 # only where it is asked for
}

depends() {
    echo base udev-rules
}

installkernel() {
    instmods ublk_drv libcomposite usb_f_fs =drivers/usb/gadget/udc =drivers/usb/dwc2 =drivers/usb/dwc3 =drivers/usb/musb
}

install() {
    local listed files libraries
    inst_multiple python3 modprobe cat /usr/bin/replug || return 1
    listed=$(/usr/lib/replug/initramfs-files) || {
        dfatal "replug: the list of Python's files could not be made"
        return 1
    }
    mapfile -t files <<<"$listed"
    # dracut looks for the libraries of executable files only, which Python's modules are not
    mapfile -t libraries < <(printf '%s\n' "${files[@]}" | grep '\.so$' | xargs -d '\n' ldd 2>/dev/null |
        sed -n 's/.* => \(\/[^ ]*\) .*/\1/p' | sort -u)
    inst_multiple "${files[@]}" "${libraries[@]}" || return 1
    inst_rules 71-replug-gadget.rules # /dev/disk/by-id/replug-NAME, by-uuid and by-label
    # Not before the root's device is waited for (pre-mount, say): nothing else makes it.
    inst_hook initqueue/settled 10 "$moddir/replug-up.sh"
    dracut_need_initqueue
}
