"""The persister's Prometheus metrics, by shard.

Several processes may share one directory of values (PROMETHEUS_MULTIPROC_DIR). For a gauge, the latest value
counts; ``redeem_persister_owner`` is the sum over live processes, so any value but 1 is an alert.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prometheus_client import Counter, Gauge, start_http_server

from engine.observability import exposition

if TYPE_CHECKING:
    from collections.abc import Iterator

STREAM_LENGTH: Final = Gauge(
    "redeem_stream_length", "Entries in the stream.", ["shard"], multiprocess_mode="mostrecent"
)
LAG_EVENTS: Final = Gauge(
    "redeem_persister_lag_events",
    "Entries of the stream that are not yet in the ledger.",
    ["shard"],
    multiprocess_mode="mostrecent",
)
LAG_SECONDS: Final = Gauge(
    "redeem_persister_lag_seconds",
    "Age of the oldest entry that is not yet in the ledger; 0 when there is none.",
    ["shard"],
    multiprocess_mode="mostrecent",
)
MISSING: Final = Gauge(
    "redeem_ledger_missing_events",
    "Entries that were trimmed from the stream and are not in the ledger.",
    ["shard"],
    multiprocess_mode="mostrecent",
)
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
WEBHOOK_LAG: Final = Gauge(
    "redeem_webhook_lag_events",
    "Events of the ledger that the endpoint has still before it.",
    ["webhook"],
    multiprocess_mode="mostrecent",
)
DELIVERER: Final = Gauge(
    "redeem_deliverer_active", "Processes that deliver webhooks: 1.", multiprocess_mode="livesum"
)
OWNER: Final = Gauge(
    "redeem_persister_owner", "Processes that own the shard: 1.", ["shard"], multiprocess_mode="livesum"
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
