# SPDX-License-Identifier: GPL-2.0-only
#
# The first process in the guest's root file system: swap, shared directories, then the command. The kernel's command
# line has named two serial ports in the environment: $output is for what the command says, $status its exit status.
#
#     switched.sh command     only that: as systemd runs it, where that is the first process by then

busybox=/run/guest/busybox
manager=$($busybox cat /run/guest/manager)
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

give_up() {
	echo "shmtrace: $1" >/dev/console
	$busybox poweroff -f
}

run_command() {
	$busybox env -i HOME=/root USER=root LOGNAME=root TERM=dumb COLUMNS=120 LANG=C.UTF-8 PATH="$PATH" \
		$busybox setsid /bin/sh /run/guest/command </dev/null >"/dev/$output" 2>&1
	how=$?
	[ "$how" -lt 128 ] || # by a signal: what for, the kernel says less loudly
		$busybox dmesg | $busybox grep -E "unhandled exception|segfault|traps:" | $busybox tail -n 5 >/dev/console
	echo "$how" >"/dev/$status"
	$busybox poweroff -f
}

[ "${1-}" != command ] || run_command

echo 1 >/proc/sys/debug/exception-trace # by default arm64 does not say what fault killed a program
$busybox hostname guest
$busybox ip link set lo up
$busybox stty -F "/dev/$output" raw -echo
$busybox stty -F "/dev/$status" raw -echo
$busybox mkswap /dev/vda >/dev/null && $busybox swapon /dev/vda || give_up "no swap" # of pages of this kernel's size

while read -r tag mode path; do
	$busybox mkdir -p "$path"
	$busybox mount -t virtiofs -o "$mode" "$tag" "$path" || give_up "no $path"
done </run/guest/shares

[ "$manager" ] || run_command

$busybox mkdir -p /run/systemd/system
$busybox ln -s /dev/null /run/systemd/system/tmp.mount # Debian 13's would hide what is shared below /tmp
cat >/run/systemd/system/guest.service <<UNIT
[Unit]
Description=what this guest is for
[Service]
Type=oneshot
Environment=output=$output status=$status
ExecStart=$busybox sh /run/guest/switched.sh command
UNIT
exec "$manager" --unit=guest.service
