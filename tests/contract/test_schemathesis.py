"""Schemathesis calls the engine as docs/openapi.json says that it may be called, and as it may not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from engine.settings import without_settings
from tests.support.openapi import engine_and_caller

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from tests.support.openapi import Caller

HOOKS: Final = Path(__file__).parents[1] / "support" / "schemathesis_hooks.py"
# How to call, and what is left out, with the reason. All checks that are not named are made.
CONFIGURATION: Final = """
base-url = "{url}"
hooks = "{hooks}"
seed = 1
request-timeout = 30
continue-on-failure = true

[auth.openapi.apiKey]
bearer = "{key}"

[generation]
max-examples = {examples}
database = "none"
no-shrink = true

[phases.coverage]  # of every path; the router knows no others either
unexpected-methods = ["DELETE", "PUT"]

[phases.stateful]
enabled = {stateful}

[checks]  # a schema cannot say all: that an end is behind its start, that no other field has the code
positive_data_acceptance.enabled = false

[[operations]]  # it would take away the key that the calls are made with
include-operation-id = "revokeKey"
enabled = false

[[operations]]  # a stream of lines, which is no media type to Schemathesis
include-operation-id = "importCodes"
enabled = false

[[operations]]  # a bad item is refused alone; and with another method the path is that of a redemption
include-operation-id = "redeemBatch"
checks.negative_data_rejection.enabled = false
checks.unsupported_method.enabled = false
checks.allow_header_conformance.enabled = false

[[operations]]  # with another method the path is that of a redemption
include-operation-id = "redeemCombined"
checks.unsupported_method.enabled = false
checks.allow_header_conformance.enabled = false
"""
LEFT_OUT: Final = 2  # operations, as told above


async def configuration(caller: Caller, *, examples: int, stateful: bool) -> str:
    """What Schemathesis is told: how to call, and what there is to be found."""
    single, cards, words = await caller.make_campaigns()
    await caller.call("importCodes", b"code\nFLASH50\n", headers={"Content-Type": "text/csv"}, id="cmp_3")
    ann: dict[str, Any] = {"user": "ann", "order": "o"}
    redeemed = [(await caller.call("redeem", {"code": code, **ann}))["id"] for code in single[10:15]]
    held = [(await caller.call("hold", {"code": code, **ann}))["id"] for code in single[15:]]
    held += [(await caller.call("hold", {"code": code, "amount": 9, **ann}))["id"] for code in cards]
    # By name: values, and the fields that take them; values, and the operations whose paths take them.
    in_fields: dict[str, tuple[list[Any], list[str]]] = {
        "codes": ([*single, *cards, *words, "flash50"], ["code", "items[*].code", "codes[*].code"]),
        "users": (["ann", "bob", "cho"], ["user", "items[*].user"]),
        "orders": (["o", "p"], ["order", "items[*].order"]),
        "amounts": ([1000, 9, 1], ["amount", "items[*].amount", "codes[*].amount"]),
    }
    in_paths = {
        "redemptions": (redeemed, ["showRedemption", "rollBack"]),
        "holds": (held, ["confirmHold", "releaseHold"]),
        "campaigns": (["cmp_1", "cmp_2", "cmp_3"], ["showCampaign", "mintBatch", "listBatches"]),
        "imports": (["imp_1"], ["showImport", "listImportProblems"]),
    }
    told = [
        CONFIGURATION.format(
            url=caller.merchant.url,
            key=caller.merchant.key,
            hooks=HOOKS,
            examples=examples,
            stateful=json.dumps(stateful),
        )
    ]
    for name, (values, _) in (in_fields | in_paths).items():
        told.append(f"[dictionaries.{name}]\nvalues = {json.dumps(values)}")
    told.append("[parameters]")
    for name, (_, fields) in in_fields.items():
        told += [f'"body.{field}" = {{ dictionary = "{name}", probability = 0.8 }}' for field in fields]
    for name, (_, operations) in in_paths.items():
        told.append(f"[[operations]]\ninclude-operation-id = {json.dumps(operations)}")
        told.append(f'parameters."path.id" = {{ dictionary = "{name}", probability = 0.8 }}')
    return "\n".join(told)


async def call_everything(plane: ControlPlane, directory: Path, *, examples: int, stateful: bool) -> None:
    """Run Schemathesis, which must find nothing; it tells how to repeat what it finds."""
    async with engine_and_caller(plane) as caller:
        told = await configuration(caller, examples=examples, stateful=stateful)
        (directory / "schemathesis.toml").write_text(told, encoding="utf-8")
        document = json.dumps(caller.document.with_closed_answers())
        (directory / "openapi.json").write_text(document, encoding="utf-8")
        running = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "schemathesis.cli", "run", "openapi.json", "--no-color"),
            *("--report-json-path", "report.json"),
            cwd=directory,
            env=without_settings(os.environ),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output, _ = await running.communicate()
        finally:
            with contextlib.suppress(ProcessLookupError):
                running.kill()
        assert running.returncode == 0, output.decode()
        report = json.loads((directory / "report.json").read_text(encoding="utf-8"))
        assert report["operations"]["tested"] == len(caller.document.operations) - LEFT_OUT


@pytest.mark.timeout(300)
async def test_whatever_is_sent_is_answered_as_described(plane: ControlPlane, tmp_path: Path) -> None:
    await call_everything(plane, tmp_path, examples=2, stateful=False)


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_whatever_is_sent_is_answered_as_described_at_length(
    plane: ControlPlane, tmp_path: Path
) -> None:
    await call_everything(plane, tmp_path, examples=100, stateful=True)
