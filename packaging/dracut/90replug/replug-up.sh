#!/bin/sh
# In the initramfs, before the root is mounted: bring the gadget side up. `rd.replug=1`, or the controller's name.
wanted=$(getarg rd.replug=)
if [ -n "$wanted" ]; then
    [ "$wanted" != 1 ] && set -- --udc "$wanted" || set --
    for module in ublk_drv libcomposite usb_f_fs; do
        modprobe -q "$module"
    done
    REPLUG_ROOT_STORAGE=1 /usr/bin/replug gadget up --adopt "$@" || warn "replug: gadget up failed: no root on it"
fi
