"""Peer: FastAPI and PostgreSQL. It locks the code's row (SELECT … FOR UPDATE), updates it, inserts an event.

It runs in its own virtual environment, on uvicorn with uvloop and httptools. Its commits are on disk.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any, Final

import asyncpg
import uvicorn
from fastapi import FastAPI, Header
from fastapi.responses import JSONResponse
from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CONNECTIONS: Final = 32
AUTHORIZATION: Final = f"Bearer {os.environ['PEER_KEY']}"
FIND: Final = """
SELECT code.redeemed_at, campaign.state, campaign.id, campaign.amount, campaign.currency
FROM codes AS code JOIN campaigns AS campaign ON campaign.id = code.campaign
WHERE code.code = $1 FOR UPDATE OF code
"""
MARK: Final = "UPDATE codes SET redeemed_at = now(), redeemed_by = $2 WHERE code = $1"
RECORD: Final = """
INSERT INTO events (campaign, last4, user_name, amount, currency) VALUES ($1, $2, $3, $4, $5)
RETURNING id, at
"""


class Asked(BaseModel):
    """The body of a request."""

    code: str
    user: str


class FastapiPeer:
    """The connections."""

    pool: Any = None


@contextlib.asynccontextmanager
async def _lifespan(_: FastAPI) -> AsyncIterator[None]:
    FastapiPeer.pool = await asyncpg.create_pool(
        os.environ["PEER_DATABASE_URL"], min_size=CONNECTIONS, max_size=CONNECTIONS
    )
    yield
    await FastapiPeer.pool.close()


app = FastAPI(lifespan=_lifespan)


@app.post("/v1/redemptions")  # type: ignore[untyped-decorator] # FastAPI is not in that environment either
async def redeem(asked: Asked, authorization: Annotated[str, Header()] = "") -> JSONResponse:
    """Redeem one code and respond like the engine."""
    if authorization != AUTHORIZATION:
        return _refusal(401, "unauthenticated")
    last4 = asked.code[-4:]
    async with FastapiPeer.pool.acquire() as connection, connection.transaction():
        found = await connection.fetchrow(FIND, asked.code)
        if found is None:
            return _refusal(404, "code_not_found")
        if found["state"] != "active":
            return _refusal(409, "campaign_inactive")
        if found["redeemed_at"] is not None:
            return _refusal(409, "already_redeemed")
        amount, currency = found["amount"], found["currency"]
        await connection.execute(MARK, asked.code, asked.user)
        event = await connection.fetchrow(RECORD, found["id"], last4, asked.user, amount, currency)
    return JSONResponse(
        {
            "id": str(event["id"]),
            "status": "redeemed",
            "campaign": found["id"],
            "code": "••••-••••-••••-" + last4,
            "user": asked.user,
            "amount": amount,
            "currency": currency,
            "redeemed_at": event["at"].isoformat(timespec="milliseconds"),
            "replayed": False,
        }
    )


def _refusal(status: int, code: str) -> JSONResponse:
    return JSONResponse(
        {"status": status, "code": code}, status_code=status, media_type="application/problem+json"
    )


class _Server(uvicorn.Server):  # type: ignore[misc] # uvicorn is not in that environment either
    """Prints the ready line with its address."""

    async def startup(self, sockets: Any = None) -> None:  # noqa: ANN401 - as uvicorn has it
        await super().startup(sockets)
        sys.stdout.write(f"ready http://127.0.0.1:{self.config.port}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _Server(
        uvicorn.Config(
            app,
            host="127.0.0.1",
            port=int(os.environ["PEER_PORT"]),
            loop="uvloop",
            http="httptools",
            access_log=False,
            log_level="warning",
            backlog=1024,
        )
    ).run()
