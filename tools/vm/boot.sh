#!/bin/busybox sh
# Process 1 of the guest, in the initrd: load modules, mount the machine's files under an overlay, go on with
# session.sh in there. It only ever runs with the files that tools/vm/initrd.py puts beside it.
bb=/bin/busybox
$bb mount -t devtmpfs dev /dev
$bb mount -t proc proc /proc
$bb mount -t sysfs sys /sys
$bb mount -t tmpfs -o mode=0755 tmpfs /run

while read -r module options; do
    $bb insmod "/modules/$module.ko" $options || echo "vm: module $module did not load" >/dev/console
done </vm/modules

# cache=loose: the tree is read-only and stands still while a guest runs, and Python stats every file.
$bb mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose root /lower || exit 1
$bb mount -t tmpfs -o size=75% tmpfs /upper
$bb mkdir /upper/files /upper/work
$bb mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work root /root || exit 1
$bb mount --bind /root /held

$bb mount -t tmpfs -o mode=1777 tmpfs /root/tmp
$bb mount --move /run /root/run
$bb mount --move /dev /root/dev
$bb mount --move /proc /root/proc
$bb mount --move /sys /root/sys
$bb mkdir -p /root/dev/pts /root/dev/shm
$bb mount -t devpts -o mode=0620,ptmxmode=0666 devpts /root/dev/pts
$bb mount -t tmpfs -o mode=1777 tmpfs /root/dev/shm
for each in configfs:kernel/config debugfs:kernel/debug tracefs:kernel/tracing; do
    $bb mount -t "${each%%:*}" "${each%%:*}" "/root/sys/${each#*:}"
done
# what devtmpfs leaves to udev
$bb ln -s /proc/self/fd /root/dev/fd
$bb ln -s /proc/self/fd/0 /root/dev/stdin
$bb ln -s /proc/self/fd/1 /root/dev/stdout
$bb ln -s /proc/self/fd/2 /root/dev/stderr

# Directories of the machine that our own /tmp and /run would hide, and directories shared for writing.
while read -r directory; do
    $bb mkdir -p "/root$directory" && $bb mount --bind "/held$directory" "/root$directory"
done </vm/visible
while read -r tag directory; do
    $bb mkdir -p "/root$directory" &&
        $bb mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=mmap "$tag" "/root$directory"
done </vm/shares

$bb ip link set lo up
$bb hostname guest
$bb mkdir /root/run/vm
$bb cp $bb /vm/* /root/run/vm/
exec $bb switch_root /root /run/vm/busybox sh /run/vm/session.sh
