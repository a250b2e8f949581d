"""One line of health: the words of `/readyz`, and red only where redemptions are refused."""

from __future__ import annotations

import pytest

from engine.pages.health import health_of

FINE = dict.fromkeys(
    ("redis", "configuration", "mint_keys", "postgresql", "memory", "persister", "workers", "restarts"), "ok"
)


@pytest.mark.parametrize(
    ("findings", "lag_s", "level", "words"),
    [
        ({}, 0.2, "ok", []),
        ({"durability": "memory: accepted"}, None, "ok", []),
        ({}, 12.4, "warning", ["Ledger 12 s behind"]),
        ({"persister": "shard 0: does not run"}, 0.0, "warning", ["Persister: shard 0: does not run"]),
        ({"redis": "no connection"}, None, "failure", ["Redis: no connection"]),
        (
            {"memory": "short: new ones are refused", "postgresql": "away"},
            None,
            "failure",
            ["Redis's memory at 72 %: new redemptions and holds are refused", "PostgreSQL: away"],
        ),
    ],
)
def test_health_says_what_readyz_says(
    findings: dict[str, str], lag_s: float | None, level: str, words: list[str]
) -> None:
    assert health_of(FINE | findings, lag_s, 71.6) == {"level": level, "words": words}
