"""The flame graph as SVG: its figures, what strangers' names do to it, and what a browser makes of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests import exported
from tests.exported import Drawn
from tests.recorded import pool, shmtrace, with_labels, with_stacks
from tests.test_html import HOSTILE
from tracer.capture.capture import Capture
from tracer.formatting import printable
from tracer.proc.shmem import PAGE_BYTES
from tracer.views import svg

STYLE = Path(svg.__file__).with_name("page") / "flamegraph.css"


def export(path: Path) -> str:
    done = shmtrace("export", path, "--format", "svg")
    assert done.exit_code == 0, done.output
    return done.stdout


def pages(frames: list[Drawn]) -> list[tuple[int, str, int, int]]:
    """(row, name, pages to its left, pages), from the top, from the left."""
    found = [(each.row, each.name, each.from_bytes // PAGE_BYTES, each.size_bytes // PAGE_BYTES) for each in frames]
    return sorted(found, key=lambda frame: (frame[0], frame[2]))


def test_is_as_wide_as_it_has_pages(tmp_path: Path) -> None:
    frames = exported.svg(export(pool(tmp_path / "x")))
    assert pages(frames) == [
        (0, "all regions", 0, 48),
        (1, "811 php-fpm: master", 0, 48),
        (2, "opcache? 0:1/1047/00000007", 0, 43),
        (2, "apcu? 0:1/1048/00000007, gone", 43, 5),
        (3, "[before the trace]", 0, 11),
        (3, "php-fpm: pool www", 11, 30),
        (3, "[unseen]", 41, 2),
        (3, "813 php-fpm: pool www", 43, 5),
        (4, "812 php-fpm: pool www", 11, 23),
        (4, "813 php-fpm: pool www", 34, 7),
    ]
    for frame in frames:
        assert (frame.x, frame.width) == (frame.from_bytes / PAGE_BYTES * 25, frame.size_bytes / PAGE_BYTES * 25)


def test_a_title_has_the_figures(tmp_path: Path) -> None:
    root = ElementTree.fromstring(export(pool(tmp_path / "x")))  # noqa: S314
    titles = [element.text for element in root.iter(f"{exported.SVG}title")]
    assert "812 php-fpm: pool www\n92.0 KiB, 23 pages, 47.9%" in titles


def test_labels_and_stacks_are_frames(tmp_path: Path) -> None:
    labels = pages(exported.svg(export(with_labels(tmp_path / "labels"))))
    assert (6, "/srv/www/vendor/autoload.php", 20, 14) in labels
    stacks = pages(exported.svg(export(with_stacks(tmp_path / "stacks"))))
    assert (6, "zend_shared_alloc", 11, 20) in stacks


def test_the_same_capture_makes_the_same_file(tmp_path: Path) -> None:
    assert export(pool(tmp_path / "x")) == export(pool(tmp_path / "y"))


def test_what_is_too_narrow_is_drawn_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 22 px a page, 2 and 5 pages are too narrow, and where 11 are, too, these and 2 are wide enough together."""
    monkeypatch.setattr(svg, "NARROWEST_PX", 200)
    text = export(pool(tmp_path / "x", more_pages=6))
    assert pages(exported.svg(text)) == [
        (0, "all regions", 0, 54),
        (1, "811 php-fpm: master", 0, 54),
        (2, "opcache? 0:1/1047/00000007", 0, 49),
        (3, "[before the trace]", 0, 11),
        (3, "php-fpm: pool www", 11, 36),
        (4, "812 php-fpm: pool www", 11, 23),
        (4, "813 php-fpm: pool www", 34, 13),
    ]
    assert " 3 frames are too small to be drawn." in text
    monkeypatch.setattr(svg, "NARROWEST_PX", 250)
    assert pages(exported.svg(export(tmp_path / "x")))[3:] == [
        (3, "php-fpm: pool www", 0, 36),
        (3, "[2 smaller]", 36, 13),
        (4, "812 php-fpm: pool www", 0, 23),
        (4, "813 php-fpm: pool www", 23, 13),
    ]


@pytest.mark.parametrize(
    ("bound", "most", "wanted"),
    [
        pytest.param("MAX_FRAMES", 4, ["all regions", "811 php-fpm: master", "opcache?", "php-fpm:"], id="frames"),
        pytest.param("MAX_DEPTH", 2, ["all regions", "811 php-fpm: master"], id="rows"),
    ],
)
def test_is_bounded(bound: str, most: int, wanted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svg, bound, most)
    frames = exported.svg(export(pool(tmp_path / "x")))
    assert len(frames) == len(wanted)
    assert all(frame.name.startswith(name) for frame, name in zip(frames, wanted))


def test_a_deep_stack_is_bounded(tmp_path: Path) -> None:
    """Ten thousand functions above each other, as no trace records them."""
    text = export(with_stacks(tmp_path / "x", "\n".join(f"f{n}" for n in range(10_007))))
    assert max(frame.row for frame in exported.svg(text)) == svg.MAX_DEPTH - 1


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_texts(name: str, tmp_path: Path) -> None:
    text = export(pool(tmp_path / "x", command=name))
    assert not re.search(r"[^\n\x20-\U0010ffff]|[\ufffe\uffff\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", text)
    elements = [element.tag.rpartition("}")[2] for element in ElementTree.fromstring(text).iter()]  # noqa: S314
    assert set(elements) == {"svg", "style", "rect", "text", "title", "script"}
    assert elements.count("script") == 1
    names = {frame.name for frame in exported.svg(text)}
    shown = f"812 {printable(name)}"
    assert (shown if len(shown) < svg.MAX_COLUMNS else f"{shown[: svg.MAX_COLUMNS - 1]}…") in names


@pytest.mark.parametrize("name", ["a\x00b\x0bc", "\ufffe\uffff", "\ue000 \U000e0001"])
def test_what_xml_has_no_place_for_is_a_code(name: str, tmp_path: Path) -> None:
    names = {frame.name for frame in exported.svg(export(pool(tmp_path / "x", command=f"www {name}")))}
    assert f"812 www {printable(name)}" in names


def test_loads_nothing(tmp_path: Path) -> None:
    text = export(with_labels(tmp_path / "x")).replace('xmlns="http://www.w3.org/2000/svg"', "")
    text = text.replace("createElementNS(&quot;http://www.w3.org/2000/svg&quot;", "")
    assert not re.search(r"https?:|href|src=|url\(|@import|fetch|XMLHttp|innerHTML|\beval\b", text)


def test_an_account_of_nothing(tmp_path: Path) -> None:
    with Capture(tmp_path / "x") as capture:
        capture.insert(
            "session", version="0.1.0", host="web1", kernel="6.1", tier="proc", mechanism="", blind_to="",
            started_ns=0, ended_ns=7, complete=1,
        )  # fmt: skip
    assert [(frame.name, frame.size_bytes, frame.width) for frame in exported.svg(export(tmp_path / "x"))] == [
        ("all regions", 0, 1200)
    ]


def luminance(colour: str) -> float:
    """As WCAG 2.1 defines it, of #rrggbb."""
    parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("dark", [False, True])
def test_texts_can_be_read(dark: bool) -> None:
    """Their contrast on every fill is 4.5:1, as WCAG 2.1 asks."""
    light, _, night = STYLE.read_text().partition("@media (prefers-color-scheme: dark)")
    style = night if dark else light
    (ink,) = re.findall(r"^ *text \{ fill: (#\w+)", style, re.MULTILINE)
    fills = re.findall(r"\.(?:c\d|none|ground)(?: rect)? \{ fill: (#\w+)", style)
    assert len(fills) == svg.NR_COLOURS + 2
    for fill in fills:
        darker, lighter = sorted((luminance(ink), luminance(fill)))
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, fill


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Opens the flame graph of a capture; in the end the browser has had nothing to say."""

    def open_svg(path: Path) -> None:
        (tmp_path / "x.svg").write_text(export(path))
        browser.get((tmp_path / "x.svg").as_uri())

    yield open_svg
    assert browser.get_log("browser") == []


def shown(browser: Any) -> dict[str, tuple[int, int]]:
    """Left edge and width of each frame that is there, by name, in pixels; and that no text is wider than its frame."""
    script = """
        return [...document.querySelectorAll(".frame")].filter((frame) => frame.style.display !== "none")
          .map((frame) => [frame.querySelector("title").textContent.split("\\n")[0],
                           frame.getAttribute("x"), frame.getAttribute("width"),
                           frame.querySelector("text")?.getComputedTextLength() ?? 0]);
    """
    found = browser.execute_script(script)
    assert all(text <= float(width) for _, _, width, text in found)
    return {name: (round(float(x)), round(float(width))) for name, x, width, _ in found}


def click(browser: Any, name: str) -> None:
    script = """
        const frames = [...document.querySelectorAll(".frame")];
        const frame = frames.find((frame) => frame.textContent.startsWith(arguments[0]));
        frame.querySelector("rect").dispatchEvent(new MouseEvent("click", { bubbles: true }));
    """
    browser.execute_script(script, name)


@pytest.mark.needs("chromium", "chromedriver")
class TestBrowser:
    def test_a_click_zooms_in_and_escape_out(self, show: Any, browser: Any, tmp_path: Path) -> None:
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        show(pool(tmp_path / "x"))
        whole = shown(browser)
        assert whole["php-fpm: pool www"] == (275, 750)
        click(browser, "php-fpm: pool www")
        assert shown(browser) == {
            "all regions": (0, 1200),
            "811 php-fpm: master": (0, 1200),
            "opcache? 0:1/1047/00000007": (0, 1200),
            "php-fpm: pool www": (0, 1200),
            "812 php-fpm: pool www": (0, 920),
            "813 php-fpm: pool www": (920, 280),
        }
        ActionChains(browser).send_keys(Keys.ESCAPE).perform()
        assert shown(browser) == whole

    def test_a_text_comes_with_its_room(self, show: Any, browser: Any, tmp_path: Path) -> None:
        """Two pages of 48 have not enough for their name."""
        show(pool(tmp_path / "x"))
        script = "return [...document.querySelectorAll('.frame text')].map((text) => text.textContent)"
        assert "[unse…" in browser.execute_script(script)
        click(browser, "[unseen]")
        assert "[unseen]" in browser.execute_script(script)

    @pytest.mark.parametrize(
        "name", [parameter for parameter in HOSTILE if parameter.id in ("script", "image", "long")]
    )
    def test_hostile_names(self, name: str, show: Any, browser: Any, tmp_path: Path) -> None:
        show(pool(tmp_path / "x", command=name))
        click(browser, "813")
        assert shown(browser)
        assert browser.execute_script("return document.querySelectorAll('script').length") == 1

    @pytest.mark.parametrize(("scheme", "ground"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 23, 27)")])
    def test_light_and_dark(self, scheme: str, ground: str, show: Any, browser: Any, tmp_path: Path) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        show(pool(tmp_path / "x"))
        script = "return getComputedStyle(document.querySelector('.ground')).fill"
        assert browser.execute_script(script) == ground
