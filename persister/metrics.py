"""What persister and deliverer count, for Prometheus.

They only count what they do. How far they are behind, and whether they live, is measured from outside of
them (``engine/health/parts.py``). Several processes may share one directory (PROMETHEUS_MULTIPROC_DIR).
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prometheus_client import Counter, start_http_server

from engine.observability import exposition

if TYPE_CHECKING:
    from collections.abc import Iterator

PERSISTED: Final = Counter("redeem_persisted_events_total", "Rows written to the ledger.", ["shard"])
REJECTED: Final = Counter("redeem_persister_rejects_total", "Entries kept in ledger_rejects.", ["shard"])
UNREAD_TRIMMED: Final = Counter(
    "redeem_unread_trimmed_total", "Entries trimmed that a consumer group still needed.", ["shard"]
)
CONFLICTS: Final = Counter(
    "redeem_conflicts_total", "Codes that succeeded more often, or for more, than they may.", ["kind"]
)
WEBHOOK_ATTEMPTS: Final = Counter(
    "redeem_webhook_attempts_total", "Calls of webhook endpoints.", ["webhook", "outcome"]
)


@contextmanager
def serve_metrics(host: str, port: int) -> Iterator[None]:
    """Serve /metrics on this port, in a thread, while the block runs. Port 0: do not serve."""
    if port == 0:
        yield
        return
    shared = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    shown = exposition.registry(Path(shared) if shared else None)
    server, thread = start_http_server(port, addr=host, registry=shown)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
