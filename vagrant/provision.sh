#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# Makes a test machine: shmtrace for root, and a php-fpm whose opcache grows while you watch.
#
#     sudo vagrant/provision.sh
#
# The Vagrantfile runs it in its machines. Any other Debian or Ubuntu will do, but none in use: php-fpm gets a pool with
# visitors, and is reloaded every few minutes. What is to be installed, ./bootstrap knows. Run again, it mends what has
# changed.

set -eu

self=$(readlink -f -- "$0")
root=${self%/vagrant/*}
socket=/run/php/shmtrace-site.sock

fail() {
	echo "provision.sh: $*" >&2
	exit 1
}

[ "$(id -u)" = 0 ] || fail "needs root: sudo $0"
command -v apt-get >/dev/null ||
	fail "is for Debian and Ubuntu, and finds no apt-get here: install shmtrace as README.md says, and a php-fpm"
[ -d /run/systemd/system ] || fail "needs systemd, to run php-fpm and its visitors: run it in a virtual machine"

"$root/bootstrap" site

# Debian's sudo looks into /usr/local/bin, and nowhere below /opt.
venv=$(readlink -f -- "${SHMTRACE_VENV:-$root/.venv}")
ln -sf "$venv/bin/shmtrace" /usr/local/bin/shmtrace

for pools in /etc/php/*/fpm/pool.d; do :; done # the last is the newest PHP's, where there are several
version=${pools#/etc/php/}
fpm=php${version%%/*}-fpm

# Workers that die every now and then, as in most pools: the dead are what ps cannot name.
cat >"$pools/shmtrace-site.conf" <<POOL
[shmtrace]
user = www-data
group = www-data
listen = $socket
pm = static
pm.max_children = 4
pm.max_requests = 20
POOL

# All scripts compiled, the opcache has stopped growing, so it has a new one then, as a deployment would bring.
cat >/etc/systemd/system/shmtrace-site.service <<UNIT
[Unit]
Description=Visitors that make php-fpm's opcache grow
Wants=$fpm.service
After=$fpm.service

[Service]
WorkingDirectory=$root
StateDirectory=shmtrace-site
ExecStart=/bin/sh -c "/usr/bin/python3 -m vagrant.visitor $socket /var/lib/shmtrace-site && systemctl reload $fpm"
Restart=always
RestartSec=5

[Install]
WantedBy=multi-user.target
UNIT

# bootstrap installs php-fpm neither enabled nor started, for the tests.
systemctl daemon-reload
systemctl --quiet enable "$fpm" shmtrace-site
systemctl stop shmtrace-site
systemctl restart "$fpm" 2>/dev/null || fail "$fpm does not start: journalctl -u $fpm says why"
systemctl start shmtrace-site

/usr/local/bin/shmtrace doctor >/dev/null || fail "shmtrace cannot trace here: sudo shmtrace doctor says why"
echo "provision.sh: ready for: sudo shmtrace -p php-fpm -d 30"
