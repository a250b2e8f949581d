"""docs/openapi.json says what the code says: problems, requests, limits; its examples are as described."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from engine.api import bodies, checks
from engine.api.problems import PROBLEM_TYPE, PROBLEMS
from engine.control import api_keys, batches, blocks, campaigns, capacity_reports, guard_rules, key_changes
from engine.encoding import JSON_TYPE
from engine.http import admin, search, users
from engine.settings import Settings
from engine.store.events import EVENT_TYPES
from engine.webhooks import changes
from engine.webhooks.changes import TYPES
from tests.support.openapi import Document, Operation, examples_in

DOCUMENT: Final = Document()
REQUESTS: Final[dict[str, type[msgspec.Struct]]] = {
    struct.__name__: struct
    for struct in (
        *(checks.Client, bodies.RedeemRequest, bodies.BatchItem, bodies.BatchRequest),
        *(bodies.CombinedItem, bodies.CombinedRequest, bodies.RollbackRequest),
        *(bodies.HoldRequest, bodies.ConfirmRequest, bodies.ReleaseRequest),
        *(bodies.CheckRequest, bodies.AdjustRequest, admin.VoidRequest, users.ErasureRequest),
        *(changes.NewWebhook, changes.WebhookChange),
        *(changes.SecretRotation, changes.Replay),
        *(campaigns.NewCampaign, campaigns.CampaignChange, batches.NewBatch, api_keys.NewApiKey),
        key_changes.ApiKeyChange,
        *(blocks.NewBlock, search.SearchRequest, search.StoryRequest, guard_rules.NewModes),
        capacity_reports.NewCapacityReport,
    )
}
# Where a number of the document stands, and the setting whose default it is.
LIMITS: Final = {
    "schemas/Code/maxLength": "code_length_max",
    "schemas/User/maxLength": "user_length_max",
    "schemas/Order/maxLength": "order_length_max",
    "schemas/Reason/maxLength": "reason_length_max",
    "schemas/BatchRequest/properties/items/maxItems": "batch_items_max",
    "schemas/BatchItem/properties/idempotency_key/maxLength": "idempotency_key_length_max",
    "schemas/CombinedRequest/properties/codes/maxItems": "combined_items_max",
    "schemas/HoldRequest/properties/ttl_s/maximum": "hold_ttl_max_s",
    "schemas/NewBatch/properties/count/maximum": "mint_count_max",
    "schemas/NewWebhook/properties/batch_max/maximum": "webhook_batch_events_max",
    "schemas/WebhookChange/properties/batch_max/maximum": "webhook_batch_events_max",
    "schemas/SecretRotation/properties/grace_s/maximum": "webhook_rotation_grace_s",
    "parameters/IdempotencyKey/schema/maxLength": "idempotency_key_length_max",
    "parameters/Limit/schema/maximum": "page_limit_max",
    "parameters/WaitS/schema/maximum": "feed_wait_s_max",
}


def problems_of(response: dict[str, Any]) -> tuple[int, set[str]]:
    """The status and the codes of a response that is a problem."""
    codes = set(response["x-problem-codes"])
    (status,) = {PROBLEMS[code][0] for code in codes}
    return status, codes


def test_every_problem_is_the_answer_of_some_call_with_its_status() -> None:
    described: set[tuple[str, int]] = set()
    for operation in DOCUMENT.operations.values():
        for status, response in DOCUMENT.responses(operation).items():
            if PROBLEM_TYPE in response.get("content", {}):
                told, codes = problems_of(response)
                assert told == status, operation.id
                described |= {(code, status) for code in codes}
    # That of a call which is none stands apart.
    status, codes = problems_of(DOCUMENT.components["responses"]["MethodNotAllowed"])
    described |= {(code, status) for code in codes}
    assert described == {(code, status) for code, (status, _) in PROBLEMS.items()}


def types_of(schema: dict[str, Any]) -> set[str]:
    """The types of JSON that a schema allows."""
    schema = DOCUMENT.resolved(schema)
    if "anyOf" in schema:
        return set().union(*map(types_of, schema["anyOf"]))
    if "type" in schema:
        return {schema["type"]} if isinstance(schema["type"], str) else set(schema["type"])
    values = schema.get("enum", [schema.get("const")])
    return {{str: "string", int: "integer", type(None): "null"}[type(value)] for value in values}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_has_the_members_that_the_engine_reads(name: str) -> None:
    described = DOCUMENT.components["schemas"][name]
    _, components = msgspec.json.schema_components(
        [REQUESTS[name]], ref_template="#/components/schemas/{name}"
    )
    read = components[name]
    assert described["properties"].keys() == read["properties"].keys()
    assert set(described["required"]) == set(read["required"])
    assert described["additionalProperties"] is read["additionalProperties"] is False
    for member, schema in read["properties"].items():
        if schema:  # of what is decoded later, nothing is said
            assert types_of(described["properties"][member]) == types_of(schema), member


def test_every_request_is_one_that_the_engine_reads() -> None:
    described = {
        media["schema"]["$ref"].rpartition("/")[2]
        for operation in DOCUMENT.operations.values()
        for kind, media in operation.request.items()
        if kind == JSON_TYPE
    }
    parts = {"Client", "BatchItem", "CombinedItem"}
    assert described | parts == REQUESTS.keys()


@pytest.mark.parametrize("place", LIMITS)
def test_a_limit_is_the_default_of_its_setting(place: str) -> None:
    number: Any = DOCUMENT.components
    for name in place.split("/"):
        number = number[name]
    assert number == getattr(Settings(), LIMITS[place])


def test_every_example_is_as_its_schema_says() -> None:
    parameters = DOCUMENT.components["parameters"].values()
    given = [(part["schema"], example) for part in parameters for example in examples_in(part)]
    answers = list(DOCUMENT.components["responses"].values())
    for operation in DOCUMENT.operations.values():
        answers += DOCUMENT.responses(operation).values()
        for media in operation.request.values():
            given += [(media["schema"], example) for example in examples_in(media)]
    for answer in answers:
        for media_type, media in answer.get("content", {}).items():
            schema = DOCUMENT.answer(answer, media_type)
            given += [(schema, example) for example in examples_in(media)]
    assert given
    for schema, example in given:
        assert not DOCUMENT.complaints(schema, example), example


@pytest.mark.parametrize("operation", list(DOCUMENT.operations.values()), ids=list(DOCUMENT.operations))
def test_every_body_has_an_example(operation: Operation) -> None:
    assert all(map(examples_in, operation.request.values()))
    for response in DOCUMENT.responses(operation).values():
        assert all(map(examples_in, response.get("content", {}).values())), response["description"]


def test_the_version_is_that_of_the_project() -> None:
    assert DOCUMENT.whole["info"]["version"] == importlib.metadata.version("redemption-engine")


def test_the_calls_in_prose_are_those_described() -> None:
    """The table of docs/api.md names every call, and the scope that it needs."""
    text = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    in_prose = {
        (method, path.partition("?")[0], None if scope == "none" else scope.replace("`", ""))
        for calls, scope in re.findall(r"^\| (`[A-Z]+ /.*?) \| (none|[a-z` ]+) \|", text, re.MULTILINE)
        for method, path in re.findall(r"`([A-Z]+) (/\S+?)`", calls)
    }
    described = {
        (operation.method, operation.path, operation.scope) for operation in DOCUMENT.operations.values()
    }
    assert in_prose == {call for call in described if call[0] != "HEAD"}


def test_the_types_of_events_are_those_of_the_feed() -> None:
    assert set(DOCUMENT.components["schemas"]["EventType"]["enum"]) == EVENT_TYPES


def test_the_types_for_webhooks_are_those_of_events_and_of_alerts() -> None:
    of_events, of_alerts = DOCUMENT.components["schemas"]["WebhookType"]["anyOf"]
    assert of_events == {"$ref": "#/components/schemas/EventType"}
    assert set(of_alerts["enum"]) | EVENT_TYPES == TYPES
