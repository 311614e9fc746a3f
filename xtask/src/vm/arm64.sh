#!/bin/sh
# The guest's only program, in its initial root file system (busybox): runs each job of /jobs (LABEL
# COMMAND..) and says on the console what became of it, as guest.sh does.
export PATH=/bin:/sbin HOME=/
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
while read -r module; do insmod "/modules/$module" || echo "@@ trouble insmod $module"; done </modules/order
ip link set lo up
say() { echo "@@ $*"; }
# Milliseconds since the kernel's start.
now() { cut -d' ' -f1 /proc/uptime | tr -d . | sed 's/$/0/'; }

say up "$(uname -r)" "$(cut -d' ' -f1 /proc/uptime)"
while read -r label command; do
    dmesg -c >/dev/null
    begun=$(now)
    sh -c "$command" </dev/null >/tmp/output 2>&1
    status=$?
    took=$(($(now) - begun))
    dmesg -r | grep -E '^<[0-4]>' >/tmp/warnings && { [ "$status" = 0 ] && status=99; cat /tmp/warnings >>/tmp/output; }
    [ "$status" = 0 ] || tail -n 40 /tmp/output | cut -c1-500 | sed 's/^/@| /'
    say job "$label" "$status" "$took"
done </jobs
say end
poweroff -f
