"""What is prepared for combined orders over several shards: Redis counts it already, the ledger not yet."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from engine.store import idempotency, keys
from engine.store.prepared_codes import decode_prepared
from persister.reconcile.comparisons import ComparedValue, parse_hold_record

if TYPE_CHECKING:
    from collections.abc import Iterable

    from persister.reconcile.comparisons import ComparedHold


class PreparedValues:
    """What one shard has prepared at one moment. ``records``: the values of ``keys.prepared``."""

    def __init__(self, shard: int, records: Iterable[bytes]) -> None:
        self._counts: Counter[ComparedValue] = Counter()
        self._taken: set[ComparedValue] = set()  # states of codes that were fresh
        self._holds: dict[ComparedValue, ComparedHold | None] = {}
        for code in (code for record in records for code in decode_prepared(record).codes):
            if code.hold:
                item = ComparedValue("holds", shard, (code.hold,))
                self._holds[item] = parse_hold_record(code.hold_record.encode())
                continue
            amount = int(code.amount or 0)
            place = code.batch, code.serial
            user = idempotency.bucketed(code.user, keys.USER_BUCKETS)[1]
            self._taken.add(ComparedValue("states", shard, place))
            self._counts[ComparedValue("uses", shard, place)] += 1
            self._counts[ComparedValue("balances", shard, place)] += amount
            self._counts[ComparedValue("users", shard, (code.campaign, user))] += 1
            self._counts[ComparedValue("campaigns", shard, (code.campaign, "uses"))] += 1
            self._counts[ComparedValue("campaigns", shard, (code.campaign, "spent"))] += amount

    def without(self, item: ComparedValue, found: Any) -> Any:  # noqa: ANN401 - a number or a hold
        """The value that was found in Redis, as it were if nothing was prepared."""
        if item in self._taken and found == keys.HELD:
            return keys.FRESH
        if item in self._holds and found is None:
            return self._holds[item]
        return found - self._counts[item] if item in self._counts else found
