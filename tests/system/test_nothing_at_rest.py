"""No usable code at rest (P7): not in a byte of either database's files, a log, a metric or a record.

`redeem up` with servers of its own runs through everything that a code can do; then every file that it
has left is searched for every code that was typed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from engine.settings import Settings
from tests.support.cli import redeem
from tests.support.deployment import Merchant, Process, client_session
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from pathlib import Path


IMPORTED = [f"printed-elsewhere-{number:04}-Xy" for number in range(8)]


@pytest.mark.timeout(300)
async def test_no_file_log_or_metric_has_a_code_that_was_used(own_directory: Path) -> None:
    data = own_directory / "data"
    settings = Settings(
        data_dir=data,
        port=0,
        workers=2,
        shards=2,
        log_level="debug",
        hold_ttl_s=60,
    )
    log = own_directory / "log"
    with Process(settings, "engine.cli", "up", log=log) as up:
        _, _, url = (await asyncio.to_thread(up.line)).partition(" ")
        key = redeem(settings, "keys", "create", "--name", "all", "--scopes", "redeem,read,events,admin")
        codes = [
            *minted(settings, "--kind", "single"),
            *minted(settings, "--kind", "multi", "--max-uses", "3"),
            *minted(settings, "--kind", "balance", "--amount", "500", "--currency", "EUR"),
        ]
        printed = redeem(settings, "campaigns", "create", "--name", "Printed", "--kind", "single", "--active")
        (own_directory / "printed.csv").write_text("code\n" + "\n".join(IMPORTED) + "\n")
        redeem(settings, "codes", "import", printed, str(own_directory / "printed.csv"))
        async with client_session() as session:
            merchant = Merchant(session, url, key)
            await use(merchant, codes)
            await use(merchant, IMPORTED)

            async def persisted() -> bool:
                _, page = await merchant.call("GET", "/v1/events?limit=1000")
                return len(page["items"]) > len(codes)

            await wait_until_async(persisted)
            seen = [str((await merchant.call("GET", "/v1/redemptions?limit=1000"))[1])]
            seen.append(str((await merchant.call("GET", "/v1/audit-log"))[1]))
            seen.append(str((await merchant.call("GET", "/v1/events?limit=1000"))[1]))
            async with session.get(url + "/metrics") as metrics:
                seen.append(await metrics.text())
        await asyncio.to_thread(up.stop, 60)
    files = [file for file in data.rglob("*") if file.is_file() and file.name != "mint-keys"]
    everything = b"".join(file.read_bytes() for file in [*files, log]) + "".join(seen).encode()
    assert everything.count(b"confirmed") > 5  # it is what was done that is searched
    assert codes[0][-4:].encode() in everything
    assert log.stat().st_size > 1000
    folded = everything.upper()
    for code in (*codes, *IMPORTED):
        for form in (code, code.replace("-", ""), code.replace("-", " ")):
            assert form.upper().encode() not in folded


def minted(settings: Settings, *kind: str) -> list[str]:
    campaign = redeem(settings, "campaigns", "create", "--name", "Sale", *kind, "--active")
    rows = redeem(settings, "codes", "mint", campaign, "--count", "8").splitlines()[1:]
    return [row.partition(",")[0] for row in rows]


async def use(merchant: Merchant, codes: list[str]) -> None:
    """Everything, also what is refused."""

    async def post(path: str, *, key: str = "", **fields: Any) -> Any:  # noqa: ANN401 - JSON
        headers = {"Idempotency-Key": key} if key else {}
        status, body = await merchant.call("POST", path, json=fields, headers=headers)
        assert status < 500, body
        return body

    some: dict[str, Any] = {"amount": "up_to_balance"}
    for at, code in enumerate(codes):
        who: dict[str, Any] = {"code": code, "user": f"user-{at}", "order": f"order-{at}"}
        await post("/v1/codes/check", code=code)
        held = await post("/v1/holds", key=f"hold {code[-3:]} {at}", **who, amount=50 if at >= 16 else None)
        if "id" in held:
            end = f"/v1/holds/{held['id']}/{'confirm' if at % 2 else 'release'}"
            await post(end, key=code)
            await post(end, key=f"end {held['id']}")
        done = await post("/v1/redemptions", **who, **(some if at >= 16 else {}), metadata={"typed": code})
        await post("/v1/redemptions", **who)
        await post("/v1/redemptions", code=code[:-1] + "0", user="a guesser")
        await post("/v1/redemptions", code=code, user=code)
        if "id" in done and at % 3 == 0:
            await post(f"/v1/redemptions/{done['id']}/rollback", reason="a change of mind")
            await post(f"/v1/redemptions/{done['id']}/rollback", reason=code)
        if at % 7 == 0:
            await post("/v1/codes/void", code=code, reason="leaked")
            await merchant.call("POST", "/v1/codes/void", json={"reason": "leaked", code: 1})
    together = [{"code": code} for code in codes[:6]]
    await post("/v1/redemptions/combined", codes=together, user="ann", order="several", key="several")
    await post("/v1/redemptions/batch", items=[{"code": code, "user": "ann"} for code in codes[:10]])
