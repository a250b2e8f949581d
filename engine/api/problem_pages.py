"""The page of each problem code, to which ``type`` of a problem points: what it means, what to do."""

from __future__ import annotations

import tomllib
from html import escape
from http import HTTPStatus
from importlib import resources
from typing import Final

from engine.api.html import page
from engine.api.problems import PROBLEMS, RETRYABLE_STATUS

_ADVICE_FILE: Final = resources.files(__package__) / "problem_advice.toml"
ADVICE: Final[dict[str, str]] = tomllib.loads(_ADVICE_FILE.read_text(encoding="utf-8"))
"""For each code, what the caller can do about it."""


def page_of(code: str) -> str:
    """Return the page of a problem code as HTML.

    Raises:
        KeyError: there is no such code.
    """
    status, meaning = PROBLEMS[code]
    may_retry = status in {RETRYABLE_STATUS, HTTPStatus.TOO_MANY_REQUESTS}
    retry = "yes" if may_retry else "only if the cause is gone"
    rows = {
        "Status": f"{status} {HTTPStatus(status).phrase}",
        "Meaning": meaning,
        "What to do": ADVICE[code],
        "Worth a retry": retry,
    }
    listed = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in rows.items())
    return page(
        code, f'<h1><code>{code}</code></h1><dl>{listed}</dl><p><a href="/problems">All problems</a></p>'
    )


def index_page() -> str:
    """Return the page that lists all problem codes, as HTML."""
    rows = "".join(
        f'<dt><a href="/problems/{code}"><code>{code}</code></a> ({status})</dt><dd>{escape(meaning)}</dd>'
        for code, (status, meaning) in PROBLEMS.items()
    )
    return page("Problems", f"<h1>Problems</h1><dl>{rows}</dl>")
