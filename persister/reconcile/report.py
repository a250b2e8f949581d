"""The report of a reconciliation: how many things were checked, and which differ."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple


class ReportedDifference(NamedTuple):
    """One difference: the check, the item, the expected value and the value found."""

    check: str
    item: str
    expected: str
    found: str


class ChainHead(NamedTuple):
    """End of a shard's chain. Noted elsewhere, it later shows whether the whole chain was made anew."""

    shard: int
    seq: int
    digest: str


@dataclass(slots=True)
class ReconciliationReport:
    """Counts every difference and keeps the first ``findings_max`` of each check."""

    findings_max: int
    looked_at: Counter[str] = field(default_factory=Counter)
    differing: Counter[str] = field(default_factory=Counter)
    findings: list[ReportedDifference] = field(default_factory=list)
    heads: list[ChainHead] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """True: no difference was found."""
        return not self.differing.total()

    def add(self, check: str, item: str, expected: object, found: object) -> None:
        """Count a difference, and keep it if the check has fewer than ``findings_max``."""
        self.differing[check] += 1
        if self.differing[check] <= self.findings_max:
            self.findings.append(ReportedDifference(check, item, str(expected), str(found)))

    def look(self, check: str, items: int = 1) -> None:
        """Count items as checked."""
        self.looked_at[check] += items

    def document(self) -> dict[str, object]:
        """The document that ``redeem audit --json`` prints."""
        return {
            "clean": self.clean,
            "checks": [
                {"check": name, "looked_at": count, "differing": self.differing[name]}
                for name, count in self.looked_at.items()
            ],
            "findings": [finding._asdict() for finding in self.findings],
            "chain": [head._asdict() for head in self.heads],
        }
