"""Judges each attempt to redeem, hold or check a code, before the code is looked up."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from engine.api.checks import Client
from engine.api.outcomes import Refused
from engine.guard.addresses import one_spelling, parse_network, read_source
from engine.guard.behaviour import Behaviour
from engine.guard.labels import places_of, sources_of
from engine.guard.limits import Limit, limit_table
from engine.guard.not_shared import NotShared
from engine.guard.one_peer import PeerShares
from engine.guard.rules import ATTEMPTS, CHECKS, ENFORCE, LIMITS, OFF, REQUESTS, Rules

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet

    from engine.guard.block_table import BlockTable
    from engine.guard.labels import Note, Source
    from engine.guard.limits import LimitTable
    from engine.settings import Settings
    from engine.store.configuration import CachedBlock, CachedKey


class Teller(Protocol):
    """Tells ``note`` of each attempt that was decided; nobody if it is None."""

    note: Callable[[Note], None] | None


BLOCKED: Final = "blocked"
TOO_MANY: Final = "too_many_attempts"


class RequestsLeft(NamedTuple):
    """What the limit of requests says of a call.

    Attributes:
        wait_s: after how many seconds to try again; 0 if the call may go on.
        left: how many calls the source may make now.
        full_s: after how many seconds without a call it may make the whole burst.
    """

    wait_s: int
    left: int
    full_s: int


class Guard:
    """Judges the attempts of one worker.

    Attributes:
        watches: whether there is anything to judge by. While it is False, ``judge`` need not be called.
        only_limit: the limit that alone judges an attempt with a server key to redeem; None if there is
            more to look at. What it admits (``admit_now``) need not be judged.
        tables: what sources have tried, by the name of the limit.
        rules: the modes of its rules.
        behaviour: what became of attempts.
        not_shared: what is not shared with the other workers at present.
    """

    def __init__(
        self,
        settings: Settings,
        blocks: BlockTable,
        rules: Rules | None = None,
        *,
        browser_keys: AbstractSet[str] = frozenset(),
    ) -> None:
        """Without ``rules`` the modes are those of the settings. ``browser_keys``: the ids, now and later."""
        self._blocks = blocks
        self.rules = rules or Rules(settings)
        self.behaviour = Behaviour(settings, self.rules, browser_keys)
        self.not_shared = NotShared()
        limits = {
            ATTEMPTS: Limit(settings.guard_attempts_per_min, settings.guard_attempts_burst),
            CHECKS: Limit(settings.guard_checks_per_min, settings.guard_checks_burst),
            REQUESTS: Limit(settings.guard_requests_per_min, settings.guard_requests_burst),
        }
        self.tables = {
            name: limit_table(limit, settings.guard_sources_max)
            for name, limit in limits.items()
            if limit.per_minute
        }
        self._peers = PeerShares(settings)
        self._attempts: LimitTable | None = None  # None: this limit is off
        self._checks: LimitTable | None = None
        self._requests: LimitTable | None = None  # of browser keys; ``judge`` has nothing to do with it
        self.only_limit: LimitTable | None = None
        self.watches = self._has_blocks = False
        self._update_watches()
        blocks.on_change = self._update_watches
        self.rules.on_change(self._update_watches)

    def _update_watches(self) -> None:
        self._has_blocks = len(self._blocks) > 0
        self._attempts, self._checks, self._requests = (
            None if self.rules.modes[name] == OFF else self.tables.get(name) for name in LIMITS
        )
        self.only_limit = None if self._has_blocks else self._attempts
        self.watches = self._has_blocks or self._attempts is not None or self._checks is not None

    def tell_of_attempts(self, teller: Teller) -> None:
        """Have this set to what takes notes of decided attempts, now and after each change of a rule."""

        def update() -> None:
            teller.note = self.behaviour.note

        self.rules.on_change(update)
        update()

    def block_of(self, source: Source) -> CachedBlock | None:
        """Return what is in force for a source: an allow if there is one, else a block, else None."""
        api_key, kind, subject = source
        network = (parse_network(subject) or subject) if kind == "network" else None
        user, device = (subject if kind == name else "" for name in ("user", "device"))
        return self._blocks.verdict(api_key, user, network, device)

    def judge(
        self,
        api_key: CachedKey,
        user: str,
        client: Client | None,
        *,
        units: int = 1,
        is_check: bool = False,
        user_is_signed: bool = False,
    ) -> Refused | None:
        """Return the refusal of an attempt on ``units`` codes; None if it may go on, and then it is charged.

        Where limits are only observed, what they would refuse is counted, goes on and is not charged: so the
        count is that of the refusals which enforcing would make.

        The source is what the caller says about its customer. The address of the caller itself is that of a
        merchant's backend, so it does not count. Of a browser key it is that of the customer, and ``client``
        has it; what the page says of its user is not limited, or anybody could use up the limit of others.
        With ``user_is_signed`` the merchant's backend says it (``engine.guard.user_tokens``), so it is.
        """
        if self._has_blocks and (verdict := self._verdict(api_key, user, client)):
            if verdict.action == "allow":
                return None
            return Refused(BLOCKED, f"The {verdict.kind} is blocked: blk_{verdict.id}.")
        attempts, checks = self._attempts, self._checks if is_check else None
        if attempts is None and checks is None:
            return None
        believed = api_key.origins is None or user_is_signed
        sources = sources_of(api_key.id, user if believed else "", *places_of(client))
        now = time.monotonic()
        if attempts is not None:
            look = attempts.admit if checks is None else attempts.wait_s
            if wait_s := look(sources, units, now):
                return self._too_many(ATTEMPTS, wait_s)
        if checks is not None:
            if wait_s := checks.admit(sources, units, now):
                return self._too_many(CHECKS, wait_s)
            if attempts is not None:
                attempts.charge(sources, units, now)
        return None

    def _too_many(self, rule: str, wait_s: float) -> Refused | None:
        if self.rules.modes[rule] == ENFORCE:
            return Refused(TOO_MANY, retry_after_s=math.ceil(wait_s))
        self.behaviour.observe(rule)
        return None

    def judge_request(self, api_key: CachedKey, address: str | None) -> RequestsLeft | None:
        """Judge a call with a browser key by the address that it comes from; None if it is not limited.

        It is charged if it may go on.
        """
        source = one_spelling(address) if address else ""
        if not source:
            return None
        if self._is_allowed(api_key, address):
            return None
        now = time.monotonic()
        if one_peer := self._peers.note(source, now):
            self.behaviour.alert_of_proxy(one_peer)
        if self._requests is None:
            return None
        sources: list[Source] = [(api_key.id, "network", source)]
        wait_s = self._requests.admit(sources, 1, now)
        if wait_s and self.rules.modes[REQUESTS] != ENFORCE:
            self.behaviour.observe(REQUESTS)
            wait_s = 0.0
        left, full_s = self._requests.left(sources[0], now)
        return RequestsLeft(math.ceil(wait_s), left, math.ceil(full_s))

    def asks(self, api_key: CachedKey, address: str | None, user: str, *, always: bool) -> bool:
        """Whether a call with a browser key must solve a challenge first. What is allowed need not.

        ``user``: as the merchant's backend says it; empty if a page may say anything.
        """
        asked = self.behaviour.asked
        if not (always or asked):
            return False
        if not (always or asked.is_asked(api_key.id, user, one_spelling(address) if address else "")):
            return False
        return not self._is_allowed(api_key, address)

    def _is_allowed(self, api_key: CachedKey, address: str | None) -> bool:
        if not self._has_blocks:
            return False
        verdict = self._verdict(api_key, "", Client(ip=address))
        return verdict is not None and verdict.action == "allow"

    def _verdict(self, api_key: CachedKey, user: str, client: Client | None) -> CachedBlock | None:
        source = None if client is None or client.ip is None else read_source(client.ip)
        device = None if client is None else client.device
        return self._blocks.verdict(api_key.id, user, source, device)
