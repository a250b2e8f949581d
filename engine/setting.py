"""One setting of ``Settings``: a field of a dataclass with its help and its limits."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def setting(
    default: Any,  # noqa: ANN401 - the field's own annotation carries the type
    help_text: str,
    *,
    least: int | None = None,
    most: int | str | None = None,
    secret: bool = False,
) -> Any:  # noqa: ANN401 - as above
    """Return a field with its help, minimum and maximum. ``repr`` does not show the value of a secret.

    ``most`` may be the name of another setting.
    """
    return field(default=default, repr=not secret, metadata={"help": help_text, "least": least, "most": most})
