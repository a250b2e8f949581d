"""What an audit has looked at, and what it found different."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple


class ReportedDifference(NamedTuple):
    """Something that is not as it should be: what was looked at, which one, what should be, what is."""

    check: str
    item: str
    expected: str
    found: str


class ChainHead(NamedTuple):
    """Where a shard's chain ends: whoever keeps this notices later if all of it was made anew."""

    shard: int
    seq: int
    digest: str


@dataclass(slots=True)
class ReconciliationReport:
    """All of it. Findings are counted without end, and kept up to ``findings_max`` of each check."""

    findings_max: int
    looked_at: Counter[str] = field(default_factory=Counter)
    differing: Counter[str] = field(default_factory=Counter)
    findings: list[ReportedDifference] = field(default_factory=list)
    heads: list[ChainHead] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not self.differing.total()

    def add(self, check: str, item: str, expected: object, found: object) -> None:
        """Count a finding, and keep it if there are not too many."""
        self.differing[check] += 1
        if self.differing[check] <= self.findings_max:
            self.findings.append(ReportedDifference(check, item, str(expected), str(found)))

    def look(self, check: str, items: int = 1) -> None:
        """Count what was looked at."""
        self.looked_at[check] += items

    def document(self) -> dict[str, object]:
        """As JSON shows it."""
        return {
            "clean": self.clean,
            "checks": [
                {"check": name, "looked_at": count, "differing": self.differing[name]}
                for name, count in self.looked_at.items()
            ],
            "findings": [finding._asdict() for finding in self.findings],
            "chain": [head._asdict() for head in self.heads],
        }
