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

install() {
    local file
    inst_multiple python3 modprobe /usr/bin/replug
    # Python with what replug imports, and the libraries that their modules link to
    while read -r file; do
        inst "$file"
    done < <(find /usr/lib/replug "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
        /usr/lib/python3/dist-packages/{zmq,msgpack,psutil} -name '*.py' -o -name '*.so' 2>/dev/null)
    inst_libdir_file 'libzmq.so*' 'libffi.so*' 'libcap.so*'
    inst_hook pre-mount 10 "$moddir/replug-up.sh"
}
