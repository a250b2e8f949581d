"""The rank test of Mann and Whitney (1947): whether values of one sample tend to be larger than another's."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


def rank_difference(first: Sequence[float], second: Sequence[float]) -> float:
    """Return by how many standard deviations the first sample ranks above the second; 0 is no difference."""
    both = np.array([*first, *second])
    _, at, counts = np.unique(both, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[at]  # equal values share the mean of their ranks
    size, other = len(first), len(second)
    above = float(ranks[:size].sum()) - size * (size + 1) / 2
    ties = float((counts.astype(float) ** 3 - counts).sum()) / ((size + other) * (size + other - 1))
    return (above - size * other / 2) / math.sqrt(size * other / 12 * (size + other + 1 - ties))
