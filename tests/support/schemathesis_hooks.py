"""Schemathesis hooks (tests/contract/test_schemathesis.py): they change calls before they are sent."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import schemathesis

if TYPE_CHECKING:
    from schemathesis import Case, HookContext

_HEADER: Final = "Idempotency-Key"
_USUAL: Final = re.compile("[!-~]{1,200}")
_sent: set[str] = set()


@schemathesis.hook
def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:  # noqa: ARG001 - as the hook has it
    """Make each Idempotency-Key unique: generated keys repeat, and most calls would be refused for that."""
    key = case.headers.get(_HEADER, "")
    if _USUAL.fullmatch(key):
        if key in _sent:
            case.headers[_HEADER] = key = f"{key}-{len(_sent)}"
        _sent.add(key)
