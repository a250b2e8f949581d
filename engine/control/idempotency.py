"""Idempotency records of admin calls: a repeated call with the same Idempotency-Key gets the first answer.

A record is a row that is written in the transaction of the change, so a crash leaves both or neither. The
record holds the answer, encrypted with the caller's API key. The answer may contain a new API key, which must
not be stored in clear (promise P7). PostgreSQL has only a digest of the caller's API key, so only a repeated
call, which brings the key, can decrypt the answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from redis.exceptions import RedisError

from engine.errors import ContractViolation, Refusal, StoreUnavailable
from engine.queries import queries
from engine.store import idempotency as store_records
from engine.store.deployment_id import require_own

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

    from engine.database import Database
    from engine.postgres_types import Connection

WINDOW_S: Final = 86_400  # an answer is stored for at least this long
FORGET_MAX: Final = 1000  # idempotency records removed at a time
CLAIM_TRIES: Final = 3
NONCES_MAX: Final = 8  # as many as a record in Redis has (lua/lib/idempotency.lua)
_NONCE_BYTES: Final = 12  # NIST SP 800-38D, section 8.2.2: random, 96 bits
_PURPOSE: Final = b"redeem: seals the receipts of administration"
_OF_IMPORTS: Final = b"import"  # as a fingerprint; that of a change is longer
_ASK_TIMEOUT_S: Final = 2.0
_SQL: Final = queries(__package__, "idempotency")


class Replayed(Exception):
    """The call was made before. Carries the first answer.

    Attributes:
        status: HTTP status of the first answer.
        document: body of the first answer.
    """

    def __init__(self, status: int, document: dict[str, object]) -> None:
        super().__init__("answered before")
        self.status = status
        self.document = document


@dataclass(frozen=True, slots=True)
class IdempotencyRecord:
    """The idempotency record of one call: reserved, then stored, in the transaction of the change.

    Attributes:
        actor: id of the caller's API key.
        secret: the caller's API key itself, or the secret of its session (``engine.pages.sessions``).
        key: the Idempotency-Key.
        fingerprint: equal for two calls that are the same (``fingerprint``).
        status: HTTP status of the answer if the change succeeds.
        show: turns the result of the change into the body of the answer.
        nonce: 8 bytes of the hash of a signed call's nonce; empty if the call is not signed.
    """

    actor: str
    secret: str = field(repr=False)
    key: str
    fingerprint: bytes
    status: int
    show: Callable[[Any], dict[str, object]]
    nonce: bytes = b""

    async def claim(self, connection: Connection) -> None:
        """Reserve the Idempotency-Key for this call. Waits for a running call with the same key.

        Raises:
            Replayed: the same call was made before.
            Refusal: ``idempotency_key_reused``: another call was made with the key.
        """
        for _ in range(CLAIM_TRIES):
            nonces = [self.nonce] if self.nonce else []
            if await connection.fetchval(_SQL["claim"], self.actor, self.key, self.fingerprint, nonces):
                if await connection.fetchval(_SQL["has_import"], import_digest(self.actor, self.key)):
                    raise Refusal("idempotency_key_reused")
                return
            row = await connection.fetchrow(_SQL["kept"], self.actor, self.key)
            if row is None:  # ``forget_old`` has just removed it
                continue
            if row["fingerprint"] != self.fingerprint:
                raise Refusal("idempotency_key_reused")
            raise Replayed(row["status"], self._open(row["answer"]))
        raise ContractViolation("an idempotency record can be neither reserved nor read")

    async def use_nonce(self, database: Database) -> None:
        """Add the nonce of a repeated call to the record. Call it after ``Replayed``.

        Raises:
            Refusal: ``request_replayed``: it is there already, so this is not a retry.
            StoreUnavailable, OutcomeUnknown: PostgreSQL cannot be used.
        """
        if not self.nonce:
            return
        async with database.transaction() as connection:
            done = await connection.execute(_SQL["use_nonce"], self.actor, self.key, self.nonce, NONCES_MAX)
        if done != "UPDATE 1":
            raise Refusal("request_replayed")

    async def refuse_if_used(self, redis: Redis, connection: Connection) -> None:
        """Refuse the change early if an operation on a code used the key. Nothing is reserved.

        Raises:
            Refusal: ``idempotency_key_reused``.
            RedisError, OSError: Redis cannot be asked.
        """
        deployment = await connection.fetchrow(_SQL["deployment"])
        name = store_records.name(self.actor, self.key)
        if deployment is not None and await store_records.is_used_otherwise(
            redis, deployment["shards"], name, self.fingerprint
        ):
            raise Refusal("idempotency_key_reused")

    async def reserve(self, redis: Redis, connection: Connection) -> None:
        """Reserve the Idempotency-Key on its home shard, too, where operations on codes see it.

        Raises:
            Refusal: ``idempotency_key_reused``: an operation on a code used the key.
            ForeignStore, RedisError, OSError: Redis cannot be used; the key is not reserved.
        """
        await _reserve(redis, connection, self.actor, self.key, self.fingerprint)

    async def keep(self, connection: Connection, value: object) -> None:
        """Store the answer; ``value`` is the result of the change."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = self._cipher().encrypt(nonce, orjson.dumps(self.show(value)), self._context())
        await connection.execute(_SQL["keep"], self.actor, self.key, self.status, nonce + sealed)

    def _open(self, answer: bytes) -> dict[str, object]:
        try:
            document = self._cipher().decrypt(answer[:_NONCE_BYTES], answer[_NONCE_BYTES:], self._context())
        except InvalidTag as error:
            raise ContractViolation(
                "an idempotency record cannot be decrypted with the key that wrote it"
            ) from error
        opened: dict[str, object] = orjson.loads(document)
        return opened

    def _cipher(self) -> AESGCM:
        """The API key is 256 random bits, so one HMAC derives a key from it (RFC 5869, section 3.3)."""
        return AESGCM(hmac.digest(self.secret.encode(), _PURPOSE, "sha256"))

    def _context(self) -> bytes:
        """Return the associated data: an answer that is moved to another row cannot be decrypted."""
        return orjson.dumps([self.actor, self.key, self.fingerprint.hex()])


async def _reserve(redis: Redis, connection: Connection, actor: str, key: str, change: bytes) -> None:
    deployment = await connection.fetchrow(_SQL["deployment"])
    name = store_records.name(actor, key)
    home = store_records.home_shard(name, deployment["shards"])
    await require_own(redis, [home], deployment["id"])
    if not await store_records.reserve(redis, deployment["shards"], name, change):
        raise Refusal("idempotency_key_reused")


def import_digest(actor: str, key: str) -> bytes:
    """Return what is kept of the Idempotency-Key of an import."""
    return hashlib.sha256(f"{actor}\0{key}".encode()).digest()


async def bind_to_imports(redis: Redis, connection: Connection, actor: str, key: str) -> None:
    """Bind an Idempotency-Key to imports, for changes and operations on codes. Call it last in a transaction.

    ``engine.imports`` itself knows which import has the key. Only digests of it are kept: a merchant
    may take a printed code as the key.

    Raises:
        Refusal: ``idempotency_key_reused``: a change or an operation on a code used the key.
        StoreUnavailable: Redis cannot be used; the key is not bound.
    """
    if await is_used(connection, actor, key):
        raise Refusal("idempotency_key_reused")
    try:
        async with asyncio.timeout(_ASK_TIMEOUT_S):
            await _reserve(redis, connection, actor, key, _OF_IMPORTS)
    except (RedisError, OSError) as error:
        raise StoreUnavailable(
            f"Redis cannot bind the Idempotency-Key: {str(error) or 'no answer'}"
        ) from error


async def is_used(connection: Connection, actor: str, key: str) -> bool:
    """Whether an admin call was made with this Idempotency-Key."""
    return await connection.fetchrow(_SQL["kept"], actor, key) is not None


def fingerprint(method: str, path: str, body: bytes) -> bytes:
    """Return a 128-bit BLAKE2b digest of a call; two calls with one Idempotency-Key must have the same.

    ``body`` is JSON or empty. Spaces and the order of members in the JSON make no difference.
    """
    canonical = orjson.dumps(orjson.loads(body), option=orjson.OPT_SORT_KEYS) if body else b""
    call = b"\0".join((method.encode(), path.encode("utf-8", "surrogateescape"), canonical))
    return hashlib.blake2b(call, digest_size=16).digest()


async def forget_old(database: Database) -> None:
    """Remove up to FORGET_MAX idempotency records that are older than WINDOW_S. Call it periodically.

    Raises:
        StoreUnavailable: PostgreSQL cannot be used.
    """
    async with database.connection() as connection:
        await connection.execute(_SQL["forget"], WINDOW_S, FORGET_MAX)
