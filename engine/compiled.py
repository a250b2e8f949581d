"""Finds the modules that are compiled where the engine was installed with a C compiler."""

from __future__ import annotations

import importlib
from typing import Any


def find_compiled(name: str) -> Any:  # noqa: ANN401 - a compiled module has types only where it is used
    """Import a compiled module by its full name; None if it was not built here.

    Raises:
        ImportError: it is there but cannot be loaded. That is a fault to show.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None
