"""Loads SQL. Every query of engine and persister is in a ``.sql`` file beside the modules that use it."""

from __future__ import annotations

import functools
import re
from importlib import resources
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_QUERY = re.compile(r"^-- name: (\w+)\n(.*?)(?=^-- name: |\Z)", re.MULTILINE | re.DOTALL)


@functools.cache
def queries(package: str, name: str) -> Mapping[str, str]:
    """Return the queries of ``<name>.sql`` in ``package``, by their names.

    A line ``-- name: <query>`` begins a query, which ends at the next such line or with the file. The final
    semicolon is removed, because ``COPY (query)`` does not allow one. Text before the first name is a comment
    on the file.

    Call this at module level, so that a missing file fails the import and not a request:
    ``_SQL: Final = queries(__package__, "voids")``, then ``_SQL["insert"]``. An unknown name raises
    ``KeyError``; ``tests/contract/test_sql.py`` finds unknown names and unused queries.

    Raises:
        FileNotFoundError: the package has no such file.
        ValueError: two queries have the same name, or the file has no query.
    """
    text = (resources.files(package) / f"{name}.sql").read_text(encoding="utf-8")
    found = [(match[1], match[2].strip().removesuffix(";")) for match in _QUERY.finditer(text)]
    by_name = dict(found)
    if not found or len(by_name) != len(found):
        raise ValueError(f"{package}/{name}.sql has no query, or two queries with the same name")
    return MappingProxyType(by_name)
