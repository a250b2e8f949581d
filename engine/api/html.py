"""The frame of the pages for people. They need no script and nothing from another place."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import Final

_STYLE: Final = (
    "body{font:1rem/1.5 system-ui,sans-serif;color-scheme:light dark}"
    "body{max-width:42rem;margin:2rem auto;padding:0 1rem}"
    "pre{overflow-x:auto;padding:.5rem;border:1px solid}"
    "input,button{font:inherit;min-height:3rem;padding:0 1rem;max-width:100%;box-sizing:border-box}"
    "code{font-size:1.1em}dt{font-weight:bold;margin-top:1rem}dd{margin:0}"
)
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
CONTENT_SECURITY_POLICY: Final = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'"


def page(title: str, body: str, language: str = "en") -> str:
    """Return a page as HTML. ``body`` is HTML. ``language``: a tag of BCP 47."""
    return (
        f'<!doctype html><html lang="{language}"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style><main>{body}</main></html>\n"
    )
