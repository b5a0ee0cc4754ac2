"""Values that strangers may put where a number or a name is expected."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

NUMBERS = [
    *(
        0,
        1,
        -1,
        2,
        4095,
        4096,
        16384,
        65536,
        2**31 - 1,
        2**31,
        2**32 - 1,
        2**32,
        2**53,
        2**62,
        2**63 - 1,
        -(2**63),
        10**18,
        -(10**18),
    ),
    *(0.5, -0.0, 1e308, -1e308, 1e-308, float("inf"), float("-inf"), float("nan")),
]
TEXTS = [
    "", " ", "x", "0", "-0", "1e9", "0x10", "9" * 400, "NaN", "'", '"', "\0", "\n", "\r\n", "\t", "a\nb", "a;b c\nd",
    "=1+1", "+1", "-1", "@SUM(1)", "'=1", "\x1b]0;x\a", "\x1b[2J", "\x9b31m", "\u202egpj.exe", "\u2028", "\ufeff",
    "\u200b", "</script><script>alert(1)</script>",
    "<!--<script>", "]]>", "&lt;", "${x}", "%s%n", "\\x1b", "…", "\U0001f9ff" * 9,
    "e\u0301" * 50, "漢字" * 60, "../../etc/passwd", "/", "//", "a/" * 300, "kubepods-" * 60, "/docker/" + "a" * 64,
    "\\x" * 40, "machine-\\xff.scope", ";" * 2000, "\n" * 5000,
]  # fmt: skip

texts = st.one_of(
    st.sampled_from(TEXTS),
    st.sampled_from([5000, 100_000]).map("A".__mul__),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.lists(st.sampled_from(TEXTS[:45]), max_size=6).map("".join),
)
blobs = st.binary(max_size=20).map(lambda raw: {"blob": raw.hex()})
values = st.one_of(
    st.none(),
    st.sampled_from(NUMBERS),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    texts,
    blobs,
    st.sampled_from([{"blob": "fffe00"}, {"blob": ""}, {"text": "fffe"}, {"text": "c328"}, {"text": "eda080"}]),
)
"""As SQLite has them: a blob is {"blob": hexadecimal}, and a text that is no UTF-8 {"text": hexadecimal}."""


def sql(value: Any) -> str:
    """As an expression of SQL."""
    if value is None or value != value:  # SQLite takes NaN for NULL
        return "NULL"
    if isinstance(value, dict):
        return f"x'{value['blob']}'" if "blob" in value else f"CAST(x'{value['text']}' AS TEXT)"
    if isinstance(value, str):
        return f"CAST(x'{value.encode(errors='surrogatepass').hex()}' AS TEXT)"
    if isinstance(value, float):
        return {float("inf"): "9e999", float("-inf"): "-9e999"}.get(value, repr(value))
    return str(value)
