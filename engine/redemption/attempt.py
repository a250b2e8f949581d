"""The base class of all operations on one code.

Each operation is a subclass with its own script in ``lua``. ``call_fields`` writes the fields of an attempt
into the script call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from engine.api.outcomes import Refused, Retry
from engine.encoding import canonical
from engine.errors import Fault, Overloaded, StoreUnavailable
from engine.lookup.decoder import masked
from engine.lookup.resolver import PendingLookup
from engine.redemption.assertions import MISMATCHES, mismatch_detail
from engine.redemption.call_fields import CallFields
from engine.store import idempotency, keys
from engine.store.configuration import NO_CAMPAIGN
from engine.times import instant

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.api.checks import Client
    from engine.api.outcomes import Outcome, Success
    from engine.lookup.decoder import Issued
    from engine.redemption.assertions import Assertions
    from engine.store.configuration import CachedKey
    from engine.store.dispatcher import Dispatcher

    OnDone = Callable[[Outcome], None]
    """Gets the outcome of an attempt. Called exactly once."""

_WHOLE_ID_DASHES: Final = 2


class Attempt(CallFields, PendingLookup):
    """One operation on one code, from the request to the outcome.

    A subclass names its script and the script's word for a success (``success``). It lists the fields that
    two requests with one idempotency key must share (``fingerprint_fields``). It turns the words of a success
    into a value (``succeeded``).
    """

    __slots__ = (
        "actor", "amount", "api_key", "asserted", "batch", "campaign", "client", "configuration",
        "dispatcher", "fingerprint", "idempotency_name", "key", "key_reserved", "last4", "location",
        "metadata", "nonce", "on_done", "order", "serial", "user",
    )  # fmt: skip

    success: ClassVar[str]
    is_guarded: ClassVar[bool] = False  # whether the guard judges it
    is_check: ClassVar[bool] = False  # whether it also counts for the limit of checks
    user_is_signed: bool = False  # whether a page has proved by a token who its user is
    on_done: OnDone

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        api_key: CachedKey | None,
        user: str = "",
        amount: int | str = "",
        order: str = "",
        key: str | None = None,
        actor: str = "",
        asserted: Assertions | None = None,
        metadata: dict[str, Any] | None = None,
        client: Client | None = None,
    ) -> None:
        self.dispatcher = dispatcher
        kept = metadata is not None and dispatcher.settings.metadata_kept
        self.metadata = canonical(metadata).decode() if kept else ""  # as JSON; empty if it is not kept
        self.asserted = asserted
        self.client = client
        self.configuration = dispatcher.configuration
        self.api_key = api_key
        self.actor = api_key.id if api_key else actor
        self.user = user
        self.amount = amount
        self.order = order
        self.key = key
        self.fingerprint = b""
        self.nonce = b""
        self.idempotency_name = idempotency.name(self.actor, key) if key else ""
        self.key_reserved = False
        self.campaign = NO_CAMPAIGN  # until a code is bound
        self.normalised = b""  # until a text is read

    def fingerprint_fields(self) -> list[object]:
        """The fields that two requests with the same idempotency key must share."""
        raise NotImplementedError

    def succeeded(self, words: list[str], *, replayed: bool) -> Success:
        """Make the value of a success.

        ``words`` are the words of the script's first line after the word of success; then, as one more word,
        the other lines, if there are any.
        """
        raise NotImplementedError

    def sign(self, nonce: bytes) -> None:
        """Take the mark of a signed request's nonce (``idempotency.nonce_mark``), behind the fingerprint."""
        self.nonce = nonce
        if self.fingerprint:
            self.fingerprint += nonce

    # binding to a code

    def found(self, code: Issued) -> None:
        """Bind to the code, and send the attempt to its shard."""
        self.bind_code(code)
        if refusal := self.mismatch():
            self.refused(refusal)
        else:
            self.dispatcher.send(self)

    def mismatch(self) -> str:
        """The refusal if the code is not for this API key, or not as the request asserts; else empty."""
        if self.api_key is not None and not self.api_key.may_use(self.campaign.id):
            return "code_not_found"
        return "" if self.asserted is None else self.asserted.mismatch(self.campaign)

    def bind_code(self, code: Issued) -> None:
        """Bind to a code that was looked up, and make the fingerprint."""
        self.bind_record(code.batch.campaign, code.batch.id, code.serial, code.last4)
        if self.key:
            known = idempotency.known_half(self.user, self.order, [(self.batch, self.serial)])
            self.fingerprint = idempotency.fingerprint(known, self.fingerprint_fields()) + self.nonce

    def bind_record(self, campaign: str, batch: int, serial: int, last4: str) -> None:
        """Bind to a code that a record names."""
        configuration = self.configuration
        self.campaign = configuration.campaigns[campaign]
        self.batch, self.serial, self.last4 = batch, serial, last4
        self.location = keys.locate_code(serial, configuration.shards, self.campaign.pinned_shard)

    def bind_shard(self, shard: int) -> None:
        """Bind to a shard, for an attempt that is not about a code."""
        self.campaign, self.batch, self.serial, self.last4 = NO_CAMPAIGN, 0, 0, ""
        self.location = keys.CodeLocation(shard, 0, 0)

    @property
    def masked(self) -> str:
        """The masked code, for the response."""
        return masked(self.configuration.batches[self.batch], self.last4)

    # outcome

    def answered(self, answer: bytes) -> None:
        """Turn the script's answer into an outcome. If expired holds are in the way, end them and retry."""
        first_line, _, other_lines = answer.decode().partition("\n")
        words = first_line.split(" ") + ([other_lines] if other_lines else [])
        replayed = words[0] == "replayed"
        if replayed:
            del words[0]
        outcome = words[0]
        if outcome == self.success:
            success = self.succeeded(words[1:], replayed=replayed)
            self.finish("replayed" if replayed else outcome, success)
        elif outcome == "holds_expired":
            self.dispatcher.retry_after_expiry(self)
        elif outcome == "stale_hold":
            self.on_done(Retry.STALE_HOLD)
        elif outcome == "in_use":
            self.failed(Overloaded("a combined order is about to take the code"))
        elif outcome == "unpublished":
            self.failed(StoreUnavailable("the shard does not have the campaign yet"))
        elif outcome == "held_by_another_order":
            self.finish(outcome, Refused(outcome, retry_after_s=int(words[1])))
        else:
            self.refused(outcome, replayed=replayed)

    def refused(self, outcome: str, *, replayed: bool = False) -> None:
        """Finish with a refusal."""
        detail = ""
        if outcome == "invalid_amount":
            detail = self.amount_expected()
        elif outcome in MISMATCHES:
            detail = mismatch_detail(outcome, self.campaign)
        self.finish("replayed" if replayed else outcome, Refused(outcome, detail, replayed=replayed))

    def amount_expected(self) -> str:
        """Which amounts this attempt may have: the detail of ``invalid_amount``."""
        campaign = self.campaign
        if campaign.kind == "balance":
            problem = "is required" if self.amount == "" else "must be at least 1"
            return (
                f"amount {problem} for a code of the kind balance: a whole number of minor units of"
                f' {campaign.currency}, or "up_to_balance".'
            )
        if campaign.amount is None:
            return "The codes of this campaign have no amount: leave amount out."
        return f"amount must be {campaign.amount}, the face value in minor units, or be left out."

    def failed(self, fault: Fault) -> None:
        """Finish with a fault."""
        self.refused(fault.code)

    def still_allowed(self) -> bool:
        """Whether its API key is still valid. If not, the attempt is refused."""
        if self.configuration.is_valid(self.api_key):
            return True
        self.refused("unauthenticated")
        return False

    def finish(self, counted_as: str, outcome: Outcome) -> None:
        """Count the outcome, and pass it to ``on_done``."""
        self.dispatcher.telemetry.outcome(self.operation, counted_as, self.campaign.id)
        if self.is_guarded and (note := self.dispatcher.note) is not None and self.api_key is not None:
            hidden = counted_as == "code_not_found" and self.campaign is not NO_CAMPAIGN
            if not hidden:  # to another key it is a code
                known = self.api_key.origins is None or self.user_is_signed  # a page may say anything
                user = self.user if known else ""
                note((self.api_key.id, user, self.client, counted_as, self.normalised))
        self.on_done(outcome)


def event_of(word: str, shard: int) -> tuple[str, str]:
    """Id and time (ISO 8601) of the event that an answer names.

    ``word`` is the stream id within the code's shard. In an idempotency record that was rebuilt from the
    ledger it is the complete event id, because the code may have been on another shard then.
    """
    event_id = word if word.count("-") == _WHOLE_ID_DASHES else f"{shard}-{word}"
    return event_id, instant(int(event_id.split("-")[1]))


def number(word: str) -> int | None:
    """Parse a number in an answer; None if the word is empty."""
    return int(word) if word else None
