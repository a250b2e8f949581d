"""The page of each problem code, to which ``type`` of a problem document points: what it means, what to do.

The pages are complete by themselves: no script, and nothing from another place.
"""

from __future__ import annotations

import base64
import hashlib
import tomllib
from html import escape
from http import HTTPStatus
from importlib import resources
from typing import Final

from engine.api.problems import PROBLEMS, RETRYABLE_STATUS

_STYLE: Final = (
    "body{font:1rem/1.5 system-ui,sans-serif;color-scheme:light dark}"
    "body{max-width:42rem;margin:2rem auto;padding:0 1rem}"
    "code{font-size:1.1em}dt{font-weight:bold;margin-top:1rem}dd{margin:0}"
)
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
CONTENT_SECURITY_POLICY: Final = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'"

_ADVICE_FILE: Final = resources.files(__package__) / "problem_advice.toml"
ADVICE: Final[dict[str, str]] = tomllib.loads(_ADVICE_FILE.read_text(encoding="utf-8"))
"""For each code, what the caller can do about it."""


def page_of(code: str) -> str:
    """Return the page of a problem code as HTML.

    Raises:
        KeyError: there is no such code.
    """
    status, meaning = PROBLEMS[code]
    retry = "yes" if status == RETRYABLE_STATUS else "only if the cause is gone"
    rows = {
        "Status": f"{status} {HTTPStatus(status).phrase}",
        "Meaning": meaning,
        "What to do": ADVICE[code],
        "Worth a retry": retry,
    }
    listed = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in rows.items())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{code}</title><style>{_STYLE}</style>'
        f"<main><h1><code>{code}</code></h1><dl>{listed}</dl>"
        '<p><a href="/problems">All problems</a></p></main></html>\n'
    )


def index_page() -> str:
    """Return the page that lists all problem codes, as HTML."""
    rows = "".join(
        f'<dt><a href="/problems/{code}"><code>{code}</code></a> ({status})</dt><dd>{escape(meaning)}</dd>'
        for code, (status, meaning) in PROBLEMS.items()
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Problems</title><style>{_STYLE}</style>'
        f"<main><h1>Problems</h1><dl>{rows}</dl></main></html>\n"
    )
