"""Clients that common generators make from docs/openapi.json redeem a code.

The one in TypeScript needs what ``make client-test`` installs.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import pkgutil
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.support.deployment import engine_in_process, issue
from tests.support.openapi import PATH

if TYPE_CHECKING:
    from engine.control.change import ControlPlane

TYPESCRIPT: Final = Path(__file__).parent / "typescript"
BINARIES: Final = Path(sys.executable).parent
PACKAGE: Final = "redemption_engine_client"
# The generator takes no body of another type than JSON; this one is a stream.
LEFT_OUT: Final = ["POST /v1/campaigns/{id}/imports"]


async def run(*command: str, cwd: Path, **environment: str) -> str:
    """Run a command that must succeed, and return what it has written."""
    path = f"{BINARIES}{os.pathsep}{os.environ['PATH']}"  # the generator calls ruff
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=os.environ | {"PATH": path} | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    written, _ = await process.communicate()
    assert process.returncode == 0, written.decode()
    return written.decode()


async def test_a_client_generated_in_python_redeems_a_code(
    plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = ("-m", "openapi_python_client", "generate", "--meta", "none", "--path", str(PATH))
    written = await run(sys.executable, *generate, "--output-path", str(tmp_path / PACKAGE), cwd=tmp_path)
    warnings = [line.split(" within ")[0] for line in written.splitlines() if line.startswith("WARNING")]
    assert warnings == [f"WARNING parsing {operation}" for operation in LEFT_OUT], written
    monkeypatch.syspath_prepend(tmp_path)
    package = importlib.import_module(PACKAGE)
    for module in pkgutil.walk_packages(package.__path__, f"{PACKAGE}."):
        importlib.import_module(module.name)
    models: Any = importlib.import_module(f"{PACKAGE}.models")
    redeem: Any = importlib.import_module(f"{PACKAGE}.api.redeeming.redeem")
    shown: Any = importlib.import_module(f"{PACKAGE}.api.redeeming.show_redemption")
    _, (code,) = await issue(plane, 1, amount=500, currency="EUR")
    async with (
        engine_in_process(plane) as merchant,
        package.AuthenticatedClient(base_url=merchant.url, token=merchant.key) as client,
    ):
        body = models.RedeemRequest(code=code, user="ann", order="o-1", currency="EUR")
        made = await redeem.asyncio(client=client, body=body, idempotency_key="order-1")
        again = await redeem.asyncio(client=client, body=body, idempotency_key="order-1")
        refused = await redeem.asyncio(client=client, body=body)
        record = await shown.asyncio(made.id, client=client)
    assert (made.status, made.amount, made.order, made.replayed) == ("redeemed", 500, "o-1", False)
    assert (again.id, again.replayed) == (made.id, True)
    assert isinstance(refused, models.Problem)
    assert (refused.status, refused.code) == (409, "already_redeemed")
    assert (record.id, record.user, record.history) == (made.id, "ann", [])
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]


@pytest.mark.skipif(not (TYPESCRIPT / "node_modules").is_dir(), reason="make client-test installs it")
async def test_a_client_generated_in_typescript_redeems_a_code(plane: ControlPlane, tmp_path: Path) -> None:
    shutil.copy(TYPESCRIPT / "redeem.ts", tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    (tmp_path / "node_modules").symlink_to(TYPESCRIPT / "node_modules")
    tools = tmp_path / "node_modules" / ".bin"
    await run(str(tools / "openapi-typescript"), str(PATH), "-o", "api.d.ts", cwd=tmp_path)
    strict = ("--strict", "--module", "nodenext", "--target", "es2022", "--lib", "es2022,dom")
    await run(str(tools / "tsc"), *strict, "redeem.ts", cwd=tmp_path)
    _, (code,) = await issue(plane, 1, amount=500, currency="EUR")
    async with engine_in_process(plane) as merchant:
        given = {"REDEEM_URL": merchant.url, "REDEEM_KEY": merchant.key, "REDEEM_CODE": code}
        written = await run("node", "redeem.js", cwd=tmp_path, **given)
    assert json.loads(written) == {
        "status": "redeemed",
        "amount": 500,
        "replayed": True,
        "refusal": "already_redeemed",
        "listed": [True],
    }
