# SPDX-License-Identifier: GPL-2.0-only
#
# The first process in the guest's root file system: swap, shared directories, then the command. Serial ports: ttyS0 is
# the kernel's console, ttyS1 what the command says, ttyS2 its exit status.

busybox=/run/guest/busybox
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

give_up() {
	echo "shmtrace: $1" >/dev/ttyS0
	$busybox poweroff -f
}

$busybox hostname guest
$busybox ip link set lo up
$busybox stty -F /dev/ttyS1 raw -echo
$busybox stty -F /dev/ttyS2 raw -echo
$busybox swapon /dev/vda || give_up "no swap"

while read -r tag mode path; do
	$busybox mkdir -p "$path"
	$busybox mount -t virtiofs -o "$mode" "$tag" "$path" || give_up "no $path"
done </run/guest/shares

$busybox env -i HOME=/root USER=root LOGNAME=root TERM=dumb COLUMNS=120 LANG=C.UTF-8 PATH="$PATH" \
	$busybox setsid /bin/sh /run/guest/command </dev/null >/dev/ttyS1 2>&1
echo $? >/dev/ttyS2
$busybox poweroff -f
