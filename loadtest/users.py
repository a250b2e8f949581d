"""The clients that locust runs.

Each client starts attempts at a constant rate, even if the last one was slow (open loop). An attempt is due
at its time, and its latency counts from then. If the engine stands still for a second, the report shows a
latency of a second, not fewer requests.
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
from loadtest.guard_check import CHALLENGED, GUESS, MISTYPE
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
"""A request under way at the end of the run counts only if it has waited this long."""
_OK: Final = 200
_AGAIN: Final = (NO_ANSWER, 503)


@dataclass(slots=True)
class Run:
    """State that the clients of one process share. ``page_key``: a browser key; empty without pages."""

    plan: Plan
    key: str
    page_key: str
    codes: Codes
    answers: Writer
    numbers: itertools.count[int]
    process: str


class LoadClient(FastHttpUser):
    """Base class of all clients. The locustfile sets ``run``."""

    abstract = True
    run_of: ClassVar[Run]
    network_timeout = PATIENCE_S
    connection_timeout = PATIENCE_S

    def on_start(self) -> None:
        """Choose the time of the first attempt at random within one interval, so that clients spread out."""
        plan = self.run_of.plan
        self._interval_s = 1.0 / plan.each_per_s
        self._random = random.Random(f"{plan.seed} {self.run_of.process} {next(self.run_of.numbers)}")
        self._due = time.monotonic() + self._random.random() * self._interval_s
        scenario = SCENARIOS[plan.scenario]
        self._refusals = frozenset(scenario.refusals)
        self._guess_refusals = frozenset(scenario.guess_refusals)
        gevent.sleep(max(0.0, self._due - time.monotonic()))

    def wait_time(self) -> float:
        """Return the seconds until the next attempt is due; 0 if it is due already."""
        self._due += self._interval_s
        return max(0.0, self._due - time.monotonic())

    def on_stop(self) -> None:
        """Count the attempts that were due but will not be sent."""
        behind_s = time.monotonic() - self._due
        if behind_s > self._interval_s:
            self.run_of.answers.unsent += int(behind_s / self._interval_s)

    def number(self) -> str:
        """Return a name that is unique in the run."""
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
        """Send one request and log its response. ``due``: now, unless it is the first of the attempt."""
        began = time.monotonic()
        due = self._due if due is None else due
        headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key else {})
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
            found = self._exchange(answer, path, orjson.dumps(document), headers, due=due, session=session)
        except gevent.GreenletExit:  # the run is over; the engine may have received the request
            answer.problem = "stopped"
            answer.last = time.monotonic() - due > STOPPED_S
            answer.expected = not answer.last
            raise
        finally:
            answer.ms = answer.ms or (time.monotonic() - due) * 1000
            self.run_of.answers.write(answer)
        return answer.status, found

    def _exchange(
        self,
        answer: LoggedAnswer,
        path: str,
        body: bytes,
        headers: dict[str, str],
        *,
        due: float,
        session: FastHttpSession | None,
    ) -> dict[str, Any]:
        """Send a request, fill in its answer, and tell locust."""
        with (session or self.client).request(
            "POST",
            path,
            name=answer.op,
            data=body,  # type: ignore[arg-type] # locust sends bytes unchanged
            headers=headers | {"Authorization": f"Bearer {self.run_of.key}"},
            catch_response=True,
        ) as response:
            found = self._take(answer, response.status_code, response.content, due)
            response.request_meta["response_time"] = answer.ms
            if not answer.last:
                response.request_meta["name"] = f"{answer.op} (tried again)"
            if answer.expected:
                response.success()
            else:
                response.failure(f"{answer.status} {answer.problem}")
        return found

    def _take(self, answer: LoggedAnswer, status: int, content: bytes | None, due: float) -> dict[str, Any]:
        """Fill in an answer; return its document."""
        found = _document(content) if status else {}
        answer.status = status if found else NO_ANSWER
        answer.problem = "" if answer.status == _OK else str(found.get("code", ""))
        answer.id = str(found.get("id", "")) if answer.status == _OK else ""
        answer.replayed = bool(found.get("replayed", False))
        answer.last = answer.last or not (answer.status in _AGAIN or answer.problem == CHALLENGED)
        answer.expected = not answer.last or self._expected(answer)
        answer.ms = (time.monotonic() - due) * 1000
        return found

    def redeem(self, code: Code, *, key: str = "") -> tuple[int, dict[str, Any]]:
        """Send ``POST /v1/redemptions``; return status and document."""
        name = key or self.number()
        return self.attempt(
            "redeem", "/v1/redemptions", {"code": code.text, "user": name}, key=name, code=code
        )

    def _expected(self, answer: LoggedAnswer) -> bool:
        if answer.op in {GUESS, MISTYPE}:
            return answer.problem in self._guess_refusals
        return answer.status == _OK or answer.problem in self._refusals


class Shopper(LoadClient):
    """Redeems a different code as a different user each time, or the shared code."""

    @task
    def redeem_one(self) -> None:
        """Redeem one code."""
        self.redeem(self.run_of.codes.take())


class Impatient(LoadClient):
    """Gives up after a short time and sends the same request again; waits for the last response."""

    def on_start(self) -> None:
        """Choose how long this client waits: from less than a response takes to far more."""
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
        """Make one attempt with several tries under one Idempotency-Key."""
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


class Visitor(LoadClient):
    """Does everything that happens in a day."""

    @task(8)
    def look(self) -> None:
        """Check a code and do not redeem it."""
        code = self.run_of.codes.take()
        self.attempt("check", "/v1/codes/check", {"code": code.text}, code=code)

    @task(6)
    def redeem_one(self) -> None:
        """Redeems."""
        self.redeem(self.run_of.codes.take())

    @task(3)
    def pay(self) -> None:
        """Hold a code, wait for the payment, confirm the hold."""
        held = self._hold()
        if held:
            code, hold = held
            self._step("confirm", f"/v1/holds/{hold}/confirm", {}, code, hold)

    @task(1)
    def think_again(self) -> None:
        """Hold a code and release it."""
        held = self._hold()
        if held:
            code, hold = held
            self._step("release", f"/v1/holds/{hold}/release", {}, code, hold)

    @task(1)
    def return_it(self) -> None:
        """Redeem a code and roll it back."""
        code = self.run_of.codes.take()
        status, found = self.redeem(code)
        if status == _OK:
            made = str(found["id"])
            self._step("rollback", f"/v1/redemptions/{made}/rollback", {"reason": "load test"}, code, made)

    @task(1)
    def ask_twice(self) -> None:
        """Redeem a code and send the same request again."""
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


def bind(environment: Environment, run: Run) -> None:
    """Give the clients of this process their shared state; close the log when the test stops."""
    LoadClient.run_of = run
    environment.events.test_stop.add_listener(lambda **_: run.answers.close())  # type: ignore[no-untyped-call] # locust's


def _document(content: bytes | None) -> dict[str, Any]:
    """Return the JSON object of a response; an empty one if the response is incomplete."""
    try:
        found = orjson.loads(content or b"")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
