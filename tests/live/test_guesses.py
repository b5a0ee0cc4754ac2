"""What regions of real servers are taken for, by shmtrace snapshot and by a trace."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.live.reports import ROOT, SHMTRACE
from tests.live.running import PATIENCE_SECONDS, running
from tests.live.shmem import read_regions
from tracer.formatting import format_bytes

NGINX = """
daemon off; pid {0}/pid; error_log {0}/error; events {{ }}
http {{
    access_log off; client_body_temp_path {0}/a; proxy_temp_path {0}/b; fastcgi_temp_path {0}/c;
    uwsgi_temp_path {0}/d; scgi_temp_path {0}/e;
    limit_req_zone $binary_remote_addr zone=perip:11m rate=1r/s;
    limit_conn_zone $binary_remote_addr zone=addr:5m;
    proxy_cache_path {0}/cache keys_zone=pages:3m;
    upstream back {{ zone peers 512k; server 127.0.0.1:9; }}
    server {{ listen unix:{0}/socket; }}
}}
"""
APACHE = """
ServerRoot {0}
PidFile {0}/pid
ErrorLog {0}/error
ServerName localhost
Listen 127.0.0.1:{3}
LoadModule mpm_prefork_module {1}/mod_mpm_prefork.so
LoadModule authz_core_module {1}/mod_authz_core.so
LoadModule php_module {2}
StartServers 2
User www-data
Group www-data
"""
MODULES = Path("/usr/lib/apache2/modules")


@contextmanager
def serving(line: Sequence[object], nr_regions: int, **env: str) -> Iterator[int]:
    """PID of a server, once it maps so many regions."""
    # Apache ends its whole process group
    with running(line, signal.SIGTERM, env={"PATH": "/usr/bin", **env}, start_new_session=True) as process:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(read_regions(process.pid)) < nr_regions:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process.pid


def names(*arguments: str) -> list[tuple[str, str]]:
    """(size, what a region is taken for), as the text says it."""
    text = subprocess.check_output([*SHMTRACE, *arguments], cwd=ROOT, text=True, stderr=subprocess.DEVNULL)
    lines = [line.strip().partition("?  anon ") for line in text.splitlines() if "?  anon " in line]
    return sorted((rest.split(",")[0], name) for name, _, rest in lines)


@pytest.mark.needs("nginx")
@pytest.mark.parametrize("arguments", [["snapshot"], pytest.param(["-d", "0.2"], marks=pytest.mark.bpf)])
def test_zones_of_nginx_by_their_own_names(arguments: list[str], tmp_path: Path) -> None:
    conf = tmp_path / "nginx.conf"
    conf.write_text(NGINX.format(tmp_path))
    with serving([shutil.which("nginx", path="/usr/sbin:/usr/bin"), "-c", conf], 4) as tgid:
        assert names(*arguments, "-p", str(tgid)) == sorted(
            [
                ("11.0 MiB", 'limit_req zone "perip"'),
                ("5.0 MiB", 'limit_conn_zone "addr"'),
                ("3.0 MiB", 'cache keys zone "pages"'),
                ("512 KiB", 'upstream zone "peers"'),
                ("4.0 KiB", "counters"),
            ]
        )


@pytest.mark.needs("apache2")
def test_opcache_and_scoreboard_of_mod_php(tmp_path: Path) -> None:
    conf = tmp_path / "apache.conf"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    conf.write_text(APACHE.format(tmp_path, MODULES, max(MODULES.glob("libphp*.so")), port))
    apache = shutil.which("apache2", path="/usr/sbin:/usr/bin")
    with serving([apache, "-f", conf, "-DFOREGROUND"], 3, APACHE_RUN_DIR=str(tmp_path)) as tgid:
        found = names("snapshot", "-p", str(tgid))
        sizes = {format_bytes(region.size_bytes) for region in read_regions(tgid).values()}
    assert {name for _, name in found} == {"opcache", "scoreboard", "apcu"}
    assert {size for size, _ in found} == sizes


@pytest.mark.needs("php")
def test_opcache_of_php_s_own_server(tmp_path: Path) -> None:
    line = ["/usr/bin/php", "-d", "opcache.enable_cli=1", "-d", "opcache.memory_consumption=64"]
    with serving([*line, "-S", "127.0.0.1:0", "-t", tmp_path], 1) as tgid:
        assert ("64.0 MiB", "opcache") in names("snapshot", "-p", str(tgid))
