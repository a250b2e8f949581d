"""The persister's SQL: one statement a file in ``persister/sql``, read when it is first asked for."""

from __future__ import annotations

import functools
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable


def directory() -> Traversable:
    """Where the SQL files are, in a source tree or an installed package."""
    return resources.files("persister").joinpath("sql")


@functools.cache
def query(name: str) -> str:
    """The text of ``sql/<name>.sql``."""
    return directory().joinpath(f"{name}.sql").read_text(encoding="utf-8")
