"""Tests of FF1's compiled form are skipped where it was not built."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from engine.codes import ff1

IF_COMPILED = pytest.mark.skipif(find_spec(ff1.MODULE) is None, reason="FF1 was not compiled")
