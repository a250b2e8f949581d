"""Every setting, parsed once, before anything else runs.

Sources, the later one wins: the defaults here, a TOML file (``REDEEM_CONFIG``, else
``redeem.toml`` where it exists), ``REDEEM_*`` variables, options of the command line.
An unknown name is an error in each of them.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "REDEEM_"
# Not settings of the engine: where the file is, and what only the test suite reads.
OTHER_VARIABLES = ("REDEEM_CONFIG",)
PORT_MAX = 65_535
LOG_LEVELS = ("debug", "info", "warning", "error")
DURABILITIES = ("disk", "memory")
OTHER_PREFIXES = ("REDEEM_TEST_",)


class SettingsError(Exception):
    """A setting is unknown, or its value cannot be used; the message names it."""


def _setting(default: Any, help_text: str, *, least: int | None = None, secret: bool = False) -> Any:  # noqa: ANN401 - the field's own annotation carries the type
    """A field with its help; the value of a secret is not shown where settings are printed."""
    return field(default=default, repr=not secret, metadata={"help": help_text, "least": least})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings; the help of each is its text in docs/settings.md."""

    host: str = _setting("127.0.0.1", "address the front end listens on")
    port: int = _setting(8080, "port the front end listens on; 0 takes a free one", least=0)
    workers: int = _setting(0, "front-end processes; 0 means one a core", least=0)
    data_dir: Path = _setting(Path(".redeem"), "where the bundled servers and the mint keys live")
    redis_url: str = _setting("", "use this Redis or Valkey instead of the bundled one", secret=True)
    database_url: str = _setting("", "use this PostgreSQL instead of the bundled one", secret=True)
    postgres_os_user: str = _setting(
        "nobody", "system user the bundled PostgreSQL runs as when `redeem up` is run by root"
    )
    shards: int = _setting(1, "Redis shards; fixed when the deployment is initialised", least=1)
    durability: str = _setting(
        "disk",
        "disk: a Redis that does not fsync each write is refused; memory: it is accepted, and answers say so",
    )
    redis_memory_percent_max: int = _setting(
        70, "share of Redis's maxmemory past which new redemptions and holds get 503; 100: none", least=1
    )
    demo: bool = _setting(True, "`redeem up` creates a demo campaign in an empty deployment")  # noqa: FBT003 - its default
    log_level: str = _setting("info", "debug, info, warning or error")

    mint_keys: str = _setting("", "mint keys as name:hex64[,name:hex64…]; else the file", secret=True)
    mint_keys_file: Path | None = _setting(None, "file with the mint keys (default: mint-keys in data_dir)")

    batch_max: int = _setting(128, "attempts in one call of a script", least=1)
    queue_max: int = _setting(4096, "attempts that wait for a shard in one worker; past it, 503", least=1)
    attempt_deadline_ms: int = _setting(2000, "an attempt is answered by then, whatever happens", least=1)
    retry_after_s: int = _setting(1, "what Retry-After says in a 503", least=1)
    fast_lane: bool = _setting(
        True,  # noqa: FBT003 - its default
        "plain redemptions are answered in front of aiohttp, which then serves all other requests only",
    )
    connections_max: int = _setting(10_000, "open connections of one worker", least=1)
    keepalive_s: int = _setting(75, "an idle connection is closed after this", least=1)
    request_timeout_s: int = _setting(
        30, "the head of a request must have arrived by then, and its body as long after that", least=1
    )
    body_bytes_max: int = _setting(16_384, "body of a request on the redeem path", least=256)
    hold_ttl_s: int = _setting(600, "how long a hold lasts, unless the request says", least=1)
    hold_ttl_max_s: int = _setting(3600, "the longest that a request may ask a hold to last", least=1)
    hold_expiry_interval_ms: int = _setting(
        250, "how often expired holds are looked for and given back", least=1
    )
    reason_length_max: int = _setting(256, "characters of a reason", least=1)
    combined_items_max: int = _setting(30, "codes of one call that redeems them together", least=1)
    batch_items_max: int = _setting(100, "items of one call that redeems a batch", least=1)
    batch_body_bytes_max: int = _setting(262_144, "body of a call that redeems a batch", least=256)
    admin_body_bytes_max: int = _setting(262_144, "body of any other request", least=256)
    code_length_max: int = _setting(64, "characters of a code as typed, separators included", least=16)
    user_length_max: int = _setting(128, "characters of a user", least=1)
    order_length_max: int = _setting(128, "characters of an order", least=1)
    idempotency_key_length_max: int = _setting(255, "characters of an Idempotency-Key", least=1)
    metadata_bytes_max: int = _setting(4096, "metadata of a request, as JSON", least=2)
    page_limit_max: int = _setting(1000, "items of one page of a list", least=1)
    tail_scan_max: int = _setting(
        10_000, "stream entries a list reads for redemptions not yet in the ledger", least=1
    )
    state_scan_max: int = _setting(50_000, "redemptions that a list by state looks at for one page", least=1)
    mint_count_max: int = _setting(268_435_456, "codes of one batch", least=1)
    import_code_symbols_min: int = _setting(
        4, "symbols of an imported code, separators not counted; shorter ones are unusable", least=1
    )
    import_line_bytes_max: int = _setting(4096, "a longer line of an import is unusable", least=64)
    import_chunk_lines: int = _setting(10_000, "lines of an import that are written together", least=1)
    imports_max: int = _setting(2, "imports at once in one worker; past it, 503", least=1)
    void_ranges_max: int = _setting(
        1000, "ranges of serials that the void codes of one batch may be in", least=1
    )
    erasure_timeout_s: int = _setting(
        30, "an erasure waits this long for the ledger; its change may take as long again", least=1
    )

    feed_wait_s_max: int = _setting(60, "the longest that a reader of events may ask to wait", least=1)
    feed_readers_max: int = _setting(
        100, "readers of events that wait or stream in one worker; past it, 503", least=1
    )
    feed_poll_ms: int = _setting(
        100, "how often a worker looks for new events in the ledger, while a reader waits", least=1
    )
    feed_scan_max: int = _setting(
        20_000, "events of a shard that are looked at for one page of the feed, with a filter", least=1
    )
    feed_heartbeat_s: int = _setting(
        15, "how often a stream of events says that it is alive, and its key is looked at again", least=1
    )
    feed_stall_s_max: int = _setting(
        30, "a stream of events whose reader takes nothing is cut off after this", least=1
    )

    webhooks_max: int = _setting(
        100, "webhook endpoints; each is called by itself, one call at a time", least=1
    )
    webhooks_allow_private: bool = _setting(
        False,  # noqa: FBT003 - its default
        "webhooks may go to private and loopback addresses, and over http",
    )
    webhook_timeout_s: int = _setting(15, "an endpoint has answered by then, or failed", least=1)
    webhook_retry_s: str = _setting(
        "5,300,1800,7200,18000,36000,50400,72000,72000",
        "pauses between the tries of a message, in seconds; after the last try it is a dead letter",
    )
    webhook_rotation_grace_s: int = _setting(
        86_400, "how long an old secret of a webhook stays good, at most", least=0
    )
    webhook_batch_events_max: int = _setting(
        1000, "events of one message, of a webhook with batches", least=1
    )
    webhook_response_bytes_max: int = _setting(
        1024, "of the body of an endpoint's refusal, how much is read and kept", least=0
    )
    webhook_attempts_kept_h: int = _setting(168, "how long attempts to deliver can be listed", least=1)
    webhook_poll_ms: int = _setting(
        100, "how often the deliverer looks for new events and changed endpoints", least=1
    )

    database_connections_max: int = _setting(4, "PostgreSQL connections of one worker", least=1)
    database_timeout_s: int = _setting(10, "a query of the front end is given up after this", least=1)
    republish_interval_s: int = _setting(5, "how often Redis is compared with the configuration", least=1)
    persist_batch_max: int = _setting(5000, "events in one transaction of the persister", least=1)
    persist_block_ms: int = _setting(1000, "how long the persister waits for news in one call", least=1)
    persist_interval_ms: int = _setting(20, "shortest time from one small transaction to the next", least=0)
    persist_timeout_s: int = _setting(10, "a statement of the persister is given up after this", least=1)
    persist_backoff_s_max: int = _setting(5, "longest pause before the persister tries again", least=1)
    conflict_interval_ms: int = _setting(
        500, "how often new rows of the ledger are looked through for codes that succeeded twice", least=1
    )
    stream_retained_max: int = _setting(
        100_000,
        "entries of a stream that are in the ledger and kept for consumer groups; past it they are trimmed",
        least=0,
    )
    ledger_detach_days_min: int = _setting(
        35, "how long a month must be over before `redeem ledger detach` takes it out", least=0
    )
    audit_wait_s: int = _setting(
        10, "how long `redeem audit` waits for the ledger before it reads the rest from the streams", least=0
    )
    audit_findings_max: int = _setting(
        100, "differences of one kind that `redeem audit` lists; it counts all of them", least=1
    )
    metrics_port: int = _setting(0, "port of the persister's own /metrics; 0 means none", least=0)
    start_timeout_s: int = _setting(
        60,
        "a worker that does not serve by then is started again; bundled servers get at least 300 s",
        least=1,
    )
    stop_timeout_s: int = _setting(20, "one deadline for an orderly stop of everything", least=1)

    @property
    def run_dir(self) -> Path:
        """Where processes meet: sockets, and a directory for each front end that runs."""
        return self.data_dir / "run"

    @property
    def mint_keys_path(self) -> Path:
        """The file of mint keys, named or by default."""
        return self.mint_keys_file or self.data_dir / "mint-keys"

    @property
    def worker_count(self) -> int:
        """Front-end processes to start."""
        return self.workers or os.cpu_count() or 1

    def to_environ(self) -> dict[str, str]:
        """These settings as variables, all of them, for a process that must have the same."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {variable(name): str(value) for name, value in values.items() if value is not None}


def without_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment without any variable of ours."""
    return {name: value for name, value in environ.items() if not name.startswith(PREFIX)}


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def load(environ: Mapping[str, str], overrides: Mapping[str, object] | None = None) -> Settings:
    """Settings from file, environment and options.

    Raises:
        SettingsError: an unknown name, a value of the wrong type or below its least.
    """
    values: dict[str, object] = {}
    values.update(_from_file(environ))
    values.update(_from_environment(environ))
    values.update({name: value for name, value in (overrides or {}).items() if value is not None})
    known = {item.name: item for item in fields(Settings)}
    parsed: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise SettingsError(f"unknown setting {name!r}")
        parsed[name] = _parse(name, str(known[name].type), value)
        least = known[name].metadata["least"]
        if least is not None and parsed[name] < least:
            raise SettingsError(f"{variable(name)} must be at least {least}")
        if name == "log_level" and parsed[name].lower() not in LOG_LEVELS:
            raise SettingsError(f"{variable(name)} must be one of {', '.join(LOG_LEVELS)}")
        if name == "durability" and parsed[name] not in DURABILITIES:
            raise SettingsError(f"{variable(name)} must be {' or '.join(DURABILITIES)}")
        if name.endswith("port") and parsed[name] > PORT_MAX:
            raise SettingsError(f"{variable(name)} must be at most {PORT_MAX}")
    return Settings(**parsed)


def _from_file(environ: Mapping[str, str]) -> dict[str, object]:
    named = environ.get("REDEEM_CONFIG")
    path = Path(named or "redeem.toml")
    if not named and not path.exists():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"cannot read settings from {path}: {error}") from error


def _from_environment(environ: Mapping[str, str]) -> dict[str, object]:
    known = {variable(item.name): item.name for item in fields(Settings)}
    found: dict[str, object] = {}
    for name, value in environ.items():
        if not name.startswith(PREFIX) or name in OTHER_VARIABLES or name.startswith(OTHER_PREFIXES):
            continue
        if name not in known:
            raise SettingsError(f"unknown setting {name}")
        found[known[name]] = value
    return found


def _parse(name: str, annotation: str, value: object) -> object:
    try:
        if annotation == "int":
            if isinstance(value, bool) or not isinstance(value, int | str):
                raise TypeError  # noqa: TRY301 - told like any other value that is no number
            return int(value)
        if annotation == "bool":
            return _BOOLEANS[str(value).lower()]
    except (KeyError, TypeError, ValueError) as error:
        raise SettingsError(f"{variable(name)} is not a valid {annotation}: {value!r}") from error
    if annotation.startswith("Path"):
        return Path(str(value)) if str(value) else None
    return str(value)


_BOOLEANS = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}
