"""The units for systemd and the file for Compose name commands, settings and services that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from engine.cli import COMMANDS
from engine.settings import Settings, load, variable

ROOT: Final = Path(__file__).parents[2]
COMPOSE: Final = ROOT / "deploy" / "compose" / "compose.yaml"
UNITS: Final = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
PROGRAM: Final = "/opt/redeem/bin/redeem"
SETTINGS: Final = {variable(item.name) for item in fields(Settings)}
LONG_RUNNING: Final = {"up", "serve", "persist", "deliver", "init"}


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    return document


def engine_services() -> dict[str, dict[str, Any]]:
    services = compose()["services"].items()
    return {name: service for name, service in services if "redemption-engine" in service["image"]}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_each_unit_runs_a_command_of_its_name(unit: Path) -> None:
    text = unit.read_text(encoding="utf-8")
    (command,) = re.findall(rf"^ExecStart={PROGRAM} (.+)$", text, re.MULTILINE)
    assert unit.name == f"redeem-{command}.service"
    assert command in COMMANDS
    assert set(re.findall(r"^Environment=(\w+)=", text, re.MULTILINE)) <= SETTINGS
    needed = set(re.findall(r"redeem-\w+\.service", text))
    assert needed <= {each.name for each in UNITS}


def test_every_long_running_command_has_a_unit() -> None:
    assert {unit.stem.removeprefix("redeem-") for unit in UNITS} == LONG_RUNNING


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not on this machine")
    program = Path(sys.executable).parent / "redeem"
    for unit in UNITS:
        text = unit.read_text(encoding="utf-8").replace(PROGRAM, str(program))
        (tmp_path / unit.name).write_text(text, encoding="utf-8")
    argv = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / unit.name) for unit in UNITS)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "redeem" in line]
    assert (done.returncode, ours) == (0, [])


def test_compose_is_as_the_specification_has_it() -> None:
    """Checked by `compose-spec` (PyPI), where it is installed. Variables and merges are resolved first."""
    compose_spec = pytest.importorskip("compose_spec", reason="compose-spec is not installed")
    document = re.sub(r"\$\{[^}]*\}", "1", json.dumps(compose()))
    compose_spec.PyCompose.from_json(document).validate()
    strange = json.loads(document)
    strange["services"]["serve"]["restarts"] = "always"
    with pytest.raises(ValueError, match="restarts"):
        compose_spec.PyCompose.from_json(json.dumps(strange))


def test_compose_runs_commands_that_there_are_with_settings_that_there_are() -> None:
    services = engine_services()
    assert {name: service["command"] for name, service in services.items()} == {
        name: [name] for name in LONG_RUNNING - {"up"}
    }
    for service in services.values():
        load(dict.fromkeys(service["environment"], "x"))  # an unknown name would be refused
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert set(service["environment"]) == {"REDEEM_REDIS_URL", "REDEEM_DATABASE_URL", "REDEEM_MINT_KEYS"}


def test_compose_lets_the_front_end_use_the_lesser_role() -> None:
    roles = {
        name: service["environment"]["REDEEM_DATABASE_URL"].split("//")[1].split(":")[0]
        for name, service in engine_services().items()
    }
    owner, front = "redeem", "redeem_front"
    assert roles == {"init": owner, "persist": owner, "serve": front, "deliver": front}
    assert "CREATE ROLE redeem_front LOGIN" in COMPOSE.with_name("front_role.sh").read_text(encoding="utf-8")


def test_compose_depends_on_services_and_volumes_that_there_are() -> None:
    document = compose()
    for service in document["services"].values():
        for name, how in service.get("depends_on", {}).items():
            health = document["services"][name].get("healthcheck", {})
            assert how["condition"] == "service_completed_successfully" or "test" in health
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            is_path = source.startswith(".")
            assert (COMPOSE.parent / source).exists() if is_path else source in document["volumes"]


def test_compose_keeps_redis_durable() -> None:
    words = compose()["services"]["valkey"]["command"]
    told = dict(zip(words[1::2], words[2::2], strict=True))
    assert (told["--appendonly"], told["--appendfsync"]) == ("yes", "always")
    assert (told["--no-appendfsync-on-rewrite"], told["--maxmemory-policy"]) == ("no", "noeviction")


def test_the_page_names_every_variable_of_compose() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    used = set(re.findall(r"\$\{(\w+)", COMPOSE.read_text(encoding="utf-8")))
    assert used
    assert not [name for name in used if f"`{name}`" not in page]
