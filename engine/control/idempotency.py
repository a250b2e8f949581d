"""Idempotency records of administration: a call sent again with its Idempotency-Key is answered again.

An idempotency record is a row that is written in the transaction of the change: there are both or neither,
wherever the engine dies. It holds the answer sealed under the caller's own API key, of which
PostgreSQL has only a digest: an answer may show what must not be at rest, such as a new API key
(promise P7), and whoever sends the call again brings with it what opens the answer.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from engine.errors import ContractViolation, Refusal
from engine.queries import queries

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.database import Database
    from engine.postgres_types import Connection

WINDOW_S: Final = 86_400  # how long an answer is kept at least
FORGET_MAX: Final = 1000  # idempotency records removed at a time
CLAIM_TRIES: Final = 3
_NONCE_BYTES: Final = 12  # NIST SP 800-38D, section 8.2.2: random, 96 bits
_PURPOSE: Final = b"redeem: seals the receipts of administration"
_SQL: Final = queries(__package__, "idempotency")


class Replayed(Exception):
    """The call was made before. This is what it was answered.

    Attributes:
        status: of the answer.
        document: its body.
    """

    def __init__(self, status: int, document: dict[str, object]) -> None:
        super().__init__("answered before")
        self.status = status
        self.document = document


@dataclass(frozen=True, slots=True)
class IdempotencyRecord:
    """The idempotency record of one call: reserved, then stored, within the transaction of its change.

    Attributes:
        actor: id of the API key that calls.
        secret: that API key itself.
        key: the Idempotency-Key.
        fingerprint: what two calls with the same key must share (``fingerprint``).
        status: of the answer, should the change succeed.
        show: makes the answer's body of what the change made.
    """

    actor: str
    secret: str = field(repr=False)
    key: str
    fingerprint: bytes
    status: int
    show: Callable[[Any], dict[str, object]]

    async def claim(self, connection: Connection) -> None:
        """Make this call the one that does it; waits for another with the same key that is under way.

        Raises:
            Replayed: it was done before, by the same call.
            Refusal: ``idempotency_key_reused``: by another.
        """
        for _ in range(CLAIM_TRIES):
            if await connection.fetchval(_SQL["claim"], self.actor, self.key, self.fingerprint):
                return
            row = await connection.fetchrow(_SQL["kept"], self.actor, self.key)
            if row is None:  # it was just forgotten
                continue
            if row["fingerprint"] != self.fingerprint:
                raise Refusal("idempotency_key_reused")
            raise Replayed(row["status"], self._open(row["answer"]))
        raise ContractViolation("an idempotency record can be neither claimed nor read")

    async def keep(self, connection: Connection, value: object) -> None:
        """Write down the answer for what the change has made."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = self._cipher().encrypt(nonce, orjson.dumps(self.show(value)), self._context())
        await connection.execute(_SQL["keep"], self.actor, self.key, self.status, nonce + sealed)

    def _open(self, answer: bytes) -> dict[str, object]:
        try:
            document = self._cipher().decrypt(answer[:_NONCE_BYTES], answer[_NONCE_BYTES:], self._context())
        except InvalidTag as error:
            raise ContractViolation(
                "an idempotency record cannot be opened with the key that wrote it"
            ) from error
        opened: dict[str, object] = orjson.loads(document)
        return opened

    def _cipher(self) -> AESGCM:
        """The API key is 256 random bits, so one HMAC derives a key from it (RFC 5869, section 3.3)."""
        return AESGCM(hmac.digest(self.secret.encode(), _PURPOSE, "sha256"))

    def _context(self) -> bytes:
        """What an answer is bound to: moved to another row, it does not open."""
        return orjson.dumps([self.actor, self.key, self.fingerprint.hex()])


async def is_used(connection: Connection, actor: str, key: str) -> bool:
    """Whether a change of administration was made under the key."""
    return await connection.fetchrow(_SQL["kept"], actor, key) is not None


def fingerprint(method: str, path: str, body: bytes) -> bytes:
    """What two calls with one Idempotency-Key must share: 128 bits of BLAKE2b.

    ``body`` is JSON or empty. Of JSON neither spaces nor the order of members count.
    """
    canonical = orjson.dumps(orjson.loads(body), option=orjson.OPT_SORT_KEYS) if body else b""
    seen = b"\0".join((method.encode(), path.encode("utf-8", "surrogateescape"), canonical))
    return hashlib.blake2b(seen, digest_size=16).digest()


async def forget_old(database: Database) -> None:
    """Remove some idempotency records whose time is over; whoever calls this now and then removes them all.

    Raises:
        StoreUnavailable: PostgreSQL cannot be used.
    """
    async with database.connection() as connection:
        await connection.execute(_SQL["forget"], WINDOW_S, FORGET_MAX)
