"""The documents agree with the code."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from engine.api.problems import PROBLEMS
from engine.cli import COMMANDS
from engine.settings import Settings, variable
from persister.metrics import PERSISTED
from tests.support.metric_names import metric_names

ROOT = Path(__file__).parents[2]
README_LINES_MAX = 120
SETTINGS_PAGE = ROOT / "docs" / "settings.md"
ROW = re.compile(r"^\| `(REDEEM_\w+)` \|.*$", re.MULTILINE)
NEW = (
    "\n## New settings, to be moved to their topic\n\n| variable | default | what it does |\n|---|---|---|\n"
)


def settings_rows() -> dict[str, str]:
    rows = {}
    for item in fields(Settings):
        default = "" if item.default in {"", None} else f"`{item.default}`"
        name = variable(item.name)
        rows[name] = f"| `{name}` | {default} | {item.metadata['help']} |"
    return rows


def rewritten(page: str) -> str:
    """The page with its rows as they should be: known ones in place, new ones at the end."""
    rows = settings_rows()
    kept = ROW.sub(lambda found: rows.pop(found[1], "removed"), page)
    kept = kept.replace("removed\n", "")
    return kept + NEW + "\n".join(rows.values()) + "\n" if rows else kept


def test_every_promise_that_is_named_is_defined_in_the_readme() -> None:
    defined = set(
        re.findall(r"^\| (P\d+) \| \S", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    named = {
        (promise, file)
        for folder in ("engine", "persister", "loadtest", "tests", "docs", "lua")
        for pattern in ("*.py", "*.lua", "*.sql", "*.md")
        for file in (ROOT / folder).rglob(pattern)
        for promise in re.findall(r"\bP(?:romise )?\d{1,2}\b", file.read_text(encoding="utf-8"))
        if promise != "P0"
    }
    assert named
    assert not {(promise, str(file)) for promise, file in named if promise not in defined}


def test_no_entry_of_the_changelog_is_there_twice_or_cut_off() -> None:
    """A merge of two branches that both add entries can do that."""
    entries = re.findall(
        r"^- .*(?:\n  .*)*", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert entries
    assert [entry for entry in entries if entries.count(entry) > 1] == []
    assert [entry for entry in entries if not entry.endswith(".")] == []


def test_settings_page_lists_every_setting_once_with_its_default() -> None:
    page = SETTINGS_PAGE.read_text(encoding="utf-8")
    written = [found[0] for found in ROW.finditer(page)]
    message = "python -m tests.contract.test_docs writes it anew"
    assert sorted(written) == sorted(settings_rows().values()), message
    assert NEW not in page


def test_a_setting_without_a_row_and_a_row_without_a_setting_are_corrected() -> None:
    rows = settings_rows()
    first, *others = rows.values()
    page = rewritten("\n".join(["| `REDEEM_GONE` | `1` | left |", *others, ""]))
    assert "REDEEM_GONE" not in page
    assert page.endswith(NEW + first + "\n")


def test_readme_is_read_in_one_go() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES_MAX


def test_api_document_lists_every_problem_with_its_status() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (\d{3}) \|", text, re.MULTILINE))
    assert rows == {code: str(status) for code, (status, _) in PROBLEMS.items()}


def test_operations_document_names_every_command() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    missing = [name for name in COMMANDS if f"`redeem {name}" not in text]
    assert not missing


def test_operations_document_lists_every_metric(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    there = metric_names(tmp_path)
    rows = "".join(re.findall(r"^\| `redeem_.*?\|", text, re.MULTILINE))
    assert set(re.findall(r"`(redeem_\w+)", rows)) == there
    assert f"{PERSISTED._name}_total" in there  # those of the persister are among them


def test_operations_document_names_only_tests_that_there_are() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    section = text.partition("## Failure of each part")[2].partition("\n## ")[0]
    named = re.findall(r"`((?:tests/|test_)[\w/.…\[\]]*)`", section)
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    tests = {
        name for file in files for name in re.findall(r"def (test_\w+)", file.read_text(encoding="utf-8"))
    }
    known = tests | {file.name for file in files} | {str(file.relative_to(ROOT)) for file in files}
    missing = [name for name in named if not any(there.startswith(name.partition("…")[0]) for there in known)]
    assert named
    assert not missing


if __name__ == "__main__":
    SETTINGS_PAGE.write_text(rewritten(SETTINGS_PAGE.read_text(encoding="utf-8")), encoding="utf-8")
