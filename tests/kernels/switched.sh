# SPDX-License-Identifier: GPL-2.0-only
#
# The first process in the guest's root file system: swap, shared directories, then the command. The kernel's command
# line has named two serial ports in the environment: $output is for what the command says, $status its exit status.

busybox=/run/guest/busybox
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

give_up() {
	echo "shmtrace: $1" >/dev/console
	$busybox poweroff -f
}

$busybox hostname guest
$busybox ip link set lo up
$busybox stty -F "/dev/$output" raw -echo
$busybox stty -F "/dev/$status" raw -echo
$busybox mkswap /dev/vda >/dev/null && $busybox swapon /dev/vda || give_up "no swap" # of pages of this kernel's size

while read -r tag mode path; do
	$busybox mkdir -p "$path"
	$busybox mount -t virtiofs -o "$mode" "$tag" "$path" || give_up "no $path"
done </run/guest/shares

$busybox env -i HOME=/root USER=root LOGNAME=root TERM=dumb COLUMNS=120 LANG=C.UTF-8 PATH="$PATH" \
	$busybox setsid /bin/sh /run/guest/command </dev/null >"/dev/$output" 2>&1
echo $? >"/dev/$status"
$busybox poweroff -f
