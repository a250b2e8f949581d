"""Checks that Redis is durable: its version, its role and its configuration.

Promise P2 depends on it. A worker checks before it uses a new connection (``redis_watch``), `redeem up` and
`redeem serve` check before they start, and `redeem doctor` shows all findings.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import NoPermissionError, ResponseError

from engine.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis.asyncio import Redis

    from engine.settings import Settings

REDIS_VERSION_MIN: Final = (7, 0)
VALKEY_VERSION_MIN: Final = (8, 0)
_NO_FUNCTION: Final = "redeem_none"
# The required configuration. REDEEM_DURABILITY=memory accepts other values for the parameters in _DISK.
_WANTED: Final = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory-policy": "noeviction",
}
_DISK: Final = frozenset(("appendonly", "appendfsync", "no-appendfsync-on-rewrite"))
_CONSEQUENCES: Final = {
    "appendonly": "nothing survives a restart",
    "appendfsync": "Redis answers before the data is on disk",
    "no-appendfsync-on-rewrite": "nothing is fsynced while the file is rewritten",
    "maxmemory-policy": "Redis may forget redeemed codes when memory is short",
}


class Verdict(enum.StrEnum):
    """Result of a check."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """The finding of one check. ``do`` is what to type or change; empty if nothing is to be done."""

    check: str
    verdict: Verdict
    says: str
    do: str = ""


class StoreUnsafe(StoreUnavailable):
    """Redis may lose what it acknowledges, so nothing is redeemed on it."""


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """The answers of INFO and CONFIG GET. A section that Redis refuses to show is empty."""

    server: dict[str, Any]
    persistence: dict[str, Any]
    memory: dict[str, Any]
    replication: dict[str, Any]
    configuration: dict[str, str]


async def read_facts(redis: Redis) -> StoreFacts:
    """Read all facts in one round trip.

    Raises:
        RedisError, OSError: there is no answer.
    """
    async with redis.pipeline(transaction=False) as pipe:
        for section in ("server", "persistence", "memory", "replication"):
            pipe.info(section)
        pipe.config_get(*_WANTED)
        answers = await pipe.execute(raise_on_error=False)
    server, persistence, memory, replication, configuration = (
        {} if isinstance(answer, ResponseError) else answer for answer in answers
    )
    return StoreFacts(
        server=server,
        persistence=persistence,
        memory=memory,
        replication=replication,
        configuration={_text(name): _text(value) for name, value in configuration.items()},
    )


async def check_scripts(redis: Redis) -> list[Finding]:
    """Check that the user may load, call and delete scripts, with one that does not exist.

    Raises:
        RedisError, OSError: there is no answer.
    """
    for command in (
        ("FUNCTION", "LIST", "LIBRARYNAME", _NO_FUNCTION),
        ("FUNCTION", "LOAD", "#!lua name="),  # no library has an empty name
        ("FUNCTION", "DELETE", _NO_FUNCTION),
        ("FCALL", _NO_FUNCTION, 0),
    ):
        try:
            await redis.execute_command(*command)  # type: ignore[no-untyped-call] # redis-py says no types
        except NoPermissionError as error:
            advice = "let its user call FUNCTION and FCALL"
            return [Finding("redis scripts", Verdict.WRONG, str(error), advice)]
        except ResponseError:
            continue
    return []


async def require_safe(redis: Redis, settings: Settings) -> list[Finding]:
    """Refuse a Redis that is less durable than the settings require. Return the warnings.

    Raises:
        StoreUnsafe: Redis is less durable; the message says on one line what is wrong and what to type.
        RedisError, OSError: Redis cannot be asked.
    """
    found = check(await read_facts(redis), settings.durability)
    wrong = [finding for finding in found if finding.verdict is Verdict.WRONG]
    if wrong:
        raise StoreUnsafe("; ".join(f"{finding.check}: {finding.says}; {finding.do}" for finding in wrong))
    return [finding for finding in found if finding.verdict is Verdict.WARNING]


def check(facts: StoreFacts, durability: str) -> list[Finding]:
    """Return all findings about these facts. ``durability`` is the setting."""
    return [_version(facts), _role(facts), *_configuration(facts, durability)]


def _version(facts: StoreFacts) -> Finding:
    for product, field, least in (
        ("Valkey", "valkey_version", VALKEY_VERSION_MIN),
        ("Redis", "redis_version", REDIS_VERSION_MIN),
    ):
        version = str(facts.server.get(field, ""))
        numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
        if not numbers:
            continue
        if numbers < least:
            needed = ".".join(map(str, least))
            says = f"{product} {version} is too old: its scripts cannot run"
            return Finding("redis version", Verdict.WRONG, says, f"use {product} {needed} or later")
        return Finding("redis version", Verdict.OK, f"{product} {version}")
    return Finding(
        "redis version",
        Verdict.WARNING,
        "cannot be read: INFO is refused",
        "make sure that it is at least Redis 7.0 or Valkey 8",
    )


def _role(facts: StoreFacts) -> Finding:
    role = facts.replication.get("role")
    replicas = int(facts.replication.get("connected_slaves", 0))
    if role == "slave":
        return Finding(
            "redis role", Verdict.WRONG, "this is a replica", "set REDEEM_REDIS_URL to the primary"
        )
    if role != "master":
        return Finding("redis role", Verdict.WARNING, "cannot be read: INFO is refused")
    if replicas:
        return Finding(
            "redis role",
            Verdict.OK,
            f"primary, replicas: {replicas}; after a failover, a replica that lacks events is refused",
        )
    return Finding("redis role", Verdict.OK, "primary")


def _configuration(facts: StoreFacts, durability: str) -> Iterator[Finding]:
    known = dict(facts.configuration)
    # If CONFIG is refused, INFO still shows two of the parameters.
    if "aof_enabled" in facts.persistence:
        known.setdefault("appendonly", "yes" if facts.persistence["aof_enabled"] else "no")
    if "maxmemory_policy" in facts.memory:
        known.setdefault("maxmemory-policy", str(facts.memory["maxmemory_policy"]))
    for name, wanted in _WANTED.items():
        value = known.get(name)
        if value is None:
            yield Finding(
                f"redis {name}",
                Verdict.WARNING,
                "cannot be read: CONFIG is refused, as on a managed Redis",
                f"make sure in the provider's settings that {name} is {wanted}",
            )
        elif value == wanted:
            yield Finding(f"redis {name}", Verdict.OK, value)
        else:
            yield _differing(name, value, durability)


def _differing(name: str, value: str, durability: str) -> Finding:
    says = f"is {value}, so {_CONSEQUENCES[name]}"
    do = f"CONFIG SET {name} {_WANTED[name]}, and set it in the configuration file"
    if name not in _DISK:
        return Finding(f"redis {name}", Verdict.WRONG, says, do)
    if durability == "memory":
        return Finding(f"redis {name}", Verdict.WARNING, f"{says}; REDEEM_DURABILITY=memory accepts that", do)
    return Finding(f"redis {name}", Verdict.WRONG, says, f"{do}, or accept it with REDEEM_DURABILITY=memory")


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
