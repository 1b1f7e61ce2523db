# Process 1 of the guest, in its real root: run the one command, send what it writes and how it ended.
# stdout and stderr are pipes, as under any parent, and cat carries them to the virtio ports: a port cannot be
# opened twice, so a program that opens /dev/stdout would fail on it.
bb=/run/vm/busybox

port() {
    # The ports appear a moment after their driver; there is no udev to announce them.
    for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        for name in /sys/class/virtio-ports/*/name; do
            if [ "$($bb cat "$name" 2>/dev/null)" = "$1" ]; then
                name=${name%/name}
                echo "/dev/${name##*/}"
                return
            fi
        done
        $bb usleep 50000
    done
    echo "vm: no port $1" >/dev/console
}

$bb mkfifo /run/vm/out /run/vm/err
out=$(port out) err=$(port err) control=$(port control)
$bb cat </run/vm/out >"$out" &
$bb cat </run/vm/err >"$err" &
exec 3>/run/vm/out 4>/run/vm/err 5<>"$control"
ulimit -Hn 524288
ulimit -Sn 1024
$bb dmesg -n 7
echo ready >&5

# Asked before we are killed for taking too long: who runs, and where the blocked ones are blocked.
while read -r _; do
    $bb ps -o pid,ppid,stat,args | $bb grep -v ' \[' >/dev/console
    echo w >/proc/sysrq-trigger
    echo told >&5
done <&5 3>&- 4>&- &

$bb setsid $bb sh /run/vm/command </dev/null >&3 2>&4 3>&- 4>&- 5>&- &
wait $!
echo "exit $?" >&5

# The token comes last in each stream, behind everything the command wrote: it tells that nothing is missing.
$bb cat /run/vm/token >&3
$bb cat /run/vm/token >&4
[ -e /run/vm/dmesg ] && $bb dmesg >&5
$bb cat /run/vm/token >&5
while :; do $bb sleep 1000; done
