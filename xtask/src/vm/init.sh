#!/bin/sh
# The guest's first program, in its initial root file system (busybox): loads what the host's files need, lays
# a writable layer over them, and goes on in guest.sh there.
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module" || echo "@@ trouble insmod $module"; done </modules/order
mkdir -p /host /layer /new
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=524288,cache=loose host /host || echo "@@ trouble no 9p"
mount -t tmpfs -o size=80% layer /layer
mkdir -p /layer/upper /layer/work
mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work root /new || echo "@@ trouble no overlay"
for dir in tmp run guest var/tmp; do mkdir -p "/new/$dir"; mount -t tmpfs "$dir" "/new/$dir"; done
mkdir -p /new/run/lock
cp /guest/* /new/guest/
modules=/new/lib/modules/$(uname -r)
mkdir -p "$modules"
mount -o bind "/new$(cat /guest/modules)" "$modules"
for dir in proc sys dev; do mount -o move "/$dir" "/new/$dir"; done
mkdir -p /new/dev/pts /new/dev/shm
mount -t devpts pts /new/dev/pts
mount -t tmpfs shm /new/dev/shm
mount -t cgroup2 cgroup /new/sys/fs/cgroup
mount -t bpf bpf /new/sys/fs/bpf
exec switch_root /new /bin/bash /guest/guest.sh
