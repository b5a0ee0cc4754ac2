"""What the content of a region says of its use."""

from __future__ import annotations

import pytest

from tracer import hints


@pytest.mark.parametrize(
    ("comm", "kind", "content", "said"),
    [
        ("nginx", "anon", b'\0\0 in limit_req zone "perip"\0\0', 'limit_req zone "perip"'),
        ("nginx", "anon", b"in no zone\0 in x zone \0", None),
        ("nginx", "anon", b' in cache keys zone "' + b"x" * 41 + b'"\0', None),
        ("nginx", "anon", b' in zone "\x1b[2J"\0', None),
        ("nginx", "memfd", b' in zone "x"\0', None),
        ("nginx: worker", "anon", b' in zone "x"\0', 'zone "x"'),
        ("postgres", "posix", (0x50477C7C).to_bytes(4, "little") + b"\0" * 9, "parallel query"),
        ("postgres", "posix", b"", None),
        ("httpd", "anon", b' in zone "x"\0', None),
    ],
)
def test_hints(comm: str, kind: str, content: bytes, said: str | None) -> None:
    hint = hints.find(comm, kind)
    assert (hint.read(content) if hint else None) == said
