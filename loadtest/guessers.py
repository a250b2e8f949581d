"""The clients of the scenarios in which somebody guesses: guessers, bots, and the customers beside them.

Each customer and each guesser has an address of its own. That of a server key's customer stands in the body;
pages connect from it, or say it in a header that the engine believes.
"""

from __future__ import annotations

import contextlib
import http.client
import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import altcha
import gevent
from locust import task

from loadtest.addresses import address_of, loopback_of
from loadtest.guard_check import CHALLENGED, GUESS, MISTYPE
from loadtest.scenarios import ORIGIN
from loadtest.users import PATIENCE_S, LoadClient

if TYPE_CHECKING:
    import random

    from locust.contrib.fasthttp import FastHttpSession

    from loadtest.answers import LoggedAnswer
    from loadtest.codes import Code

PATH: Final = "/v1/redemptions"
KNOWN_S: Final = 1.0
"""By then every worker knows the batch for its pages."""
_SYMBOLS: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_MISTYPED: Final = 0.2  # of all codes
_PAGE_BUYER_RARER: Final = 5
"""A challenge costs the load generator most of a second, so buyers of pages come that much less often."""


class Guesser(LoadClient):
    """One person at one address, who tries made-up codes."""

    weight = 1

    def on_start(self) -> None:
        """Choose who this is."""
        super().on_start()
        self._name = self.number()
        self._client = {"ip": address_of(self.run_of.plan, self._name)}

    @task
    def guess(self) -> None:
        """Try one made-up code; the log names no code."""
        code = _made_up(self._random)
        document: dict[str, object] = {"code": code, "user": self._name, "client": self._client}
        self.attempt(GUESS, PATH, document, key=self.number())


class Buyer(LoadClient):
    """Redeems a different code as a different user each time; mistypes one symbol of every fifth first."""

    weight = 2

    @task
    def redeem_one(self) -> None:
        """Redeem one code."""
        code, name = self.run_of.codes.take(), self.number()
        document: dict[str, object] = {"user": name, "client": {"ip": address_of(self.run_of.plan, name)}}
        if self._random.random() < _MISTYPED:
            self.attempt(MISTYPE, PATH, document | {"code": self._mistyped(code)}, key=self.number())
        self.attempt("redeem", PATH, document | {"code": code.text}, key=name, code=code)

    def _mistyped(self, code: Code) -> str:
        at = self._random.choice([at for at, symbol in enumerate(code.text) if symbol in _SYMBOLS])
        other = self._random.choice(_SYMBOLS.replace(code.text[at], ""))
        return code.text[:at] + other + code.text[at + 1 :]


class PageClient(LoadClient):
    """A page in a browser: each user has its own connection, from its own address."""

    abstract = True

    def _exchange(
        self,
        answer: LoggedAnswer,
        path: str,
        body: bytes,
        headers: dict[str, str],
        *,
        due: float,
        session: FastHttpSession | None,  # noqa: ARG002 - locust's own cannot choose where it comes from
    ) -> dict[str, Any]:
        plan, began = self.run_of.plan, time.monotonic()
        headers |= {"Authorization": f"Bearer {self.run_of.page_key}", "Origin": ORIGIN}
        if plan.address_header:
            headers[plan.address_header] = address_of(plan, answer.user)
        status, content = 0, b""
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, content = self._send(path, body, headers, answer.user)
        found = self._take(answer, status, content, due)
        self.environment.events.request.fire(
            request_type="POST",
            name=answer.op if answer.last else f"{answer.op} (tried again)",
            response_time=answer.ms,
            response_length=len(content),
            exception=None if answer.expected else ConnectionError(f"{answer.status} {answer.problem}"),
            context={},
            start_time=time.time() - (time.monotonic() - began),
            url=path,
        )
        return found

    def _send(self, path: str, body: bytes, headers: dict[str, str], user: str) -> tuple[int, bytes]:
        plan = self.run_of.plan
        parts = urlsplit(plan.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        source = None if plan.address_header else (loopback_of(plan, user), 0)
        connection = kind(parts.hostname or "", parts.port, timeout=PATIENCE_S, source_address=source)
        with contextlib.closing(connection):
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()


class Bot(PageClient):
    """Many places, each of which tries one made-up code, and solves no challenge."""

    weight = 19

    @task
    def guess(self) -> None:
        """Try one made-up code, from another place than the last one."""
        name = self.number()
        self.attempt(GUESS, PATH, {"code": _made_up(self._random), "user": name}, key=name)


class PageBuyer(PageClient):
    """Customers in a page, each with one code, who solve the challenge if they are asked for one."""

    weight = 1

    def on_start(self) -> None:
        """Come less often than bots, and first when the codes are known everywhere."""
        super().on_start()
        self._interval_s *= _PAGE_BUYER_RARER
        self._due += KNOWN_S + self._random.random() * self._interval_s
        gevent.sleep(max(0.0, self._due - time.monotonic()))

    @task
    def redeem_one(self) -> None:
        """Redeem one code."""
        code, name = self.run_of.codes.take(), self.number()
        document: dict[str, object] = {"code": code.text, "user": name}
        _, found = self.attempt("redeem", PATH, document, key=name, code=code, last=False)
        if found.get("code") == CHALLENGED:
            challenge = altcha.Challenge.from_dict(found["challenge"])
            solution = gevent.get_hub().threadpool.apply(_solved, (challenge,))
            document["client"] = {"challenge": solution}
            self.attempt("redeem", PATH, document, key=name, code=code, due=time.monotonic())


def _made_up(chance: random.Random) -> str:
    """Return a code that was never issued, but for a chance of one in a quadrillion."""
    return "".join(chance.choices(_SYMBOLS, k=16))


def _solved(challenge: altcha.Challenge) -> str:
    """Return the solution as a page sends it."""
    solution = altcha.solve_challenge(challenge)
    if solution is None:
        raise ArithmeticError("a challenge has no solution")
    return altcha.Payload(challenge, solution).to_base64()
