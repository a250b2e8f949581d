"""Reads docs/openapi.json, and provides a caller that checks every response against it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from jsonschema_rs import Draft202012Validator

from engine.api.problems import PROBLEM_TYPE, PROBLEMS
from engine.encoding import JSON_TYPE
from engine.store.configuration import SCOPES
from persister.main import run_persister
from tests.support.deployment import engine_in_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from aiohttp import ClientResponse

    from engine.control.change import ControlPlane
    from tests.support.deployment import Merchant

PATH: Final = Path(__file__).parents[2] / "docs" / "openapi.json"
METHODS: Final = frozenset(("get", "head", "post", "put", "patch", "delete"))
MINT_COUNT_MAX: Final = 100
WAIT_S_MAX: Final = 1


class Operation(NamedTuple):
    """One operation of the document."""

    method: str
    path: str
    details: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.details["operationId"])

    @property
    def scope(self) -> str | None:
        """The scope that the API key needs, or several to choose from; None if no key is needed."""
        wanted = self.details["security"]
        return " or ".join(str(choice["apiKey"][0]) for choice in wanted) if wanted else None

    @property
    def request(self) -> dict[str, Any]:
        """The request body by media type; empty if there is none."""
        body: dict[str, dict[str, Any]] = self.details.get("requestBody", {"content": {}})
        return body["content"]


class Document:
    """The document. Its methods resolve references."""

    def __init__(self) -> None:
        self.whole: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))
        self.components: dict[str, Any] = self.whole["components"]
        self.operations = {operation.id: operation for operation in self._operations()}

    def _operations(self) -> Iterator[Operation]:
        for path, item in self.whole["paths"].items():
            for method, details in item.items():
                if method in METHODS:
                    yield Operation(method.upper(), path, details)

    def resolved(self, node: dict[str, Any]) -> dict[str, Any]:
        """Return a node, or the node that it refers to."""
        while "$ref" in node:
            found: Any = self.whole
            for name in node["$ref"].removeprefix("#/").split("/"):
                found = found[name]
            node = found
        return node

    def responses(self, operation: Operation) -> dict[int, dict[str, Any]]:
        return {int(status): self.resolved(of) for status, of in operation.details["responses"].items()}

    def closed(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Return the schema of a response without references, which allows no members that it does not name.

        Clients must accept unknown members, but the engine must not send undocumented ones.
        """
        schema = self.resolved(schema)
        if "allOf" in schema:
            schema = self._merged(schema["allOf"])
        schema = dict(schema)
        if "properties" in schema:
            schema["properties"] = {name: self.closed(part) for name, part in schema["properties"].items()}
            schema["additionalProperties"] = False
        if "items" in schema:
            schema["items"] = self.closed(schema["items"])
        if "anyOf" in schema:
            schema["anyOf"] = [self.closed(part) for part in schema["anyOf"]]
        return schema

    def answer(self, response: dict[str, Any], media_type: str) -> dict[str, Any]:
        """Return the closed schema of a response's body; a problem has one of the codes of the response."""
        schema = self.closed(response["content"][media_type]["schema"])
        if media_type == PROBLEM_TYPE:
            codes = response["x-problem-codes"]
            statuses = sorted({PROBLEMS[code][0] for code in codes})
            schema["properties"] |= {"code": {"enum": codes}, "status": {"enum": statuses}}
        return schema

    def _merged(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        required: list[str] = []
        properties: dict[str, Any] = {}
        for part in map(self.closed, parts):
            required += part.get("required", [])
            for name, schema in part["properties"].items():
                properties[name] = properties.get(name, {}) | schema
        return {"type": "object", "required": required, "properties": properties}

    def with_closed_answers(self) -> dict[str, Any]:
        """Return the whole document with each response schema ``closed``."""
        whole: dict[str, Any] = json.loads(json.dumps(self.whole))
        calls = [details for item in whole["paths"].values() for details in item.values()]
        answers = [answer for details in calls for answer in details["responses"].values()]
        for answer in (*answers, *whole["components"]["responses"].values()):
            for media_type, media in answer.get("content", {}).items():
                media["schema"] = self.answer(answer, media_type)
        return whole

    def complaints(self, schema: dict[str, Any], value: object) -> list[str]:
        """Return what is wrong with a value; the schema may refer to the document."""
        root = schema | {"components": {"schemas": self.components["schemas"]}}
        validator = Draft202012Validator(root, validate_formats=True)
        return [f"{list(error.instance_path)}: {error.message}" for error in validator.iter_errors(value)]


def examples_in(part: dict[str, Any]) -> list[Any]:
    """Return the examples of a parameter or of a body."""
    one = [part["example"]] if "example" in part else []
    return one + [example["value"] for example in part.get("examples", {}).values()]


class Caller:
    """Makes calls by operation id, and checks the responses against the document.

    Attributes:
        answered: the operations that have succeeded.
    """

    def __init__(self, merchant: Merchant) -> None:
        self.merchant = merchant
        self.document = Document()
        self.answered: set[str] = set()

    async def call(
        self,
        name: str,
        body: object = None,
        *,
        key: str = "",
        query: str = "",
        headers: dict[str, str] | None = None,
        **path: object,
    ) -> Any:  # noqa: ANN401 - JSON, or text
        """Make a call and return the checked response. ``body``: bytes, or an object to send as JSON."""
        operation = self.document.operations[name]
        sent = {"Authorization": f"Bearer {self.merchant.key}", **(headers or {})}
        if key:
            sent["Idempotency-Key"] = key
        content: dict[str, Any] = {"data": body} if isinstance(body, bytes) else {"json": body}
        url = self.merchant.url + operation.path.format_map(path) + query
        async with self.merchant.session.request(operation.method, url, headers=sent, **content) as response:
            return await self._checked(operation, response)

    async def _checked(self, operation: Operation, response: ClientResponse) -> Any:  # noqa: ANN401 - as call
        described = self.document.responses(operation)[response.status]
        content: Any = await response.text()
        where = f"{operation.id}, {response.status}: {content}"
        if operation.method != "HEAD":
            schema = self.document.answer(described, response.content_type)
            if response.content_type in {JSON_TYPE, PROBLEM_TYPE}:
                content = json.loads(content)
            assert not self.document.complaints(schema, content), where
        for header, of in described.get("headers", {}).items():
            known = self.document.resolved(of)
            assert header in response.headers or not known.get("required"), where
            if "const" in known["schema"]:
                assert response.headers[header] == known["schema"]["const"], where
        if response.ok:
            self.answered.add(operation.id)
        return content

    async def make_campaigns(self) -> tuple[list[str], list[str], list[str]]:
        """Create the campaigns of the document's examples; return their single, balance and multi codes."""
        asked = self.document.operations["createCampaign"].request[JSON_TYPE]["example"]
        cards = {"name": "Cards", "kind": "balance", "state": "active", "amount": 5000, "currency": "EUR"}
        words = {"name": "Words", "kind": "multi", "state": "active", "max_uses": 2}
        ordered = self.document.operations["mintBatch"].request[JSON_TYPE]["example"]
        campaigns = (asked | {"starts_at": None, "ends_at": None}, cards, words)
        made = []
        for campaign, batch in zip(campaigns, (ordered, {"count": 10}, {"count": 5}), strict=True):
            campaign_id = (await self.call("createCampaign", campaign))["id"]
            minted = await self.call("mintBatch", batch, id=campaign_id)
            lines: str = await self.call("exportCodes", id=minted["id"])
            made.append([line.partition(",")[0] for line in lines.split()[1:]])
        return made[0], made[1], made[2]


@contextlib.asynccontextmanager
async def engine_and_caller(plane: ControlPlane) -> AsyncIterator[Caller]:
    """Run an engine and a persister (erasures wait for it); yield a caller with all scopes."""
    settings, stop = plane.settings, asyncio.Event()
    async with engine_in_process(
        plane, scopes=SCOPES, mint_count_max=MINT_COUNT_MAX, feed_wait_s_max=WAIT_S_MAX
    ) as merchant:
        persisting = asyncio.create_task(
            run_persister(settings, settings.redis_url, settings.database_url, stop)
        )
        try:
            yield Caller(merchant)
        finally:
            stop.set()
            await persisting
