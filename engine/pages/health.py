"""One line about the deployment's health, from what ``/readyz`` says of each part."""

from __future__ import annotations

from typing import Final

from engine.health.parts import REQUIRED_PARTS

LAG_S_MAX: Final = 10.0
"""A ledger that is further behind is worth a word: it catches up within a second as a rule."""
OK: Final = "ok"
WARNING: Final = "warning"
FAILURE: Final = "failure"
_NAMES: Final = {
    "redis": "Redis",
    "configuration": "Configuration",
    "mint_keys": "Mint keys",
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
    troubles = {
        part: f"{name}: {findings[part]}" for part, name in _NAMES.items() if findings.get(part, OK) != OK
    }
    failures = [words for part, words in troubles.items() if part in REQUIRED_PARTS]
    if findings.get("memory", OK) != OK:
        at = "" if memory_percent is None else f" at {memory_percent:.0f} %"
        failures.append(f"Redis's memory{at}: new redemptions and holds are refused")
    warnings = [words for part, words in troubles.items() if part not in REQUIRED_PARTS]
    if lag_s is not None and lag_s > LAG_S_MAX:
        warnings.append(f"Ledger {lag_s:.0f} s behind")
    level = FAILURE if failures else WARNING if warnings else OK
    return {"level": level, "words": failures + warnings}
