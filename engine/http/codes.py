"""The calls about single codes, beyond redeeming one: holds, rollbacks, checks, several codes together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from engine.api import code_bodies
from engine.errors import Refusal
from engine.http.requests import idempotency_key, response
from engine.redemption import hold as holds
from engine.redemption.check import Check
from engine.redemption.combined import Combined
from engine.redemption.correct import Adjustment, Rollback, Unvoiding, Voiding, correct, on_record
from engine.redemption.hold import Hold
from engine.store import events

if TYPE_CHECKING:
    from engine.database import Database
    from engine.http.gate import Gate
    from engine.ledger.redemptions import Records
    from engine.redemption.core import Core
    from engine.settings import Settings
    from engine.store.configuration import ApiKey


class CodeHandlers:
    """What a worker answers about codes with."""

    def __init__(
        self, *, settings: Settings, gate: Gate, core: Core, records: Records, database: Database
    ) -> None:
        self._settings = settings
        self._gate = gate
        self._core = core
        self._records = records
        self._database = database

    def routes(self) -> list[web.RouteDef]:
        """All of them; each checks its own scope."""
        return [
            web.post("/v1/redemptions/combined", self.redeem_combined),
            web.post("/v1/redemptions/{id}/rollback", self.roll_back),
            web.post("/v1/holds", self.hold),
            web.post("/v1/holds/{id}/confirm", self.confirm),
            web.post("/v1/holds/{id}/release", self.release),
            web.post("/v1/codes/check", self.check),
            web.post("/v1/codes/adjust", self.adjust),
        ]

    async def redeem_combined(self, request: web.Request) -> web.Response:
        """``POST /v1/redemptions/combined``: all of the codes, or none."""
        api_key, body = await self._gate.caller_and_body(request, "redeem")
        key = idempotency_key(request, self._settings)
        asked = code_bodies.parse_combined(body, self._settings)
        return response(await self._core.answer(Combined(self._core, asked, key, api_key)))

    async def roll_back(self, request: web.Request) -> web.Response:
        """``POST /v1/redemptions/{id}/rollback``."""
        api_key, body = await self._gate.caller_and_body(request, "redeem")
        key = idempotency_key(request, self._settings)
        asked = code_bodies.parse_rollback(body, self._settings)
        redemption = events.parse_id(request.match_info["id"])
        if redemption is None:
            raise Refusal("redemption_not_found")
        record = await self._records.one(str(redemption))
        if record["batch"] not in self._core.registry.batches:
            await self._core.registry.refresh()  # redeemed through a worker whose configuration is newer
        await self._core.refuse_code_of(record["batch"], record["serial"], key, asked.reason)
        attempt = Rollback(self._core, redemption, record, asked, key=key, api_key=api_key)
        subject = f"redemption:{redemption}"
        return response(await on_record(self._core, self._database, attempt, subject))

    async def hold(self, request: web.Request) -> web.Response:
        """``POST /v1/holds``."""
        api_key, body = await self._gate.caller_and_body(request, "redeem")
        key = idempotency_key(request, self._settings)
        asked = code_bodies.parse_hold(body, self._settings)
        return response(await self._core.answer(Hold(self._core, asked, key, api_key), asked.code))

    async def confirm(self, request: web.Request) -> web.Response:
        """``POST /v1/holds/{id}/confirm``."""
        api_key, body = await self._gate.caller_and_body(request, "redeem", may_be_empty=True)
        key = idempotency_key(request, self._settings)
        asked = code_bodies.parse_confirm(body)
        hold = request.match_info["id"]
        return response(await holds.confirm(self._core, hold, amount=asked.amount, key=key, api_key=api_key))

    async def release(self, request: web.Request) -> web.Response:
        """``POST /v1/holds/{id}/release``."""
        api_key, body = await self._gate.caller_and_body(request, "redeem", may_be_empty=True)
        key = idempotency_key(request, self._settings)
        code_bodies.parse_release(body)
        return response(await holds.release(self._core, request.match_info["id"], key=key, api_key=api_key))

    async def check(self, request: web.Request) -> web.Response:
        """``POST /v1/codes/check``."""
        api_key, body = await self._gate.caller_and_body(request, "read")
        asked = code_bodies.parse_check(body, self._settings)
        return response(await self._core.answer(Check(self._core, asked, api_key), asked.code))

    async def adjust(self, request: web.Request) -> web.Response:
        """``POST /v1/codes/adjust``."""
        api_key, body = await self._gate.caller_and_body(request, "admin")
        key = idempotency_key(request, self._settings)
        asked = code_bodies.parse_adjust(body, self._settings)
        attempt = Adjustment(self._core, asked.amount, asked.reason, key=key, api_key=api_key)
        return response(await correct(self._core, self._database, attempt, asked.code))

    async def void(
        self, _: web.Request, code: str, /, *, void: bool, reason: str, key: str | None, api_key: ApiKey
    ) -> web.Response:
        """``POST /v1/codes/void`` and ``/v1/codes/unvoid`` with a code (``admin.SingleCodes``)."""
        attempt = (Voiding if void else Unvoiding)(self._core, reason, key=key, api_key=api_key)
        return response(await correct(self._core, self._database, attempt, code))
