"""What is parsed without a library: times, sizes, ranges, labels, names of regions, cgroup paths."""

from __future__ import annotations

import os
import time

import click
from hypothesis import strategies as st

from tests.fuzz.harness import Fuzzer, Given
from tests.fuzz.values import texts
from tracer import find_region, labels, window, wire
from tracer.cgroup import place, short
from tracer.cli import options
from tracer.errors import ShmtraceError
from tracer.model import Session

DAY_S = 86400
SESSION = Session("h", "6", "0", "proc", "", [], 4096, 0, 0, True, *[None] * 5, 0, 0, 0, [], None, None, None)  # type: ignore[arg-type]
ZONES = [
    "UTC",
    "Europe/Berlin",
    "Pacific/Apia",
    "Antarctica/Troll",
    "Asia/Kathmandu",
    "x",
    "EST5EDT",
    ":/etc/passwd",
    "",
]

_digits = (
    st.text("0123456789", max_size=6)
    | st.just(5000).map("9".__mul__)
    | st.sampled_from(["9" * 20, "٣", "00", "1e3", "-1", ""])
)
_times = st.one_of(
    st.from_regex(window.RELATIVE, fullmatch=True),
    st.from_regex(window.CLOCK, fullmatch=True),
    st.datetimes().map(str),
    st.datetimes(timezones=st.timezones()).map(lambda when: when.isoformat()),
    st.lists(st.one_of(_digits, st.sampled_from("+-:.TZzshmd WQ24")), max_size=8).map("".join),
)
_words = {
    "time": _times,
    "window": _times,
    "size": st.builds("{}{}".format, _digits, st.sampled_from(["", "K", "m", "G", "T", "P", "KB", "\u212a"])),
    "range": st.builds(
        "{}{}{}-{}{}{}".format, *[st.sampled_from(["", "p", "P", "0x"]), _digits, st.sampled_from("kKT_ ")] * 2
    ),
    "label": st.builds(
        "{}:{}{}+{}".format, texts, st.sampled_from(["", "&", "@"]), st.sampled_from(["x", "$", "é"]), _digits
    ),
    "region": st.builds("{}:{}".format, _digits, st.from_regex("[0-9a-fxA-F]{0,20}")),
    "cgroup": st.lists(
        st.one_of(
            texts,
            st.sampled_from(
                "docker-{0}.scope a.service x.slice kubepods lxc.payload. machine-\\xff.scope supervisor conmon lxc "
                "cri-containerd-{0}.scope kubepods-burstable-pod1_2.slice systemd-nspawn@\\x2d.service".format(
                    "0f" * 32
                ).split()
            ),
        ),
        max_size=8,
    ).map("/".join),
}
inputs = st.one_of(
    *(
        st.fixed_dictionaries(
            {
                "kind": st.just(kind),
                "word": st.one_of(words, texts),
                "started_ns": st.integers(0, 4 * 10**18),
                "seconds": st.sampled_from([0, 1, 3600, DAY_S, 3 * DAY_S, 5 * 10**9]),
                "zone": st.sampled_from(ZONES),
            }
        )
        for kind, words in _words.items()
    )
)


def give(given: Given) -> None:
    os.environ["TZ"] = given["zone"]
    time.tzset()
    word, bounds = given["word"], (given["started_ns"], given["started_ns"] + given["seconds"] * 10**9)
    parse = {
        "time": lambda: window.parse(word, *bounds),
        "window": lambda: window.window(None, word, SESSION._replace(started_ns=bounds[0], ended_ns=bounds[1])),
        "size": lambda: options.size(None, None, word),  # type: ignore[arg-type]
        "range": lambda: options.byte_range(None, None, word),  # type: ignore[arg-type]
        "label": lambda: options.label(None, None, word),  # type: ignore[arg-type]
        "region": lambda: find_region.tgid_of(word),
        "cgroup": lambda: place(word),
    }
    try:
        found = parse[given["kind"]]()
    except click.UsageError as error:
        raise ShmtraceError(error.format_message(), status=2) from None
    if given["kind"] in ("time", "size", "region"):
        assert found is None or -(2**63) <= found < 2**63, f"{found} is beyond what the kernel and SQLite have"
    elif given["kind"] == "range":
        assert 0 <= found[0] < found[1] < 2**63
    elif given["kind"] == "label":
        assert all(0 <= text.offset < 2**64 for text in found.texts)
        assert labels.parse(word) == found
        assert len(found.texts) <= wire.MAX_TEXTS
    elif given["kind"] == "cgroup":
        assert found.container is None or short(found.container)


FUZZER = Fuzzer("words", inputs, give, 150)
