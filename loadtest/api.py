"""API client that sets up a load test and reads its results: one connection, one call at a time."""

from __future__ import annotations

import http.client
import json
import re
import uuid
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import quote, urlencode, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT_S: Final = 120.0
PAGE_EVENTS: Final = 1000
_OK: Final = range(200, 300)
_TRIES: Final = 3
_SAMPLE: Final = re.compile(r"^(redeem_\w+)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


class ApiError(Exception):
    """The engine refused a setup call, or could not be reached; the message is one line."""


class Api:
    """Calls the engine's API with one API key."""

    def __init__(self, url: str, key: str) -> None:
        """Prepare a connection. ``url``: such as ``http://127.0.0.1:8080``.

        Raises:
            ApiError: it is not an HTTP URL.
        """
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ApiError(f"not the URL of an engine: {url}")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self.url = url.rstrip("/")
        self._connection = kind(parts.hostname, parts.port, timeout=TIMEOUT_S)
        self._headers = {"Authorization": f"Bearer {key}"}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def call(self, method: str, path: str, document: object = None) -> Any:  # noqa: ANN401 - JSON
        """Make a call with a JSON body and return the JSON response.

        Raises:
            ApiError: it was refused, or there was no response.
        """
        return json.loads(self._read(method, path, document))

    def campaign(self, **terms: object) -> str:
        """Create an active campaign and return its id."""
        made = self.call("POST", "/v1/campaigns", {"state": "active"} | terms)
        return str(made["id"])

    def mint(self, campaign: str, count: int) -> tuple[int, list[str]]:
        """Mint a batch; return its id, and its codes by serial."""
        batch = int(self.call("POST", f"/v1/campaigns/{campaign}/batches", {"count": count})["id"])
        return batch, self.codes(batch)

    def codes(self, batch: int) -> list[str]:
        """Return the codes of a batch, by serial."""
        exported = self._read("GET", f"/v1/batches/{batch}/codes").decode()
        return [line.partition(",")[0] for line in exported.splitlines()[1:]]

    def end_of_feed(self) -> str:
        """Return the cursor after the newest event in the ledger."""
        return str(self._page("end", type="adjusted")["next"])

    def events(self, after: str, campaign: str, *, wait_s: int = 0) -> tuple[list[dict[str, Any]], str]:
        """Return a page of a campaign's events, and the cursor after it."""
        page = self._page(after, campaign=campaign, wait_s=wait_s)
        return page["items"], page["next"]

    def browser_key(self, campaign: str, origin: str) -> tuple[str, str]:
        """Make a browser key for a campaign; return its id and the key."""
        body = {"name": "load test", "kind": "browser", "campaigns": [campaign], "origins": [origin]}
        made = self.call("POST", "/v1/keys", body)
        return str(made["id"]), str(made["key"])

    def set_rule(self, name: str, mode: str | None) -> str | None:
        """Set the mode of a rule of the guard; None for that of the settings. Return what it was before."""
        rules = self.call("GET", "/v1/guard/rules")["items"]
        before = next(rule for rule in rules if rule["name"] == name)
        self.call("PUT", "/v1/guard/rules", {"rules": {name: mode}})
        return before["mode"] if before["actor"] else None

    def blocks(self) -> Iterator[dict[str, Any]]:
        """Yield the blocks in force."""
        after = None
        while True:
            query = {"state": "active"} | ({"after": after} if after else {})
            page = self.call("GET", f"/v1/blocks?{urlencode(query)}")
            yield from page["items"]
            after = page["next"]
            if after is None:
                return

    def metrics(self, path: str = "/metrics") -> dict[str, list[float]]:
        """Return the values of each metric, over all its labels.

        Raises:
            ApiError: the metrics cannot be read.
        """
        values: dict[str, list[float]] = defaultdict(list)
        for name, value in _SAMPLE.findall(self._read("GET", path).decode()):
            values[name].append(float(value))
        return dict(values)

    def _page(self, after: str, **filters: object) -> dict[str, Any]:
        query = {"limit": PAGE_EVENTS, **({"after": after} if after else {}), **filters}
        page: dict[str, Any] = self.call("GET", f"/v1/events?{urlencode(query, quote_via=quote)}")
        return page

    def _read(self, method: str, path: str, document: object = None) -> bytes:
        body = None if document is None else json.dumps(document).encode()
        headers = dict(self._headers)
        if method != "GET":  # the key makes it safe to send again
            headers |= {"Content-Type": "application/json", "Idempotency-Key": f"loadtest-{uuid.uuid4()}"}
        failed = None
        for _ in range(_TRIES):
            try:
                self._connection.request(method, path, body, headers)
                response = self._connection.getresponse()
                answer = response.read()
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                failed = error
                continue
            if response.status not in _OK:
                raise ApiError(f"{method} {path.partition('?')[0]}: {response.status} {_reason(answer)}")
            return answer
        raise ApiError(f"{self.url} does not answer: {type(failed).__name__} {failed}") from failed


def _reason(answer: bytes) -> str:
    try:
        problem = json.loads(answer)
        return f"{problem['code']}: {problem['detail']}"
    except (ValueError, KeyError, TypeError):
        return "without a reason"
