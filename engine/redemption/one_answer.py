"""Attempts of browser keys: every refusal that would help a guesser is one and the same answer.

It also comes in the same time, because it comes the same way. An attempt that is refused before Redis is
asked, such as one with a made-up code, asks Redis all the same: about a code that no batch has, which counts
as void. So each of these refusals waits for its turn, for the script and for the reply, as that of a spent
code does. The scripts make the same reads for every code (``lua/lib/answer_alike.lua``). Metrics have the
true outcome.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from engine.api.outcomes import Refused
from engine.errors import RETRYABLE_FAULTS, ContractViolation, Fault
from engine.guard.guard import BLOCKED, TOO_MANY
from engine.guard.labels import ONE_ANSWER_GIVEN
from engine.redemption.attempt import Attempt
from engine.redemption.call_fields import load_script
from engine.redemption.check import Check
from engine.redemption.hold import Hold
from engine.redemption.redeem import Redemption
from engine.store import idempotency
from engine.store.configuration import NO_CAMPAIGN

if TYPE_CHECKING:
    from engine.api.outcomes import Outcome
    from engine.lookup.decoder import Issued
    from engine.redemption.core import Core
    from engine.store.call import Call
    from engine.store.configuration import CachedCampaign

ONE_ANSWER: Final = Refused("code_not_found", "This code cannot be used.")
NEVER_ISSUED: Final = 1 << 20
"""The number of no batch: those that codes can have are smaller."""
_READABLE: Final = "0000-0000-0000-0000"  # read in place of what cannot be a code
_SERIAL_BYTES: Final = 3
# These say nothing about a code, and the caller must know them.
_OPEN: Final = RETRYABLE_FAULTS | {ContractViolation.code, "unauthenticated", TOO_MANY}
_REPLAYED: Final = b"replayed"
_UNDECIDED: Final = frozenset((b"holds_expired", b"unpublished"))
_REUSED: Final = "idempotency_key_reused"  # said by Redis, which has been asked then


class OneAnswer(Attempt):
    """An attempt of a browser key.

    Attributes:
        verdict: the refusal that is certain before Redis is asked; empty if there is none.
        is_decoy: the script is asked about a code that was never issued.
        decided: the script has answered.
        true_campaign: that of the code, for metrics; ``NO_CAMPAIGN`` while no code is known.
        user_is_signed: a user token says who the user is.
    """

    looked_up_alike = True
    decided: bool
    is_decoy: bool
    true_campaign: CachedCampaign
    typed: str
    user_is_signed: bool = False
    verdict: str

    def begin(self, typed: str) -> None:
        """Set the fields of this class. ``typed``: the code as the request has it."""
        self.decided = self.is_decoy = False
        self.true_campaign = NO_CAMPAIGN
        self.typed, self.verdict = typed, ""

    def found(self, code: Issued) -> None:
        """Go on with the code, or with one that was never issued if it is refused already."""
        self.true_campaign = campaign = self.configuration.campaigns[code.batch.campaign]
        if not self.verdict and self.api_key is not None and not self.api_key.may_use(campaign.id):
            self.verdict = "code_not_found"
        if not self.verdict and self.asserted is not None:
            self.verdict = self.asserted.mismatch(campaign)
        if self.verdict:
            self._ask_about_none()
        else:
            super().found(code)

    def refused(self, outcome: str, *, replayed: bool = False) -> None:
        """Finish with a refusal once Redis has been asked; before, ask it."""
        if self.decided or self.is_decoy or outcome in _OPEN or outcome == _REUSED:
            super().refused(outcome, replayed=replayed)
        else:
            self.verdict = self.verdict or outcome
            self._ask_about_none()

    def _ask_about_none(self) -> None:
        """Ask the script about a code that was never issued, of a campaign of the key.

        The same typed code always has the same place, so a repeated request has the same fingerprint.
        """
        self.is_decoy = True
        campaigns = self.api_key.campaigns if self.api_key else None
        serial = int.from_bytes(hashlib.blake2b(self.typed.encode(), digest_size=_SERIAL_BYTES).digest())
        campaign = (campaigns or ())[serial % len(campaigns or ())]
        self.bind_record(campaign, NEVER_ISSUED, serial, "")
        if self.key:
            known = idempotency.known_half(self.user, self.order, [(self.batch, self.serial)])
            self.fingerprint = idempotency.fingerprint(known, self.fingerprint_fields())
        try:
            self.dispatcher.send(self)
        except Fault as fault:
            self.failed(fault)

    def write_to(self, call: Call) -> None:
        """Append the fields of the script. A code that was never issued is void: nothing can come of it."""
        super().write_to(call)
        if self.is_decoy:
            call.state_at[-1] = 0

    @property
    def masked(self) -> str:
        """The masked code, for the response."""
        return "" if self.is_decoy else super().masked

    def answered(self, answer: bytes) -> None:
        """Turn the script's answer into an outcome. Refusals are all turned in the same way."""
        self.decided = True
        words = answer.split(maxsplit=2)
        word = words[1] if words[0] == _REPLAYED else words[0]
        if word == self.success.encode():
            super().answered(answer)
        elif word in _UNDECIDED:
            Attempt.answered(self, word)
        else:
            self.finish(words[0].decode(), ONE_ANSWER)

    def finish(self, counted_as: str, outcome: Outcome) -> None:
        """Count the true outcome, and pass on the one answer in place of a refusal."""
        if self.is_decoy:
            self.campaign = self.true_campaign
        is_hidden = outcome.code not in _OPEN if isinstance(outcome, Refused) else self.is_decoy
        if is_hidden:
            counted_as, outcome = self.verdict or counted_as, ONE_ANSWER
            self._note_alike()
        super().finish(counted_as, outcome)

    def _note_alike(self) -> None:
        """Tell the guard of a refusal, in the same way for every reason: a challenge is asked for by it."""
        if (note := self.dispatcher.note) is not None and self.api_key is not None:
            note((self.api_key.id, "", self.client, ONE_ANSWER_GIVEN, self.normalised))


class OneAnswerRedemption(OneAnswer, Redemption):
    """An attempt of a browser key to redeem a code."""

    script = load_script("redeem_alike", "ending")


class OneAnswerHold(OneAnswer, Hold):
    """An attempt of a browser key to hold a code."""

    script = load_script("hold_alike", "ending", "ttl_ms")


class OneAnswerCheck(OneAnswer, Check):
    """An attempt of a browser key to check a code."""

    script = load_script("check_alike")


async def answer_alike(core: Core, attempt: OneAnswer, code: str) -> Outcome:
    """Run an attempt as ``Core.answer`` does, and return its outcome or the one answer."""
    attempt.begin(code)
    outcome = core.await_outcome(attempt)
    _submit(core, attempt, code)
    return await outcome


def _submit(core: Core, attempt: OneAnswer, code: str) -> None:
    """Do as ``Core.submit`` does, without its early answers: all checks are made, whatever they find."""
    judged = core.judged(attempt)
    if judged is not None and judged.code != BLOCKED:
        attempt.finish(judged.code, judged)
        return
    is_readable = core.resolver.read(code, attempt)
    if not is_readable:
        core.resolver.read(_READABLE, attempt)
    texts = (attempt.user, attempt.order, attempt.key)
    has_code = core.code_in_texts(attempt.normalised, texts, attempt.metadata)
    if judged is not None:
        attempt.verdict = judged.code
    elif not is_readable:
        attempt.verdict = "code_malformed"
    elif has_code:
        attempt.verdict = "malformed_request"
    core.resolver.find_alike(attempt)
