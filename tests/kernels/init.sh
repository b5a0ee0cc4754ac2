#!/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0-only
#
# The first process in the initramfs: makes the guest's root file system, and goes there. Its root is somebody else's,
# read-only and under an overlay, so that nothing the guest writes there outlives it.

/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
for module in $(cat /modules/order); do insmod "/modules/$module.ko"; done

mkdir -p /lower /upper /new
mount -t virtiofs -o ro root /lower &&
	mount -t tmpfs -o size=50%,mode=755 upper /upper &&
	mkdir -m 755 /upper/files /upper/work &&
	mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work root /new || {
	echo "shmtrace: no root file system"
	poweroff -f
}

cd /new || exit
mkdir -p dev proc run sys
mount -t proc proc proc
mount -t sysfs sys sys
mount -t devtmpfs dev dev
mkdir -p dev/pts dev/shm
mount -t devpts -o mode=600,ptmxmode=666 pts dev/pts
mount -t tmpfs -o mode=1777 shm dev/shm
mount -t tmpfs -o mode=755 run run
mount -t bpf bpf sys/fs/bpf
mount -t debugfs debugfs sys/kernel/debug
mount -t tracefs tracefs sys/kernel/tracing
mount -t cgroup2 cgroup2 sys/fs/cgroup
ln -sf /proc/self/fd dev/fd
ln -sf /proc/self/fd/0 dev/stdin
ln -sf /proc/self/fd/1 dev/stdout
ln -sf /proc/self/fd/2 dev/stderr

mkdir -p run/guest run/lock run/php
cp /bin/busybox /switched.sh /shares /command /manager run/guest/
umount /proc
umount /dev
exec switch_root /new /run/guest/busybox sh /run/guest/switched.sh
