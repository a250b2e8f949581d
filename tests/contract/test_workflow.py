"""What runs for contributors calls the project's own commands, on the declared versions of Python."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Final

import yaml

ROOT: Final = Path(__file__).parents[2]
MAKEFILE: Final = (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_workflow_runs_the_declared_versions_of_python() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = re.findall(r"Python :: (\d\.\d+)", "\n".join(project["classifiers"]))
    job = workflow["jobs"]["test"]
    assert job["strategy"]["matrix"]["python-version"] == declared
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci/run").is_file()


def test_actions_are_pinned_to_a_whole_version() -> None:
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    used = re.findall(r"uses: (\S+)", workflow)
    assert used
    assert not [action for action in used if not re.fullmatch(r"[\w/-]+@v\d+\.\d+\.\d+", action)]


def test_hooks_install_nothing_and_call_make_targets() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    assert {repository["repo"] for repository in config["repos"]} == {"local"}
    assert {hook["language"] for hook in hooks} == {"system"}
    for hook in hooks:
        command, target = hook["entry"].split()
        assert command == "make"
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)


def test_contributing_lists_every_make_target() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `make ([\w-]+)` \|", text, re.MULTILINE))
    targets = set(re.findall(r"^([\w-]+):(?!=)", MAKEFILE, re.MULTILINE))
    explained = set(re.findall(r"^([\w-]+):.*##", MAKEFILE, re.MULTILINE))
    assert listed <= targets
    assert explained <= listed
