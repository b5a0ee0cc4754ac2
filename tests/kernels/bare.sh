#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
#     bare.sh ROOT PYZ [ARG...]
#
# Runs Python in a root that has nothing but that, with PYZ for all that it imports. What is mounted for it is mounted
# for it alone, by busybox: not every guest has more.

set -eu
root=$1 pyz=$2
shift 2
exec busybox unshare --mount busybox sh -euc '
	root=$1 pyz=$2
	shift 2
	mount --bind "$root" "$root" # a root that mount(2) takes for one
	for place in proc sys dev tmp; do mount --rbind "/$place" "$root/$place"; done
	mount -t tmpfs run "$root/run" # a root that is shared with a guest is read-only there
	touch "$root/run/shmtrace.pyz"
	mount --bind "$pyz" "$root/run/shmtrace.pyz"
	exec chroot "$root" env -i PATH=/usr/bin:/bin HOME=/root PYTHONPATH=/run/shmtrace.pyz /usr/bin/python3 "$@"
' sh "$root" "$pyz" "$@"
