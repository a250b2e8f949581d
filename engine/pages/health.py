"""One line about the deployment's health, from what ``/readyz`` says of each part."""

from __future__ import annotations

from typing import Final

LAG_S_MAX: Final = 10.0
"""A ledger that is further behind is worth a word: it catches up within a second as a rule."""
OK: Final = "ok"
WARNING: Final = "warning"
FAILURE: Final = "failure"
# Without these, redemptions are refused.
_NEEDED: Final = {"redis": "Redis", "configuration": "Configuration", "mint_keys": "Mint keys"}
_OTHERS: Final = {
    "postgresql": "PostgreSQL",
    "persister": "Persister",
    "workers": "Workers",
    "restarts": "Restarts",
}


def health_of(
    findings: dict[str, str], lag_s: float | None, memory_percent: float | None
) -> dict[str, object]:
    """Return ``level`` and ``words``, one for each finding.

    ``failure``: redemptions are refused. ``warning``: something is wrong, and redemptions go on. What an
    operator has accepted by a setting (``durability``) is no finding.
    """
    failures = [f"{name}: {findings[part]}" for part, name in _NEEDED.items() if findings.get(part, OK) != OK]
    if findings.get("memory", OK) != OK:
        at = "" if memory_percent is None else f" at {memory_percent:.0f} %"
        failures.append(f"Redis's memory{at}: new redemptions and holds are refused")
    warnings = [f"{name}: {findings[part]}" for part, name in _OTHERS.items() if findings.get(part, OK) != OK]
    if lag_s is not None and lag_s > LAG_S_MAX:
        warnings.append(f"Ledger {lag_s:.0f} s behind")
    level = FAILURE if failures else WARNING if warnings else OK
    return {"level": level, "words": failures + warnings}
