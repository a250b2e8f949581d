"""Request ids: every answer has the header Request-Id, and a log line about a request has the same id.

A caller may send an id of its own. It is used if it is well-formed and contains no code, because it may be
logged.

``PROCESS`` and ``next_number`` make up a new id. The express lane puts them together itself.
"""

from __future__ import annotations

import itertools
import re
import secrets
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HEADER: Final = "Request-Id"
_WELL_FORMED: Final = re.compile(r"[A-Za-z0-9._~+/=:@-]{1,128}")
PROCESS: Final = f"req-{secrets.token_hex(6)}-"
next_number: Final = itertools.count(1).__next__


def make_request_id() -> str:
    """Return a new id: random for each process, then a number. It costs a fraction of a microsecond."""
    return f"{PROCESS}{next_number():x}"


def request_id_of(given: Sequence[str], contains_code: Callable[[str], bool]) -> str:
    """Return the id of a request whose headers Request-Id are ``given``: the caller's, or a new one."""
    if len(given) == 1 and _WELL_FORMED.fullmatch(given[0]) and not contains_code(given[0]):
        return given[0]
    return make_request_id()
