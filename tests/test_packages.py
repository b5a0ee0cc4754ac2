"""The command that installs bcc, by what /etc/os-release says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracer.kernel.packages import BCC, install_bcc


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ('NAME="Debian GNU/Linux"\nID=debian\nVERSION_ID="12"\n', "apt-get install python3-bpfcc"),
        ("ID=raspbian\nID_LIKE=debian\n", "apt-get install python3-bpfcc"),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"\n', "apt-get install python3-bpfcc"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "dnf install python3-bcc"),
        ("ID='amzn'\nID_LIKE='fedora'\n", "dnf install python3-bcc"),
        ('ID="opensuse-leap"\nID_LIKE="suse opensuse"\n', "zypper install python3-bcc"),
        ("ID=manjaro\nID_LIKE=arch\n", "pacman -S python-bcc"),
        ("ID=alpine\n", "apk add py3-bcc"),
        ("ID=nixos\n", "install your distribution's package of bcc"),
        ('ID="debian\n', "install your distribution's package of bcc"),
        ("", "install your distribution's package of bcc"),
        ("\x00\xff=\nID", "install your distribution's package of bcc"),
    ],
)
def test_by_os_release(text: str, command: str, tmp_path: Path) -> None:
    (tmp_path / "os-release").write_text(text)
    assert install_bcc([tmp_path / "absent", tmp_path / "os-release"]) == command


def test_there_is_none(tmp_path: Path) -> None:
    assert install_bcc([tmp_path / "os-release"]) not in BCC.values()
