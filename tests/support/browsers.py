"""Pages in browsers: calls with a browser key, and everything of the answer that a page can see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from engine.control import api_keys

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.control.change import ControlPlane
    from tests.support.deployment import Merchant

ORIGIN: Final = "https://shop.example"
FREE: Final[dict[str, Any]] = {"guard_requests_per_min": 0}
"""Settings without the limit of calls."""
_VARIES: Final = frozenset(("date", "request-id"))


@dataclass(frozen=True)
class Seen:
    """An answer, without what differs between any two."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def code(self) -> str:
        return str(orjson.loads(self.body).get("code", ""))

    def header(self, name: str) -> str | None:
        return dict(self.headers).get(name.lower())


@dataclass(frozen=True)
class Page:
    """A page with a browser key, of the worker that a merchant calls."""

    merchant: Merchant
    key: str
    origin: str | None = ORIGIN

    async def post(self, path: str, body: object, **headers: str) -> Seen:
        return await self.send("POST", path, body, headers)

    async def send(self, method: str, path: str, body: object, headers: Mapping[str, str]) -> Seen:
        sent = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        if self.origin is not None:
            sent["Origin"] = self.origin
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = None if body is None else orjson.dumps(body)
        url = self.merchant.url + path
        async with self.merchant.session.request(method, url, data=data, headers=sent) as answer:
            kept = ((name.lower(), value) for name, value in answer.headers.items())
            seen = tuple(sorted(item for item in kept if item[0] not in _VARIES))
            return Seen(answer.status, seen, await answer.read())

    async def redeem(self, code: str, user: str = "ann", **fields: object) -> Seen:
        return await self.post("/v1/redemptions", {"code": code, "user": user, **fields})


async def page_of(
    plane: ControlPlane, merchant: Merchant, *campaigns: str, origins: tuple[str, ...] = (ORIGIN,)
) -> Page:
    """Return a page with a new browser key for these campaigns."""
    made = await api_keys.create_for_browsers(plane, "page", campaigns=campaigns, origins=origins)
    return Page(merchant, made.value.key)
