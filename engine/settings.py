"""Parses all settings once, before anything else runs.

Sources, each overrides those before it: the defaults here, a TOML file (``REDEEM_CONFIG``, else
``redeem.toml`` if it exists), ``REDEEM_*`` variables, options of the command line.
An unknown name in any source is an error.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.guard_settings import GuardSettings
from engine.setting import setting

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PREFIX = "REDEEM_"
# Variables that are not settings: the path of the settings file, and those that only the test suite reads.
OTHER_VARIABLES = ("REDEEM_CONFIG",)
PORT_MAX = 65_535
LOG_LEVELS = ("debug", "info", "warning", "error")
DEFAULT = "default"
DURABILITIES = ("disk", "memory")
RULE_MODES = ("off", "observe", "challenge", "enforce")
LANES = ("express", "python", "aiohttp")
OTHER_PREFIXES = ("REDEEM_TEST_",)
_HEADER = re.compile(r"[A-Za-z0-9-]{1,64}")


class SettingsError(Exception):
    """A setting is unknown, or its value cannot be used; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(GuardSettings):
    """All settings. docs/settings.md shows the help of each."""

    host: str = setting("127.0.0.1", "address the front end listens on")
    port: int = setting(8080, "port the front end listens on; 0 means any free port", least=0, most=PORT_MAX)
    workers: int = setting(0, "number of front-end processes; 0 means one per core", least=0)
    data_dir: Path = setting(Path(".redeem"), "directory of the bundled servers and of the mint keys")
    redis_url: str = setting("", "URL of Redis or Valkey; empty means the bundled server", secret=True)
    database_url: str = setting("", "URL of PostgreSQL; empty means the bundled server", secret=True)
    postgres_os_user: str = setting(
        "nobody", "system user of the bundled PostgreSQL when root runs `redeem up`"
    )
    shards: int = setting(
        1, "number of Redis shards; only `redeem rebuild` changes it after `redeem init`", least=1
    )
    durability: str = setting(
        "disk",
        "disk: refuse a Redis that does not fsync each write; memory: accept it, and say so in responses",
    )
    redis_memory_percent_max: int = setting(
        70,
        "percent of Redis's maxmemory above which new redemptions and holds get 503; 100 means never",
        least=1,
        most=100,
    )
    demo: bool = setting(False, "`redeem up` creates a demo campaign in an empty deployment, as with --demo")  # noqa: FBT003 - its default
    log_level: str = setting("info", "debug, info, warning or error")

    mint_keys: str = setting("", "mint keys as name:hex64[,name:hex64…]; empty means the file", secret=True)
    mint_keys_file: Path | None = setting(None, "file with the mint keys (default: mint-keys in data_dir)")

    batch_max: int = setting(128, "maximum attempts in one script call", least=1)
    gather_ms: int = setting(
        2,
        "longest wait of a script call for clients just answered, if it pays; at most 100, 0 means none",
        least=0,
        most=100,
    )
    queue_max: int = setting(
        4096, "maximum attempts that wait for one shard in one worker; more get 503", least=1
    )
    unknown_codes_max: int = setting(
        1024, "maximum unknown codes that wait for a second look-up in one worker; more get 503", least=1
    )
    worker_hung_s: int = setting(
        20,
        "seconds after which a worker that hangs is killed and replaced; 0 means never",
        least=0,
    )
    hung_timeout_s: int = setting(
        60,
        "seconds after which `redeem up` kills and replaces a persister or deliverer that hangs; 0 means "
        "never",
        least=0,
    )
    attempt_deadline_ms: int = setting(2000, "time limit for the response to an attempt", least=1)
    retry_after_s: int = setting(1, "value of Retry-After in a 503", least=1)
    lane: str = setting(
        "",
        "what answers plain redemptions: express, python or aiohttp; empty means express where it was built, "
        "else python",
    )
    connections_max: int = setting(10_000, "maximum open connections of one worker", least=1)
    keepalive_s: int = setting(
        75, "an idle connection is closed after this time, and one that takes none of its answers", least=1
    )
    request_timeout_s: int = setting(
        30, "time limit for the head of a request, and again for its body", least=1
    )
    request_deadline_s: int = setting(
        15,
        "time limit for an answer, but for exports, imports, erasures and events",
        least=1,
    )
    body_bytes_max: int = setting(16_384, "maximum body of a redemption request", least=256)
    hold_ttl_s: int = setting(
        600,
        "how long a hold lasts, if the request does not say; at most REDEEM_HOLD_TTL_MAX_S",
        least=1,
        most="hold_ttl_max_s",
    )
    hold_ttl_max_s: int = setting(3600, "longest time that a request may ask for a hold", least=1)
    hold_expiry_interval_ms: int = setting(
        250, "how often a worker looks for expired holds and releases them", least=1
    )
    reason_length_max: int = setting(256, "maximum characters of a reason", least=1)
    combined_items_max: int = setting(30, "maximum codes of a combined redemption", least=1)
    batch_items_max: int = setting(100, "maximum redemptions in one batched request", least=1)
    batch_body_bytes_max: int = setting(262_144, "maximum body of a batched redemption request", least=256)
    admin_body_bytes_max: int = setting(262_144, "maximum body of any other request", least=256)
    code_length_max: int = setting(64, "maximum characters of a typed code, with separators", least=16)
    user_length_max: int = setting(128, "maximum characters of a user", least=1)
    order_length_max: int = setting(128, "maximum characters of an order", least=1)
    idempotency_key_length_max: int = setting(255, "maximum characters of an Idempotency-Key", least=1)
    metadata_bytes_max: int = setting(4096, "maximum size of a request's metadata as JSON", least=2)
    metadata_kept: bool = setting(
        default=False, help_text="keep the metadata of redemptions and holds, and return it in records"
    )
    page_limit_max: int = setting(1000, "maximum items on one page of a list", least=1)
    tail_scan_max: int = setting(
        10_000, "how many events of a stream a list reads to find redemptions not yet in the ledger", least=1
    )
    state_scan_max: int = setting(
        50_000, "maximum redemptions that a list by state reads for one page", least=1
    )
    mint_count_max: int = setting(268_435_456, "maximum codes of one batch", least=1)
    import_code_symbols_min: int = setting(
        4, "minimum symbols of an imported code, without separators; a shorter code is unusable", least=1
    )
    import_line_bytes_max: int = setting(
        4096, "maximum length of a line of an import; a longer line is unusable", least=64
    )
    import_chunk_lines: int = setting(10_000, "lines of an import that are written in one step", least=1)
    imports_max: int = setting(2, "maximum imports at a time in one worker; more get 503", least=1)
    void_ranges_max: int = setting(1000, "maximum separate ranges of void serials in one batch", least=1)
    erasure_timeout_s: int = setting(
        30, "time limit for an erasure to wait for the ledger, and again for its change", least=1
    )

    feed_wait_s_max: int = setting(60, "longest wait that a reader of events may ask for", least=1)
    feed_readers_max: int = setting(
        100, "maximum readers of events that wait or stream in one worker; more get 503", least=1
    )
    feed_poll_ms: int = setting(
        100, "how often a worker looks for new events in the ledger while a reader waits", least=1
    )
    feed_scan_max: int = setting(
        20_000, "maximum events of a shard that are read for one page of a filtered feed", least=1
    )
    feed_heartbeat_s: int = setting(15, "how often an event stream sends a heartbeat", least=1)
    exports_max: int = setting(
        4, "maximum exports of codes that one worker serves at once; more get 503", least=1
    )
    export_stall_s_max: int = setting(
        60, "an export of codes is ended when its reader takes nothing for this long", least=1
    )
    feed_stall_s_max: int = setting(
        30, "an event stream is closed when its reader takes nothing for this long", least=1
    )

    webhooks_max: int = setting(100, "maximum webhook endpoints; each gets one call at a time", least=1)
    webhooks_allow_private: bool = setting(
        False,  # noqa: FBT003 - its default
        "allow webhooks to private and loopback addresses, and over http",
    )
    webhook_timeout_s: int = setting(15, "time limit for the response of an endpoint", least=1)
    webhook_retry_s: str = setting(
        "5,10,20,40,60,120,300,600,1800,3600,7200,14400,28800,28800,43200,43200,43200,43200",
        "pauses between the tries of a message, in seconds; after the last try it becomes a dead letter",
    )
    webhook_rotation_grace_s: int = setting(
        86_400, "longest time that an old secret of a webhook stays valid", least=0
    )
    webhook_batch_events_max: int = setting(
        1000, "maximum events in one message, if the webhook asks for batches", least=1
    )
    webhook_response_bytes_max: int = setting(
        1024, "how much of the body of an endpoint's error response is read and stored", least=0
    )
    webhook_attempts_kept_h: int = setting(168, "how long delivery attempts can be listed", least=1)
    webhook_poll_ms: int = setting(
        100, "how often the deliverer looks for new events and changed endpoints", least=1
    )

    live_readers_max: int = setting(
        100, "maximum readers of the dashboard's live numbers in one worker; more get 503", least=1
    )
    session_s: int = setting(43_200, "how long a sign-in to the dashboard lasts", least=60)
    session_secure: bool = setting(
        False,  # noqa: FBT003 - its default
        "browsers send the session's cookie over https only; it is so anyway where a proxy says "
        "X-Forwarded-Proto: https",
    )
    sign_in_link_s: int = setting(600, "how long a sign-in link is valid that was not used", least=1)
    sign_in_link_printed: bool = setting(
        default=True, help_text="`redeem up` prints a sign-in link for this start"
    )
    sign_in_failures_per_min: int = setting(
        6, "failed sign-ins of one address in a minute; more get 429", least=1
    )
    sign_in_failures_burst: int = setting(
        5,
        "how many sign-ins of an address may fail at once before REDEEM_SIGN_IN_FAILURES_PER_MIN counts",
        least=1,
    )

    database_connections_max: int = setting(4, "maximum PostgreSQL connections of one worker", least=1)
    database_timeout_s: int = setting(10, "time limit for a query of the front end", least=1)
    republish_interval_s: int = setting(
        5, "how often the configuration in Redis is compared with PostgreSQL", least=1
    )
    configuration_poll_ms: int = setting(
        50, "how often a worker looks for new blocks and other changes of the configuration", least=10
    )

    persist_batch_max: int = setting(5000, "maximum events in one transaction of the persister", least=1)
    persist_block_ms: int = setting(1000, "how long one read of the persister waits for new events", least=1)
    persist_interval_ms: int = setting(
        200, "minimum time between two small transactions of the persister: the ledger's usual lag", least=0
    )
    persist_timeout_s: int = setting(10, "time limit for a statement of the persister", least=1)
    persist_backoff_s_max: int = setting(5, "longest pause before the persister tries again", least=1)
    rebuild_processes: int = setting(
        0, "processes that write idempotency records in a rebuild; 0 means one per core, at most 4", least=0
    )
    conflict_interval_ms: int = setting(
        500, "how often new rows of the ledger are searched for conflicts", least=1
    )
    stream_kept_min: int = setting(
        10_000,
        "newest events that stay in a stream although the ledger has them, for a PostgreSQL that comes back "
        "older; at most REDEEM_STREAM_RETAINED_MAX",
        least=0,
        most="stream_retained_max",
    )
    stream_kept_s: int = setting(
        60,
        "seconds for which an event stays in a stream although the ledger has it, up to stream_retained_max",
        least=0,
    )
    stream_retained_max: int = setting(
        500_000,
        "maximum events that are in the ledger and stay in a stream, for consumer groups or for the two "
        "settings above; older ones are trimmed",
        least=0,
    )
    ledger_detach_days_min: int = setting(
        35, "days that a month must be over before `redeem ledger detach` accepts it", least=0
    )
    audit_wait_s: int = setting(
        10, "how long `redeem audit` waits for the ledger before it reads the rest from the streams", least=0
    )
    audit_findings_max: int = setting(
        100, "maximum differences of one kind that `redeem audit` lists; it counts all", least=1
    )
    metrics_port: int = setting(
        0, "port of the persister's own /metrics; 0 means none", least=0, most=PORT_MAX
    )
    deliverer_metrics_port: int = setting(
        0, "port of the deliverer's own /metrics; 0 means none", least=0, most=PORT_MAX
    )
    campaign_metrics_max: int = setting(
        100,
        "maximum campaigns whose numbers are in /metrics, the newest that have not ended; 0 means none",
        least=0,
    )
    start_timeout_s: int = setting(
        60,
        "time limit for a worker to start serving, then it is restarted; bundled servers get at least 300 s",
        least=1,
    )
    stop_timeout_s: int = setting(20, "time limit for the orderly stop of all processes", least=1)

    @property
    def run_dir(self) -> Path:
        """Directory for sockets, with a subdirectory for each running front end."""
        return self.data_dir / "run"

    @property
    def mint_keys_path(self) -> Path:
        """Path of the mint key file: the setting, or the default in the data directory."""
        return self.mint_keys_file or self.data_dir / "mint-keys"

    @property
    def worker_count(self) -> int:
        """Number of front-end processes to start; resolves 0 to one per core."""
        return self.workers or os.cpu_count() or 1

    def to_environ(self) -> dict[str, str]:
        """Return all settings as environment variables, for a child process that must have the same."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {variable(name): str(value) for name, value in values.items() if value is not None}


def without_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without ``REDEEM_*`` variables."""
    return {name: value for name, value in environ.items() if not name.startswith(PREFIX)}


def variable(name: str) -> str:
    """Return the name of a setting's environment variable."""
    return PREFIX + name.upper()


def load(environ: Mapping[str, str], overrides: Mapping[str, object] | None = None) -> Settings:
    """Load the settings from file, environment and options.

    Raises:
        SettingsError: a name is unknown, or a value has the wrong type or is out of range.
    """
    values: dict[str, object] = {}
    values.update(_from_file(environ))
    values.update(_from_environment(environ))
    values.update({name: value for name, value in (overrides or {}).items() if value is not None})
    known = {item.name: item for item in fields(Settings)}
    parsed: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise SettingsError(f"unknown setting {name!r}{_suggestion(str(name), known)}")
        parsed[name] = _parse(name, str(known[name].type), value)
        least = known[name].metadata["least"]
        if least is not None and parsed[name] < least:
            raise SettingsError(f"{variable(name)} must be at least {least}")
        if name == "log_level" and parsed[name].lower() not in LOG_LEVELS:
            raise SettingsError(f"{variable(name)} must be one of {', '.join(LOG_LEVELS)}")
        if name == "durability" and parsed[name] not in DURABILITIES:
            raise SettingsError(f"{variable(name)} must be {' or '.join(DURABILITIES)}")
        if name.startswith("guard_") and name.endswith("_mode") and parsed[name] not in RULE_MODES:
            raise SettingsError(f"{variable(name)} must be one of {', '.join(RULE_MODES)}")
        if name == "lane" and parsed[name] not in ("", *LANES):
            raise SettingsError(f"{variable(name)} must be one of {', '.join(LANES)}, or empty")
    settings = Settings(**parsed)
    _check_maxima(settings)
    _check_proxies(settings)
    return settings


def _check_maxima(settings: Settings) -> None:
    """Refuse a value above its maximum, which may be the value of another setting."""
    for item in fields(Settings):
        most, says = item.metadata["most"], ""
        if isinstance(most, str):
            most, says = getattr(settings, most), f"{variable(most)}, which is "
        if most is not None and getattr(settings, item.name) > most:
            raise SettingsError(f"{variable(item.name)} must be at most {says}{most}")


def _check_proxies(settings: Settings) -> None:
    """Check the networks, and that nobody is believed who is not named."""
    for network in filter(None, map(str.strip, settings.trusted_proxies.split(","))):
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            raise SettingsError(f"{variable('trusted_proxies')}: {error}") from None
    if not settings.trusted_proxies.strip():
        for name in ("client_address_header", "proxy_protocol"):
            if getattr(settings, name):
                raise SettingsError(f"{variable(name)} needs {variable('trusted_proxies')}")
    if settings.client_address_header and not _HEADER.fullmatch(settings.client_address_header):
        raise SettingsError(f"{variable('client_address_header')} is not the name of a header")


def sources(environ: Mapping[str, str]) -> dict[str, str]:
    """Return where the value of each setting comes from: DEFAULT, the file, or its variable."""
    file, environment = _from_file(environ), _from_environment(environ)
    return {
        item.name: "environment" if item.name in environment else "file" if item.name in file else DEFAULT
        for item in fields(Settings)
    }


def _suggestion(name: str, known: Iterable[str]) -> str:
    similar = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {similar[0]}?" if similar else ""


def _from_file(environ: Mapping[str, str]) -> dict[str, object]:
    config = environ.get("REDEEM_CONFIG")
    path = Path(config or "redeem.toml")
    if not config and not path.exists():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"cannot read settings from {path}: {error}") from error


def _from_environment(environ: Mapping[str, str]) -> dict[str, object]:
    known = {variable(item.name): item.name for item in fields(Settings)}
    values: dict[str, object] = {}
    for name, value in environ.items():
        if not name.startswith(PREFIX) or name in OTHER_VARIABLES or name.startswith(OTHER_PREFIXES):
            continue
        if name not in known:
            raise SettingsError(f"unknown setting {name}{_suggestion(name, known)}")
        values[known[name]] = value
    return values


def _parse(name: str, annotation: str, value: object) -> object:
    try:
        if annotation == "int":
            if isinstance(value, bool) or not isinstance(value, int | str):
                raise TypeError  # noqa: TRY301 - reported like any other value that is not a number
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
