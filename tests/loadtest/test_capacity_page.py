"""The capacity page in a real browser: a desk's and a phone's width, light and dark."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any, Final

import pytest

from loadtest.capacity_page import page
from loadtest.steps import Report
from tests.loadtest.test_capacity import CONFIRMATIONS, LIMITS, confirmation, sample, step
from tests.support.load_plan import PLAN

if TYPE_CHECKING:
    from pathlib import Path

BROWSER: Final = shutil.which("chromium") or shutil.which("google-chrome")
PHONE, DESK = 360, 1280
_FRAME: Final = """<!doctype html><body>
<iframe src="capacity.html" style="width:%dpx;height:800px;border:0"></iframe>
<script>
addEventListener("load", () => {
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  const shown = [...page.querySelectorAll("svg")].filter(one => one.getBoundingClientRect().width);
  const boxes = [...page.querySelectorAll(".scroll")];
  const seen = {
    width: root.clientWidth, scrolls: root.scrollWidth, plots: shown.map(one => one.getAttribute("class")),
    boxes: boxes.map(one => one.scrollWidth > one.clientWidth),
    outside: [...page.querySelectorAll("body *")].filter(one => !one.closest(".scroll")
      && one.getBoundingClientRect().right > root.clientWidth + 0.5).map(one => one.tagName),
    text: Math.min(...shown.map(one => one.getBoundingClientRect().width / one.viewBox.baseVal.width * 12)),
    paper: getComputedStyle(page.body).backgroundColor, ink: getComputedStyle(page.body).color,
  };
  document.body.innerHTML = "<pre></pre>";
  document.querySelector("pre").textContent = JSON.stringify(seen);
});
</script>"""


def long_report() -> Report:
    """A report with long names, many runs and every table."""
    steps = [step(rate, rate / 500, done_per_s=rate * 0.999) for rate in (200, 1_000, 5_000, 12_345)]
    steps += [step(54_321, 9_000, errors={"store_unavailable": 900}) for _ in range(2)]
    steps += [confirmation(12_345.0) for _ in range(2)]
    steps += [step(12_345 * share, purpose="share") for share in (0.25, 0.5, 0.75)]
    report = Report(PLAN, LIMITS, CONFIRMATIONS, steps)
    names = (
        "front end",
        "load generator",
        "everything else",
        "PostgreSQL",
        "Valkey",
        "persister",
        "deliverer",
    )
    report.samples = [sample(100.0 + number, **dict.fromkeys(names, 0.1)) for number in range(9)]
    report.first_to_give = (
        "the processors: 99% busy (PostgreSQL 0.61, load generator 0.52, front end 0.41 cores)"
    )
    return report


def seen(directory: Path, width: int, *, dark: bool = False) -> dict[str, Any]:
    """What a browser shows of the page in a frame of a width."""
    (directory / "capacity.html").write_text(page(long_report()), encoding="utf-8")
    (directory / "frame.html").write_text(_FRAME % width, encoding="utf-8")
    found = subprocess.run(
        [
            *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            "--allow-file-access-from-files",
            *(f"--user-data-dir={directory / 'profile'}", "--window-size=1400,900", "--dump-dom"),
            *(["--blink-settings=preferredColorScheme=0"] if dark else []),
            (directory / "frame.html").as_uri(),
        ],
        capture_output=True,
        check=True,
        text=True,
        timeout=120,
        env={**os.environ, "HOME": str(directory)},
    ).stdout
    pre = re.search(r"<pre>(.*)</pre>", found)
    assert pre, found
    told: dict[str, Any] = json.loads(html.unescape(pre[1]))
    return told


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
@pytest.mark.parametrize(("width", "plot"), [(PHONE, "narrow"), (DESK, "wide")])
def test_the_page_fits_its_width_and_only_tables_scroll(tmp_path: Path, width: int, plot: str) -> None:
    found = seen(tmp_path, width)
    assert (found["width"], found["scrolls"], found["outside"]) == (width, width, [])
    assert found["plots"] == [plot] * 4
    if width == PHONE:
        assert found["boxes"] == [True, True]
    assert found["text"] >= 10


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_the_page_follows_the_dark_scheme(tmp_path: Path) -> None:
    light, dark = seen(tmp_path, PHONE), seen(tmp_path, PHONE, dark=True)
    assert light["paper"] == "rgb(255, 255, 255)"
    assert dark["paper"] != light["paper"]
    assert dark["ink"] != light["ink"]


def test_a_phone_is_told_to_use_its_own_width() -> None:
    head = page(long_report()).partition("</head>")[0]
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in head
