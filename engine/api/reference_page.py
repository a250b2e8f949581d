"""The page ``/docs``: every call of ``openapi.json`` with its scope, parameters, example and answers."""

from __future__ import annotations

import functools
import json
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

import orjson

from engine.api.html import page

if TYPE_CHECKING:
    from collections.abc import Iterator

_FILE: Final = resources.files(__package__) / "openapi.json"
_PROBLEM_CODES: Final = "x-problem-codes"


@functools.cache
def openapi_document() -> bytes:
    """Return ``openapi.json`` as the engine serves it: its server is the one that was asked for it."""
    return orjson.dumps(_document() | {"servers": [{"url": "/"}]})


@functools.cache
def reference_page() -> str:
    """Return the page as HTML."""
    document = _document()
    calls: dict[str, list[str]] = {tag["name"]: [] for tag in document["tags"]}
    for path, item in document["paths"].items():
        for method, details in item.items():
            if method != "head":
                calls[details["tags"][0]].append(_call(document, method.upper(), path, details))
    parts = [f"<h2>{escape(tag)}</h2>{''.join(described)}" for tag, described in calls.items()]
    return page(
        document["info"]["title"],
        f"<h1>{escape(document['info']['title'])}</h1><p>{escape(document['info']['summary'])}</p>"
        '<p><a href="/openapi.json">openapi.json</a> describes the same calls for machines; '
        '<a href="/problems">problems</a> lists the codes of refusals.</p>' + "".join(parts),
    )


@functools.cache
def _document() -> dict[str, Any]:
    document: dict[str, Any] = orjson.loads(_FILE.read_bytes())
    return document


def _resolved(document: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        found: Any = document
        for name in node["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        node = found
    return node


def _call(document: dict[str, Any], method: str, path: str, details: dict[str, Any]) -> str:
    scopes = " or ".join(choice["apiKey"][0] for choice in details["security"])
    needs = f"Scope: <code>{scopes}</code>." if scopes else "Needs no API key."
    description = escape(details.get("description", ""))
    rows = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in _rows(document, details))
    return (
        f'<h3 id="{details["operationId"]}"><code>{method} {escape(path)}</code></h3>'
        f"<p>{escape(details['summary'])}. {needs} {description}</p><dl>{rows}</dl>"
    )


def _rows(document: dict[str, Any], details: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what a call takes and answers, as (name, HTML)."""
    for parameter in details.get("parameters", []):
        shown = _resolved(document, parameter)
        told = shown.get("description", "") or _resolved(document, shown["schema"]).get("description", "")
        required = "required. " if shown.get("required") else ""
        yield f"{shown['in']}: <code>{shown['name']}</code>", required + escape(told)
    for kind, media in details.get("requestBody", {}).get("content", {}).items():
        yield f"body: {kind}", _example(media)
    for status, response in details["responses"].items():
        answer = _resolved(document, response)
        links = ", ".join(
            f'<a href="/problems/{code}"><code>{code}</code></a>' for code in answer.get(_PROBLEM_CODES, [])
        )
        medias = answer.get("content", {}).values()
        example = "" if links else "".join(map(_example, medias))
        yield status, f"{escape(answer['description'])} {links}{example}"


def _example(media: dict[str, Any]) -> str:
    examples = [media["example"]] if "example" in media else []
    examples += [example["value"] for example in media.get("examples", {}).values()]
    if not examples:
        return ""
    first = examples[0]
    shown = first if isinstance(first, str) else json.dumps(first, indent=2, ensure_ascii=False)
    return f"<pre><code>{escape(shown)}</code></pre>"
