#!/bin/sh
# In the initramfs, each time udev has settled while the root's device is waited for, until it has worked once: bring the
# gadget side up. On the kernel's command line `rd.replug=1`, or the controller's name. dracut sources this file.
replug_up() {
    wanted=$(getarg rd.replug=)
    if [ -z "$wanted" ] || [ -e /run/replug-up ]; then return; fi
    for module in ublk_drv libcomposite usb_f_fs; do
        modprobe -q "$module"
    done
    # Its driver may come later: the next turn finds it.
    [ -n "$(ls /sys/class/udc 2>/dev/null)" ] || return
    if [ "$wanted" = 1 ]; then set --; else set -- --udc "$wanted"; fi
    if REPLUG_ROOT_STORAGE=1 /usr/bin/replug gadget up --adopt "$@"; then
        : >/run/replug-up
    else
        warn "replug: gadget up failed, and is tried again: there is no root on it yet"
    fi
}
replug_up
