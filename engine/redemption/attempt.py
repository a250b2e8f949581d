"""One thing to be done to one code, on its way from the request to the answer.

Each kind of attempt has a script of its own in ``lua``; the fields that all of them take
are written here, and the answers that all of them may give are read here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from engine.api.bodies import instant, plain_problem, problem
from engine.errors import RETRYABLE_STATUS, Fault, OutcomeUnknown, StoreUnavailable
from engine.lookup.decoder import masked
from engine.lookup.resolver import Wanted
from engine.store import idempotency, keys
from engine.store.call import SIGNATURE
from engine.store.configuration import Campaign
from engine.store.idempotency import bucketed
from lua import loader

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.lookup.decoder import Issued
    from engine.redemption.combined import Combined
    from engine.redemption.core import Core
    from engine.store.call import Call
    from engine.store.configuration import ApiKey
    from lua.loader import Script

    OnDone = Callable[[int, bytes, int], None]
    """Takes the status and the body of an answer, and its Retry-After in seconds, 0 for none."""

NO_CAMPAIGN: Final = Campaign("", "", None, None, per_user_limited=False, pinned_shard=None)
_WHOLE_ID_DASHES: Final = 2
READ_AGAIN: Final = 0  # in place of a status: what the attempt was made from is another now
_FIELDS: Final = (
    *("campaign_at", "state_at", "used_at", "users_at", "idempotency_at", "idempotency_before_at"),
    *("offset", "used_field", "user_digest_at", "idempotency_digest_at", "fingerprint_at"),
    *("batch", "serial", "last4", "user", "amount", "order", "key", "actor"),
)


def load_script(name: str, *more: str) -> Script:
    """A script that takes attempts with these fields behind those of every attempt."""
    return loader.load(
        name,
        keys=("events_key", "version_key", "holds_key", "expiry_key", "held_key"),
        arguments=SIGNATURE,
        attempt=(*_FIELDS, *more),
    )


class Attempt(Wanted):
    """An attempt on a code that was typed.

    A subclass names its script, and the word its script answers a success with; it says what two
    requests with one idempotency key must share (``seen``), and what a success is answered (``succeeded``).
    """

    __slots__ = (
        "actor", "amount", "api_key", "batch", "campaign", "claimed", "core", "fingerprint", "key", "last4",
        "on_done", "order", "place", "receipt_name", "serial", "user",
    )  # fmt: skip

    script: ClassVar[Script]
    success: ClassVar[str]
    # Whether a batch or range that was made void voids it; else only the code's own state counts.
    heeds_voids: ClassVar[bool] = True

    campaign: Campaign  # NO_CAMPAIGN where it is about no code after all
    on_done: OnDone

    def __init__(
        self,
        core: Core,
        *,
        api_key: ApiKey | None,
        user: str = "",
        amount: int | str = "",
        order: str = "",
        key: str | None = None,
        actor: str = "",
    ) -> None:
        self.core = core
        self.api_key = api_key
        self.actor = api_key.id if api_key else actor
        self.user = user
        self.amount = amount
        self.order = order
        self.key = key
        self.fingerprint = b""
        self.receipt_name = idempotency.name(self.actor, key) if key else ""
        self.claimed = False

    def texts(self) -> tuple[str | None, ...]:
        """The fields that are kept, and so must not contain the code."""
        return self.user, self.order, self.key

    def seen(self) -> list[object]:
        """What two requests with the same idempotency key must share."""
        raise NotImplementedError

    def succeeded(self, words: list[str], *, replayed: bool) -> bytes:
        """The body of the answer: from the script's words behind the first, and the lines behind that."""
        raise NotImplementedError

    # what the resolver asks (resolver.Wanted)

    def found(self, code: Issued) -> None:
        """Take the identity of the code, and go on to its shard."""
        self.is_about(code)
        self.core.send(self)

    def is_about(self, code: Issued) -> None:
        """Take the identity of the code."""
        registry = self.core.registry
        self.batch, self.serial = code.batch.id, code.serial
        self.campaign = registry.campaigns[code.batch.campaign]
        self.last4 = code.last4
        self.place = keys.place(self.serial, registry.shards, self.campaign.pinned_shard)
        if self.key:
            known = idempotency.known_half(self.user, self.order, [(self.batch, self.serial)])
            self.fingerprint = idempotency.fingerprint(known, self.seen())

    def is_about_none(self, shard: int) -> None:
        """Be about no code, on a shard."""
        self.campaign, self.batch, self.serial, self.last4 = NO_CAMPAIGN, 0, 0, ""
        self.place = keys.Place(shard, 0, 0)

    def is_on(self, campaign: str, batch: int, serial: int, last4: str) -> None:
        """Take the identity of a code that is known from a record."""
        registry = self.core.registry
        self.campaign = registry.campaigns[campaign]
        self.batch, self.serial, self.last4 = batch, serial, last4
        self.place = keys.place(serial, registry.shards, self.campaign.pinned_shard)

    def is_the_code_of(self, other: Attempt) -> None:
        """Take the identity of a code that was found for another attempt."""
        self.batch, self.serial, self.campaign = other.batch, other.serial, other.campaign
        self.last4, self.place = other.last4, other.place

    @property
    def masked(self) -> str:
        """The code as it is shown."""
        return masked(self.core.registry.batches[self.batch], self.last4)

    def refused(self, outcome: str, *, replayed: bool = False) -> None:
        """Answer with a refusal."""
        self.finish("replayed" if replayed else outcome, *plain_problem(outcome, replayed=replayed))

    def failed(self, fault: Fault) -> None:
        """Answer with the fault."""
        self.refused(fault.code)

    def still_allowed(self) -> bool:
        """Whether the key that sent it is still one; it may have been revoked since."""
        if self.api_key is None or self.core.registry.is_valid(self.api_key):
            return True
        self.refused("unauthenticated")
        return False

    # what the batcher asks (batcher.Attempt)

    def write_to(self, call: Call) -> None:
        """Append the fields that every script takes, in their order."""
        shard = self.place.shard
        campaign_at = state_at = used_at = users_at = receipts_at = receipts_before_at = 0
        used_field = user_digest_at = receipt_digest_at = fingerprint_at = 0
        if self.campaign is not NO_CAMPAIGN:
            registry = self.core.registry
            campaign = registry.campaigns[self.campaign.id]
            campaign_at = call.key(keys.campaign(shard, campaign.id))
            if not (self.heeds_voids and registry.is_void(self.batch, self.serial)):
                state_at = call.key(keys.state(shard, self.batch, self.place.segment))
            if campaign.kind == "multi":
                used_at, used_field = call.key(keys.uses(shard, self.batch)), self.serial
            elif campaign.kind == "balance":
                segment, used_field = keys.spent_place(self.place)
                used_at = call.key(keys.spent(shard, self.batch, segment))
            if campaign.per_user_limited and self.user:
                bucket, digest = bucketed(self.user, keys.USER_BUCKETS)
                users_at, user_digest_at = call.key(keys.users(shard, campaign.id, bucket)), call.raw(digest)
        if self.receipt_name:
            bucket, digest = bucketed(self.receipt_name, keys.RECEIPT_BUCKETS)
            receipts_at = call.key(keys.receipts(shard, call.epoch, bucket))
            receipts_before_at = call.key(keys.receipts(shard, call.epoch - 1, bucket))
            receipt_digest_at, fingerprint_at = call.raw(digest), call.raw(self.fingerprint)
        call.fields += (
            campaign_at,
            state_at,
            used_at,
            users_at,
            receipts_at,
            receipts_before_at,
            self.place.offset,
            used_field,
            user_digest_at,
            receipt_digest_at,
            fingerprint_at,
            self.batch,
            self.serial,
            self.last4,
            self.user,
            str(self.amount),
            self.order,
            self.key or "",
            self.actor,
        )

    def answered(self, answer: bytes) -> None:
        """Turn the script's answer into that of the API."""
        head, _, rest = answer.decode().partition("\n")
        words = head.split(" ") + ([rest] if rest else [])
        replayed = words[0] == "replayed"
        if replayed:
            del words[0]
        outcome = words[0]
        if outcome == self.success:
            body = self.succeeded(words[1:], replayed=replayed)
            self.finish("replayed" if replayed else outcome, 200, body)
        elif outcome == "holds_expired":
            self.core.send_when_swept(self)
        elif outcome == "stale_hold":
            self.on_done(READ_AGAIN, b"", 0)
        elif outcome == "unpublished":
            self.failed(StoreUnavailable("the shard does not have the campaign yet"))
        elif outcome == "held_by_another_order":
            seconds = int(words[1])
            self.finish(outcome, *problem(outcome, retry_after_s=seconds), seconds)
        else:
            self.refused(outcome, replayed=replayed)

    def finish(self, outcome: str, status: int, body: bytes, retry_after_s: int = 0) -> None:
        """Count and answer."""
        core = self.core
        core.telemetry.outcome(self.script.name, outcome)
        if status == RETRYABLE_STATUS:
            retry_after_s = core.settings.retry_after_s
        self.on_done(status, body, retry_after_s)

    def event(self, word: str) -> tuple[str, str]:
        """Id and time (ISO 8601) of the event that an answer names.

        The word is its id within the code's shard; or, in a receipt made again, the whole id: the code may
        have been on another shard then.
        """
        event_id = word if word.count("-") == _WHOLE_ID_DASHES else f"{self.place.shard}-{word}"
        return event_id, instant(int(event_id.split("-")[1]))


class Claim(Attempt):
    """Claims the idempotency key of an attempt where the key belongs, before it goes to its code's shard.

    So a key that is used again with a code of another shard is noticed.
    """

    __slots__ = ("_attempt",)
    script = load_script("claim_key")
    success = "claimed"

    def __init__(self, attempt: Attempt | Combined, shard: int) -> None:
        super().__init__(attempt.core, api_key=attempt.api_key, actor=attempt.actor, key=attempt.key)
        self._attempt = attempt
        self.receipt_name, self.fingerprint = attempt.receipt_name, attempt.fingerprint
        self.deadline = attempt.deadline
        self.is_about_none(shard)

    def answered(self, answer: bytes) -> None:
        """Go on, or not."""
        if answer != self.success.encode() and not answer.startswith(b"replayed "):
            self._attempt.refused(answer.decode())
            return
        self._attempt.claimed = True
        try:
            self.core.send(self._attempt)
        except Fault as fault:
            self._attempt.failed(fault)

    def failed(self, fault: Fault) -> None:
        """Nothing was done to the code, whatever became of the claim."""
        self._attempt.failed(StoreUnavailable(str(fault)) if isinstance(fault, OutcomeUnknown) else fault)

    def refused(self, outcome: str, *, replayed: bool = False) -> None:
        """Answer for the attempt."""
        self._attempt.refused(outcome, replayed=replayed)


def number(word: str) -> int | None:
    """A number in an answer, None where there is none."""
    return int(word) if word else None
