"""Reads the tables of docs/doctor.md."""

from __future__ import annotations

import re


def pattern_of(says: str) -> str:
    """A regular expression for what ``redeem doctor`` says, as a table has it: ``…`` stands for any text."""
    return ".*".join(map(re.escape, says.split("…")))
