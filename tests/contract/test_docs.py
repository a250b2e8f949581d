"""What the documents say is what there is."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from prometheus_client import REGISTRY

from engine.api.problems import PROBLEMS
from engine.cli import COMMANDS
from engine.observability.metrics import store_metrics
from engine.settings import Settings, variable
from persister.metrics import OWNER

ROOT = Path(__file__).parents[2]
START, END = "<!-- settings: checked by tests/contract/test_docs.py -->\n", "<!-- end of settings -->"


def settings_table() -> str:
    rows = ["| variable | default | what it does |", "|---|---|---|"]
    for item in fields(Settings):
        default = "" if item.default in {"", None} else f"`{item.default}`"
        rows.append(f"| `{variable(item.name)}` | {default} | {item.metadata['help']} |")
    return "\n".join(rows) + "\n"


def test_readme_lists_every_setting_with_its_default() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    written = readme[readme.index(START) + len(START) : readme.index(END)]
    assert written == settings_table(), "python -m tests.contract.test_docs writes it anew"


def test_api_document_lists_every_problem_with_its_status() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (\d{3}) \|", text, re.MULTILINE))
    assert rows == {code: str(status) for code, (status, _) in PROBLEMS.items()}


def test_operations_document_names_every_command() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    missing = [name for name in COMMANDS if f"`redeem {name}" not in text]
    assert not missing


def test_operations_document_lists_every_metric() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    of_redis = store_metrics({"used_memory": 1, "maxmemory": 0}, {"eventloop_duration_aof_sum": 1})
    there = {
        metric.name + ("_total" if metric.type == "counter" else "")
        for metric in [*REGISTRY.collect(), *of_redis]
        if metric.name.startswith("redeem_")
    }
    rows = "".join(re.findall(r"^\| `redeem_.*?\|", text, re.MULTILINE))
    assert set(re.findall(r"`(redeem_\w+)", rows)) == there
    assert OWNER._name in there  # those of the persister are among them


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
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    head, _, rest = text.partition(START)
    readme.write_text(head + START + settings_table() + END + rest.partition(END)[2], encoding="utf-8")
