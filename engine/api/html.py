"""The frame of the pages for people. They need no script and nothing from another place."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import Final

STYLE: Final = (
    ":root{color-scheme:light dark}body{font:1rem/1.5 system-ui,sans-serif}"
    "body{max-width:42rem;margin:2rem auto;padding:0 1rem}"
    "pre{overflow-x:auto;padding:.5rem;border:1px solid}"
    "input,button{font:inherit;min-height:3rem;padding:0 1rem;max-width:100%;box-sizing:border-box}"
    "code{font-size:1.1em}dt{font-weight:bold;margin-top:1rem}dd{margin:0}"
)


def content_security_policy(style: str) -> str:
    """Return the policy of a page with this style: nothing else may be loaded."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'"


CONTENT_SECURITY_POLICY: Final = content_security_policy(STYLE)


def page(title: str, body: str, language: str = "en", *, style: str = STYLE, root: str = "") -> str:
    """Return a page as HTML. ``body`` is HTML, ``root`` more attributes. ``language``: a tag of BCP 47."""
    return (
        f'<!doctype html><html lang="{language}"{root}><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        f"<style>{style}</style><main>{body}</main></html>\n"
    )
