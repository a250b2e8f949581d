"""Says what became of each attempt: malformed, unknown, spent or ok. Codes are exact, so the label is, too.

An attempt of a browser key that got the one answer (``redemption.one_answer``) has the label ``ALIKE``
besides. Challenges are asked for by it: asked for by the true reason, they would tell it.

An unknown code was never issued: it is made up or mistyped. The redeem path only appends a ``Note``; a worker
labels its notes every ``guard_share_ms``. What leaves the worker names no code, but has its digest
(``code_digests``).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from engine.guard.addresses import one_spelling
from engine.guard.code_digests import CodeDigests

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.api.checks import Client
    from engine.settings import Settings

    Note = tuple[str, str, Client | None, str, bytes]
    """The id of the API key, the user, the client, the outcome, and the typed code, normalised."""

MALFORMED: Final = 0
UNKNOWN: Final = 1
SPENT: Final = 2
OK: Final = 3
ALIKE: Final = 4
ONE_ANSWER_GIVEN: Final = "one_answer"
"""Noted of a browser key's attempt besides its outcome: it got the one answer, whatever the reason."""
LABELS: Final = {
    "code_malformed": MALFORMED,
    "code_not_found": UNKNOWN,
    "already_redeemed": SPENT,
    "code_void": SPENT,
    "uses_exceeded": SPENT,
    "held_by_another_order": SPENT,
    "redeemed": OK,
    "held": OK,
    "redeemable": OK,
    ONE_ANSWER_GIVEN: ALIKE,
}
"""The label of each outcome that has one. What a campaign or a fault refuses says nothing of the customer."""
Source = tuple[str, str, str]
"""The id of the API key, the kind of the source, and the source."""
REMEMBERED: Final = 4  # codes of one source, for the comparison with the next
_LAST: Final = 4


class Tried(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One attempt, as workers tell each other.

    Attributes:
        digest: of the code, as ``CodeDigests`` makes it.
        weight: 1, or less for a code that looks like one of the same source typed again.
        last4: the last symbols of an unknown code.
    """

    key: str
    user: str
    address: str
    device: str
    label: int
    digest: int
    weight: float = 1.0
    last4: str = ""

    def sources(self) -> list[Source]:
        """Return whom it comes from, the narrowest first."""
        return sources_of(self.key, self.user, self.device, self.address)


def sources_of(key: str, user: str, device: str, address: str) -> list[Source]:
    """Return the sources of an attempt with an API key, the narrowest first. Empty texts name none."""
    sources = [(key, "user", user)] if user else []
    if device:
        sources.append((key, "device", device))
    if address:
        sources.append((key, "network", address))
    return sources


def places_of(client: Client | None) -> tuple[str, str]:
    """Return the device of a client, and the one spelling of its address; empty where there is none."""
    if client is None:
        return "", ""
    return client.device or "", one_spelling(client.ip) if client.ip else ""


class Labelled(NamedTuple):
    """What a worker tells the others: attempts, and how many successes each API key had."""

    tried: list[Tried]
    successes: dict[str, int]


class Labeller:
    """Labels the notes of one worker. It remembers the latest codes of a source for a minute, here only."""

    def __init__(self, settings: Settings) -> None:
        self._kept_s = settings.guard_retyped_s
        self._distance_max = settings.guard_retyped_distance_max
        self._weight = settings.guard_retyped_weight_percent / 100
        self._sources_max = settings.guard_sources_max
        # In a plain dictionary the first one is found slowly once many before it are gone.
        self._latest: OrderedDict[Source | str, list[tuple[float, bytes]]] = OrderedDict()
        self._digests = CodeDigests(settings)

    def __len__(self) -> int:
        return len(self._latest)

    def label(self, notes: Iterable[Note], suspects: Suspected, now_s: float) -> Labelled:
        """Label notes. A success is only told of a source that is suspected, or is now."""
        self._digests.renew()
        tried: list[Tried] = []
        successes: dict[str, int] = {}
        new: set[Source] = set()
        are_suspected = suspects.has_any
        nobody_is = not suspects  # until one is new
        for key, user, client, outcome, code in notes:
            label = LABELS.get(outcome, MALFORMED)
            if label == MALFORMED:
                continue
            if label == OK:
                successes[key] = successes.get(key, 0) + 1
                if nobody_is:
                    continue
            device, address = places_of(client)
            sources = sources_of(key, user, device, address)
            if label == OK and not are_suspected(sources) and new.isdisjoint(sources):
                continue
            digest = self._digests.of(code)
            if label not in {UNKNOWN, ALIKE}:
                one = Tried(key, user, address, device, label, digest)
            else:
                last4 = code[-_LAST:].decode("ascii", "replace") if label == UNKNOWN else ""
                one = Tried(key, user, address, device, label, digest, 1.0, last4)
                if self._is_retyped(sources[0] if sources else key, code, now_s):
                    one = msgspec.structs.replace(one, weight=self._weight)
            new.update(sources)
            nobody_is = nobody_is and not new
            tried.append(one)
        return Labelled(tried, successes)

    def _is_retyped(self, source: Source | str, code: bytes, now_s: float) -> bool:
        """Whether a code is nearly one of the latest of its source. It becomes the latest."""
        latest = self._latest.pop(source, [])
        known = [(at_s, other) for at_s, other in latest if at_s + self._kept_s > now_s and other != code]
        self._latest[source] = [*known[1 - REMEMBERED :], (now_s, code)]
        if len(self._latest) > self._sources_max:
            self._latest.popitem(last=False)
        return any(is_within(code, other, self._distance_max) for _, other in known)

    def forget(self, now_s: float) -> None:
        """Forget codes whose time is over. They are in the order of their last use."""
        while self._latest:
            first = next(iter(self._latest.values()))
            if first[-1][0] + self._kept_s > now_s:
                return
            self._latest.popitem(last=False)


class Suspected:
    """What ``Labeller.label`` asks: whether sources are suspected. False in a condition if nobody is."""

    def has_any(self, sources: list[Source]) -> bool:  # noqa: ARG002 - nobody is
        """Whether one of the sources is suspected."""
        return False

    def __len__(self) -> int:
        return 0


def is_within(one: bytes, other: bytes, distance: int) -> bool:
    """Whether at most ``distance`` symbols must be changed, added or left out to make one of the other."""
    if abs(len(one) - len(other)) > distance:
        return False
    at, shorter = 0, min(len(one), len(other))
    while at < shorter and one[at] == other[at]:
        at += 1
    one, other = one[at:], other[at:]
    if not (one and other):
        return len(one) + len(other) <= distance
    return distance > 0 and (
        is_within(one[1:], other[1:], distance - 1)
        or is_within(one[1:], other, distance - 1)
        or is_within(one, other[1:], distance - 1)
    )
