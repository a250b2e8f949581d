"""The clients, as locust runs them.

Each begins an attempt at a constant rate, whether or not the last one was quick: an attempt is due
at its time, and its latency counts from then. So an engine that stands still for a second shows
as a second, and not as fewer requests (open loop).
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

import gevent
import orjson
from locust import FastHttpUser, task
from locust.contrib.fasthttp import FastHttpSession

from loadtest.answers import NO_ANSWER, LoggedAnswer
from loadtest.scenarios import SCENARIOS

if TYPE_CHECKING:
    import itertools

    from locust.env import Environment

    from loadtest.answers import Writer
    from loadtest.codes import Code, Codes
    from loadtest.scenarios import Plan

PATIENCE_S: Final = 10.0
IMPATIENCE_S: Final = (0.0005, 0.05)
TRIES_MAX: Final = 4
STOPPED_S: Final = 1.0
"""A request under way at the end of the run counts only where it had waited this long."""
_OK: Final = 200
_AGAIN: Final = (NO_ANSWER, 503)
_SYMBOLS: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@dataclass(slots=True)
class Run:
    """What the clients of one process share."""

    plan: Plan
    key: str
    codes: Codes
    answers: Writer
    numbers: itertools.count[int]
    process: str


class LoadClient(FastHttpUser):
    """Whoever calls the engine. ``run`` is bound in the locustfile."""

    abstract = True
    run_of: ClassVar[Run]
    network_timeout = PATIENCE_S
    connection_timeout = PATIENCE_S

    def on_start(self) -> None:
        """Clients that come together do not call together: the first attempt is due within one interval."""
        plan = self.run_of.plan
        self._interval_s = 1.0 / plan.each_per_s
        self._random = random.Random(f"{plan.seed} {self.run_of.process} {next(self.run_of.numbers)}")
        self._due = time.monotonic() + self._random.random() * self._interval_s
        self._refusals = frozenset(SCENARIOS[plan.scenario].refusals)
        gevent.sleep(max(0.0, self._due - time.monotonic()))

    def wait_time(self) -> float:
        """Until the next attempt is due; none where it was due already."""
        self._due += self._interval_s
        return max(0.0, self._due - time.monotonic())

    def on_stop(self) -> None:
        """Attempts that were due and are not made any more are counted."""
        behind_s = time.monotonic() - self._due
        if behind_s > self._interval_s:
            self.run_of.answers.unsent += int(behind_s / self._interval_s)

    def number(self) -> str:
        """A name that nothing else of the run has."""
        return f"{self.run_of.plan.run}-{self.run_of.process}-{next(self.run_of.numbers)}"

    def attempt(
        self,
        op: str,
        path: str,
        document: dict[str, object],
        *,
        key: str = "",
        code: Code | None = None,
        about: str = "",
        due: float | None = None,
        session: FastHttpSession | None = None,
        last: bool = True,
    ) -> tuple[int, dict[str, Any]]:
        """One request; its answer goes to the verifier. ``due``: now, where it is not the attempt's first."""
        began = time.monotonic()
        due = self._due if due is None else due
        headers = {"Authorization": f"Bearer {self.run_of.key}", "Content-Type": "application/json"}
        if key:
            headers["Idempotency-Key"] = key
        user = document.get("user")
        answer = LoggedAnswer(
            op=op,
            status=NO_ANSWER,
            at=time.time() - (began - due),
            ms=0.0,
            key=key,
            about=about,
            batch=code.batch if code else -1,
            serial=code.serial if code else -1,
            user=user if isinstance(user, str) else "",
            last=last,
            expected=False,
        )
        found: dict[str, Any] = {}
        try:
            with (session or self.client).request(
                "POST",
                path,
                name=op,
                data=orjson.dumps(document),  # type: ignore[arg-type] # bytes are sent as they are
                headers=headers,
                catch_response=True,
            ) as response:
                found = _document(response.content) if response.status_code else {}
                answer.status = response.status_code if found else NO_ANSWER
                answer.problem = "" if answer.status == _OK else str(found.get("code", ""))
                answer.id = str(found.get("id", "")) if answer.status == _OK else ""
                answer.replayed = bool(found.get("replayed", False))
                answer.last = last or answer.status not in _AGAIN
                answer.expected = not answer.last or self._expected(answer)
                answer.ms = (time.monotonic() - due) * 1000
                response.request_meta["response_time"] = answer.ms
                if not answer.last:
                    response.request_meta["name"] = f"{op} (tried again)"
                if answer.expected:
                    response.success()
                else:
                    response.failure(f"{answer.status} {answer.problem}")
        except gevent.GreenletExit:  # the run is over; the client may have been heard all the same
            answer.problem = "stopped"
            answer.last = time.monotonic() - due > STOPPED_S
            answer.expected = not answer.last
            raise
        finally:
            answer.ms = answer.ms or (time.monotonic() - due) * 1000
            self.run_of.answers.write(answer)
        return answer.status, found

    def redeem(self, code: Code, *, key: str = "") -> tuple[int, dict[str, Any]]:
        """``POST /v1/redemptions``."""
        name = key or self.number()
        return self.attempt(
            "redeem", "/v1/redemptions", {"code": code.text, "user": name}, key=name, code=code
        )

    def _expected(self, answer: LoggedAnswer) -> bool:
        if answer.op == "guess":
            return answer.problem in self._refusals
        return answer.status == _OK or answer.problem in self._refusals


class Shopper(LoadClient):
    """Redeems, each time another code as another user; or all the same one."""

    @task
    def redeem_one(self) -> None:
        """One attempt."""
        self.redeem(self.run_of.codes.take())


class Impatient(LoadClient):
    """Hangs up after its own short time and sends the same request again; waits for the last answer."""

    def on_start(self) -> None:
        """How long it waits is its own: from less than an answer takes to far more."""
        super().on_start()
        least, most = IMPATIENCE_S
        self._hasty = FastHttpSession(
            base_url=self.host,
            request_event=self.environment.events.request,
            user=self,
            network_timeout=least * (most / least) ** self._random.random(),
            connection_timeout=PATIENCE_S,
        )

    @task
    def redeem_until_answered(self) -> None:
        """One attempt, of several tries under one key."""
        code, name = self.run_of.codes.take(), self.number()
        document: dict[str, object] = {"code": code.text, "user": name}
        for number in range(TRIES_MAX):
            last = number == TRIES_MAX - 1
            session = self.client if last else self._hasty
            status, _ = self.attempt(
                "redeem", "/v1/redemptions", document, key=name, code=code, session=session, last=last
            )
            if status not in _AGAIN:
                return


class Guesser(LoadClient):
    """Makes codes up."""

    weight = 1

    @task
    def guess(self) -> None:
        """One guess; in the answers it is no code."""
        guessed = "".join(self._random.choices(_SYMBOLS, k=16))
        self.attempt("guess", "/v1/redemptions", {"code": guessed, "user": "guesser"}, key=self.number())


class Buyer(Shopper):
    """A shopper among guessers."""

    weight = 2


class Visitor(LoadClient):
    """Does what happens in a day."""

    @task(8)
    def look(self) -> None:
        """Asks what a code is worth, and leaves it."""
        code = self.run_of.codes.take()
        self.attempt("check", "/v1/codes/check", {"code": code.text}, code=code)

    @task(6)
    def redeem_one(self) -> None:
        """Redeems."""
        self.redeem(self.run_of.codes.take())

    @task(3)
    def pay(self) -> None:
        """Holds a code while it pays, then confirms."""
        held = self._hold()
        if held:
            code, hold = held
            self._step("confirm", f"/v1/holds/{hold}/confirm", {}, code, hold)

    @task(1)
    def think_again(self) -> None:
        """Holds a code, and gives it back."""
        held = self._hold()
        if held:
            code, hold = held
            self._step("release", f"/v1/holds/{hold}/release", {}, code, hold)

    @task(1)
    def return_it(self) -> None:
        """Redeems, and rolls it back."""
        code = self.run_of.codes.take()
        status, found = self.redeem(code)
        if status == _OK:
            made = str(found["id"])
            self._step("rollback", f"/v1/redemptions/{made}/rollback", {"reason": "load test"}, code, made)

    @task(1)
    def ask_twice(self) -> None:
        """Redeems, and sends the same request again."""
        code, key = self.run_of.codes.take(), self.number()
        self.redeem(code, key=key)
        document: dict[str, object] = {"code": code.text, "user": key}
        self.attempt("redeem", "/v1/redemptions", document, key=key, code=code, due=time.monotonic())

    def _hold(self) -> tuple[Code, str] | None:
        code, name = self.run_of.codes.take(), self.number()
        document: dict[str, object] = {"code": code.text, "user": name, "order": name}
        status, found = self.attempt("hold", "/v1/holds", document, key=name, code=code)
        return (code, str(found["id"])) if status == _OK else None

    def _step(self, op: str, path: str, document: dict[str, object], code: Code, about: str) -> None:
        self.attempt(op, path, document, key=self.number(), code=code, about=about, due=time.monotonic())


CLIENTS: Final[dict[str, tuple[type[LoadClient], ...]]] = {
    "unique-codes": (Shopper,),
    "flash-sale": (Shopper,),
    "hot-code": (Shopper,),
    "retry-storm": (Impatient,),
    "guessers": (Buyer, Guesser),
    "mixed-day": (Visitor,),
    "soak": (Visitor,),
}


def bind(environment: Environment, run: Run) -> None:
    """Give the clients of this process what they share; at its end the last line is written."""
    LoadClient.run_of = run
    environment.events.test_stop.add_listener(lambda **_: run.answers.close())  # type: ignore[no-untyped-call] # locust's


def _document(content: bytes | None) -> dict[str, Any]:
    """The JSON object of an answer; nothing where it came in part."""
    try:
        found = orjson.loads(content or b"")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
