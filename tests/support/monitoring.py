"""Reads the metrics of a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.support.deployment import Merchant

NOWHERE: Final = "postgresql://127.0.0.1:1/none"
"""A URL on which no PostgreSQL listens."""


async def metrics(merchant: Merchant) -> dict[str, float]:
    """Return all samples by name and labels."""
    async with merchant.session.get(merchant.url + "/metrics") as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        lines = (await response.text()).splitlines()
    samples = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}
