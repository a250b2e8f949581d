"""Writes the fields of an attempt that every script takes into the script call."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from engine.store import keys
from engine.store.call import COLUMNS, SIGNATURE
from engine.store.configuration import NO_CAMPAIGN
from engine.store.event_lines import about_json, cause_json, ending_json
from engine.store.idempotency import bucketed
from lua import loader

if TYPE_CHECKING:
    from engine.store.call import Call
    from engine.store.configuration import CachedCampaign, ConfigurationCache
    from engine.store.keys import CodeLocation
    from lua.loader import Script


def load_script(name: str, *more: str) -> Script:
    """Load a script that takes attempts. ``more`` names the script's own fields, after the common fields.

    Raises:
        ScriptError: the script binds other keys, arguments or fields.
    """
    return loader.load(
        name,
        keys=("events_key", "version_key", "holds_key", "expiry_key", "held_key"),
        arguments=SIGNATURE,
        attempt=(*COLUMNS, *more),
    )


class CallFields:
    """The part of an attempt that its script needs.

    Attributes:
        campaign: ``NO_CAMPAIGN`` if the attempt is not about a code.
        idempotency_name, fingerprint: of its idempotency record; both empty if it has no key.
        key_reserved: its idempotency key is reserved on the key's home shard.
    """

    __slots__ = ()

    script: ClassVar[Script]
    # Whether the attempt is refused if the code's batch or range is void. If False, only the code's own state
    # counts.
    heeds_voids: ClassVar[bool] = True
    # The operation, as metrics have it: the name of its script; of a variant, that of its base class.
    operation: ClassVar[str] = ""
    # Whether the script's first own field is the ending of the attempt's events; as its `script` says.
    sends_ending: ClassVar[bool] = False

    configuration: ConfigurationCache
    campaign: CachedCampaign
    batch: int
    serial: int
    last4: str
    location: CodeLocation
    user: str
    amount: int | str
    order: str
    key: str | None
    actor: str
    idempotency_name: str
    fingerprint: bytes
    key_reserved: bool
    metadata: str

    def __init_subclass__(cls) -> None:
        """Read from the script what it takes."""
        script: Script | None = getattr(cls, "script", None)
        if script is not None:
            cls.sends_ending = "ending" in script.attempt
            cls.operation = cls.operation or script.name

    def write_to(self, call: Call) -> None:
        """Append the fields that every script takes; then perhaps the ending."""
        shard = self.location.shard
        campaign_at = state_at = 0
        call.about.append(about_json(self.batch, self.serial, self.last4, self.user))
        call.cause.append(cause_json(self.order or None, self.key or None, self.actor))
        number = len(call.about)
        if self.campaign is not NO_CAMPAIGN:
            configuration = self.configuration
            campaign = configuration.campaigns[self.campaign.id]
            campaign_at = call.key(keys.campaign(shard, campaign.id))
            if not (self.heeds_voids and configuration.is_void(self.batch, self.serial)):
                state_at = call.key(keys.state(shard, self.batch, self.location.segment))
            if campaign.kind == "multi":
                call.used_at[number] = call.key(keys.uses(shard, self.batch))
                call.used_field[number] = self.serial
            elif campaign.kind == "balance":
                segment, call.used_field[number] = keys.spent_location(self.location)
                call.used_at[number] = call.key(keys.spent(shard, self.batch, segment))
            if campaign.per_user_limited and self.user:
                bucket, digest = bucketed(self.user, keys.USER_BUCKETS)
                call.users_at[number] = call.key(keys.users(shard, campaign.id, bucket))
                call.user_digest_at[number] = call.raw(digest)
        call.campaign_at.append(campaign_at)
        call.state_at.append(state_at)
        call.offset.append(self.location.offset)
        if self.amount != "":
            call.amount[number] = str(self.amount)
        if self.idempotency_name:
            bucket, digest = bucketed(self.idempotency_name, keys.IDEMPOTENCY_BUCKETS)
            call.idempotency_at[number] = call.records_at(bucket)
            call.idempotency_digest_at[number] = call.raw(digest)
            call.raw(self.fingerprint)  # directly after it
        if self.sends_ending:
            call.own_fields.append(ending_json(self.metadata, self.fingerprint))
