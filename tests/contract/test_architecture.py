"""ARCHITECTURE.md names every room, and the way of one redemption through files that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
TEXT: Final = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
WAY: Final = (
    "<!-- the way of one redemption: checked by tests/contract/test_architecture.py "
    "and tests/redemption/test_way.py -->"
)
ROOMS: Final = "<!-- rooms: checked by tests/contract/test_architecture.py -->"
STEPS_MAX: Final = 10
KINDS: Final = ("*.py", "*.lua", "*.sql")
ROOM_DEPTH: Final = 2


def between(start: str, end: str) -> str:
    assert TEXT.count(start) == 1
    return TEXT.partition(start)[2].partition(end)[0]


def test_each_room_has_a_line() -> None:
    listed = re.findall(r"^\| `(\S+)` \|", between(ROOMS, "<!-- end of rooms -->"), re.MULTILINE)
    there = {"lua", "loadtest", "examples"}
    for top in ("engine", "persister", "lua", "loadtest"):
        files = [path.relative_to(ROOT) for kind in KINDS for path in (ROOT / top).rglob(kind)]
        there |= {"/".join(path.parts[:2]) for path in files if len(path.parts) > ROOM_DEPTH}
    assert len(listed) == len(set(listed))
    assert set(listed) == there


def test_the_way_of_one_redemption_is_short_and_goes_through_what_exists() -> None:
    steps = re.findall(r"^\d+\. `(\S+)`", between(WAY, "<!-- end -->"), re.MULTILINE)
    assert steps
    assert len(steps) <= STEPS_MAX
    assert len(steps) == len(set(steps))
    assert not [step for step in steps if not (ROOT / step).exists()]


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_files_named_in_the_text_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:engine|lua|persister|loadtest|tests|docs)/[\w/]+(?:\.\w+)?)`", text))
    assert not {name for name in named if not (ROOT / name).exists()}
