"""Every index is there for a query of ours, and every such query uses it on tables of some size."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import pytest

from engine.queries import queries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.postgres_types import Connection

NEWEST: Final = "9007199254740992, 32767, 2147483647"  # where a list begins
PAGE: Final = f"{NEWEST}, 0, 101, NULL, '{{}}', 101"
BY_STATE: Final = f"{NEWEST}, 0, 1000, 'rolled_back', '{{}}', 101"
BETWEEN: Final = "1000400, 32767, 0, 1000300, 1000, 'redeemed', '{0-1000350-0}', 101"

# index: the queries that are why it is there, as (file, name, arguments)
OF_THE_LEDGER: Final = {
    "ledger_pkey": [
        ("engine.ledger.redemptions", "by_id", "0, 1000007, 0"),
        ("engine.ledger.users", "named", "'{0,0}', '{1000007,1000008}', '{0,0}'"),
    ],
    "ledger_seq": [
        ("persister.reconcile.audit", "rows", "0, 100, 200"),
        ("engine.ledger.feed", "page", "'{5}', 200, 100, NULL, NULL"),
    ],
    "ledger_user": [
        *(
            ("engine.ledger.redemptions", "by_user", f"{head}, 'user 7', NULL, NULL")
            for head in (PAGE, BY_STATE, BETWEEN)
        ),
        ("engine.ledger.redemptions", "by_user", f"{PAGE}, 'user 7', 'cmp_3', NULL"),
        ("engine.ledger.users", "seen", "'user 7', NULL"),
        ("engine.ledger.users", "totals", "'user 7', '{}', NULL"),
        ("engine.control.erasure", "erase", "'user 7', 'erased-1'"),
    ],
    "ledger_campaign": [
        ("engine.ledger.redemptions", "by_campaign", f"{head}, 'cmp_3'") for head in (PAGE, BY_STATE, BETWEEN)
    ],
    "ledger_order": [
        *(
            ("engine.ledger.redemptions", "by_order", f"{head}, 'order 7', NULL, NULL, NULL")
            for head in (PAGE, BY_STATE, BETWEEN)
        ),
        ("engine.ledger.redemptions", "by_order", f"{PAGE}, 'order 7', 'user 7', 'cmp_3', NULL"),
    ],
    "ledger_redemption": [
        ("engine.ledger.redemptions", "history", "'0-1000007-0'"),
        ("engine.ledger.redemptions", "by_id", "0, 1000007, 0"),
        *(
            ("engine.ledger.redemptions", "by_campaign", f"{head}, 'cmp_3'")
            for head in (PAGE, BY_STATE, BETWEEN)
        ),
        ("engine.ledger.users", "totals", "'user 7', '{}', NULL"),
        ("engine.control.control", "voids_since", "4990"),
        ("engine.ledger.holds", "ends", "'{0-1000015-0,0-1000035-0}'"),
    ],
    "ledger_code": [
        ("engine.ledger.stories", "of_code", "'0010', 3, 10, 1001"),
        ("engine.ledger.stories", "with_last4", "'0010', NULL, 20"),
    ],
    "ledger_hold": [("engine.ledger.holds", "ends", "'{0-1000015-0,0-1000035-0}'")],
    "ledger_held_order": [("engine.ledger.holds", "by_order", f"{NEWEST}, 101, 'order 15'")],
}
OF_OTHERS: Final = {
    "api_keys_version": [("engine.control.control", "keys_since", "4990")],
    "campaigns_version": [("engine.control.control", "campaigns_since", "4990")],
    "batches_version": [("engine.control.control", "batches_since", "4990")],
    "batches_campaign": [
        ("engine.control.batches", "page", "101, 'cmp_3', 0"),
        ("engine.control.campaigns", "has_batches", "'cmp_3'"),
    ],
    "voids_batch": [("engine.control.voids", "of_batch", "3")],
    "voids_version_key": [("engine.control.control", "voids_since", "4990")],
    "blocks_subject": [("engine.control.blocks", "page", "101, 9000000, 'user', 'user 7', NULL")],
    "blocks_version": [("engine.control.control", "blocks_since", "4990")],
    "alerts_cause": [("engine.control.alerts", "again", "'score:key_7', 300, 1")],
    "signing_secrets_api_key": [("engine.control.signing_secrets", "key", "'key_7'")],
    "acts_act": [("engine.control.audit_log", "page", "101, 9000000, 'export', NULL")],
    "acts_subject": [("engine.control.audit_log", "page", "101, 9000000, NULL, 'batch:3'")],
    "admin_receipts_at": [("engine.control.idempotency", "forget", "86400, 1000")],
    "imports_campaign": [("engine.imports.imports", "page", "101, 'cmp_3', 0")],
    "imported_codes_batch": [("engine.imports.imports", "codes", "3, 0, 100")],
    "webhook_secrets_webhook": [("engine.webhooks.webhooks", "count_secrets", "'wh_7'")],
    "webhook_dead_letters_webhook": [("engine.webhooks.webhooks", "dead_letters", "'wh_7', 9000000, 101")],
    "webhook_dead_letters_replay": [("persister.webhooks.delivery", "replay", "'wh_7'")],
    "webhook_alerts_pkey": [("persister.webhooks.delivery", "alert_done", "'wh_7', 9, 'alert.raised'")],
    "webhook_attempts_webhook": [("engine.webhooks.webhooks", "attempts", "'wh_7', 9000000, 101, NULL")],
    "webhook_attempts_at": [("persister.webhooks.delivery", "forget_attempts", "168, 1000")],
}

FILL: Final = """
INSERT INTO campaigns (id, name, kind, state, version) SELECT 'cmp_' || n, n, 'single', 'active', n
    FROM generate_series(1, 5000) AS n;
INSERT INTO api_keys (id, name, digest, scopes, version)
    SELECT 'key_' || n, n, sha256(n::text::bytea), '{read}', n FROM generate_series(1, 5000) AS n;
INSERT INTO batches (id, campaign, count, format, mint_key, created_by, version)
    SELECT n, 'cmp_' || n % 500 + 1, 100, 'base32-16', 'k1', 'key_1', n FROM generate_series(1, 5000) AS n;
INSERT INTO voids (batch, first_serial, last_serial, void, reason, actor, version)
    SELECT n % 500 + 1, n, n, true, 'leaked', 'key_1', n FROM generate_series(1, 5000) AS n;
INSERT INTO blocks (action, kind, subject, reason, actor, version)
    SELECT 'block', 'user', 'user ' || n, 'made-up codes', 'key_1', n FROM generate_series(1, 5000) AS n;
INSERT INTO alerts (cause, rule, summary, evidence)
    SELECT 'score:key_' || n % 5000, 'score', 'guesses', '{}' FROM generate_series(1, 20000) AS n;
INSERT INTO signing_secrets (id, api_key, mint_key, sealed)
    SELECT 'sgn_' || n, 'key_' || n, 'k1', '' FROM generate_series(1, 5000) AS n;
INSERT INTO acts (actor, act, subject) SELECT 'key_1', 'act ' || n % 500, 'batch:' || n % 500
    FROM generate_series(1, 20000) AS n;
UPDATE acts SET act = 'export' WHERE id % 1000 = 0;
INSERT INTO admin_receipts (actor, key, fingerprint, status, answer, at)
    SELECT 'key_1', n, '', 200, '', now() - n * interval '5 seconds' FROM generate_series(1, 20000) AS n;
INSERT INTO imports (campaign, form, mint_key, head, state, created_by)
    SELECT 'cmp_' || n % 100 + 1, 'csv', 'k1', n::text::bytea, 'finished', 'key_1'
    FROM generate_series(1, 5000) AS n;
INSERT INTO imported_codes (digest, batch, serial)
    SELECT md5(n::text)::uuid, n / 10000, n % 10000 FROM generate_series(0, 99999) AS n;
SELECT brin_summarize_new_values('imported_codes_batch');
INSERT INTO webhooks (url, created_by) SELECT 'https://shop.example', 'key_1' FROM generate_series(1, 500);
INSERT INTO webhook_secrets (webhook, secret)
    SELECT 'wh_' || n % 500 + 1, n FROM generate_series(1, 5000) AS n;
INSERT INTO webhook_dead_letters (webhook, message, events, after, until, attempts, error, replay_at)
    SELECT 'wh_' || n % 500 + 1, n, '{0-1-0}', 'a', 'b', 9, 'gone', CASE WHEN n % 100 = 6 THEN now() END
    FROM generate_series(1, 20000) AS n;
INSERT INTO webhook_alerts (webhook, alert, type)
    SELECT 'wh_' || n % 500 + 1, n, 'alert.raised' FROM generate_series(1, 20000) AS n;
INSERT INTO webhook_attempts (webhook, message, events, attempt, at, duration_ms)
    SELECT 'wh_' || n % 500 + 1, n, 1, 1, now() - n * interval '1 minute', 5
    FROM generate_series(1, 20000) AS n;
-- Of 20 events one voids a range, one holds a code, and one is a rollback of the redemption two before it.
INSERT INTO ledger (
    shard, stream_ms, stream_seq, seq, type, redemption, campaign, batch, serial, last4, user_id, amount,
    currency, order_ref, actor, at_ms
)
SELECT 0, 1000000 + n, 0, n,
       CASE n % 20 WHEN 0 THEN 'voided' WHEN 1 THEN 'rolled_back' WHEN 2 THEN 'confirmed' WHEN 15 THEN 'held'
           ELSE 'redeemed' END,
       '', 'cmp_' || n % 7, n % 7, n, lpad((n % 5000)::text, 4, '0'),
       CASE n % 10 WHEN 3 THEN 'many' ELSE 'user ' || n % 997 END, 500,
       'EUR', CASE n % 10 WHEN 4 THEN 'many' WHEN 5 THEN 'order ' || n % 1999 END, 'key_1', 1000000 + n
FROM generate_series(1, 50000) AS n;
UPDATE ledger SET redemption = '0-' || stream_ms - 2 * (type = 'rolled_back')::int || '-0';
UPDATE ledger SET hold = '0-' || stream_ms + 13 || '-0' WHERE type = 'confirmed';
UPDATE ledger SET redemption = serial || '-' || serial, last4 = '', user_id = '', order_ref = NULL
    WHERE type = 'voided';
ANALYZE;
"""

INDEXES: Final = """
SELECT indexrelid::regclass::text AS index, indrelid::regclass::text AS table, indisunique AS keeps_unique,
       inhparent::regclass::text AS of_all_months
FROM pg_index JOIN pg_class ON pg_class.oid = indrelid LEFT JOIN pg_inherits ON inhrelid = indexrelid
WHERE relnamespace = 'public'::regnamespace
"""


@pytest.fixture
async def filled(fresh_database_url: str) -> Connection:
    """A connection to a database with rows in every table that has an index to show."""
    connection = await asyncpg.connect(fresh_database_url)
    await connection.execute(FILL)
    yield connection
    await connection.close()


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The steps of a plan, and of those below each."""
    yield plan
    for below in plan.get("Plans", []):
        yield from nodes(below)


async def explain(connection: Connection, file: str, name: str, arguments: str) -> list[dict[str, Any]]:
    """How a named query would be carried out, with these arguments in SQL."""
    package, _, base = file.rpartition(".")
    text = queries(package, base)[name]
    await connection.execute(f"PREPARE asked AS {text}")
    try:
        plan = await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE asked ({arguments})")
    finally:
        await connection.execute("DEALLOCATE asked")
    return list(nodes(json.loads(plan)[0]["Plan"]))


async def test_each_index_is_used_by_the_queries_it_is_there_for(filled: Connection) -> None:
    # A worker's connections prepare a query once: after five uses PostgreSQL may plan without the arguments.
    for mode in ("force_custom_plan", "force_generic_plan"):
        await filled.execute(f"SET plan_cache_mode = {mode}")
        await check_each(filled, mode)


async def check_each(filled: Connection, mode: str) -> None:
    wanted = OF_THE_LEDGER if mode == "force_generic_plan" else OF_THE_LEDGER | OF_OTHERS
    of_all_months = {row["index"]: row["of_all_months"] for row in await filled.fetch(INDEXES)}
    for index, reasons in wanted.items():
        for reason in reasons:
            steps = await explain(filled, *reason)
            shown = [(step["Node Type"], step.get("Index Name"), step.get("Relation Name")) for step in steps]
            used = {name for _, name, _ in shown}
            assert index in used | {of_all_months.get(name) for name in used}, (index, reason, shown)
            of_ledger = [
                step for step in shown if step[0] == "Seq Scan" and str(step[2]).startswith("ledger_2")
            ]
            assert not of_ledger, (index, reason, shown)


async def test_there_is_no_index_without_a_reason(filled: Connection) -> None:
    """Those that keep something unique need no other."""
    there = [row for row in await filled.fetch(INDEXES) if row["of_all_months"] is None]
    assert {row["index"] for row in there} >= (OF_THE_LEDGER | OF_OTHERS).keys()
    unjustified = {row["index"] for row in there if not row["keeps_unique"]} - (
        OF_THE_LEDGER | OF_OTHERS
    ).keys()
    assert not unjustified
    of_ledger = {row["index"] for row in there if row["table"] == "ledger"}
    assert of_ledger == OF_THE_LEDGER.keys()


async def test_a_page_reads_no_more_rows_than_it_may(filled: Connection) -> None:
    """However many there are: a page's own, and with a state as many as it may look at."""
    for name, index, whose in (
        ("by_user", "ledger_user", "'many', NULL, NULL"),
        ("by_campaign", "ledger_campaign", "'cmp_3'"),
        ("by_order", "ledger_order", "'many', NULL, NULL, NULL"),
    ):
        await check_page(filled, name, index, whose)


async def check_page(filled: Connection, name: str, index: str, whose: str) -> None:
    for state, look_at, most in (
        ("NULL", 101, 101),
        ("'partly_rolled_back'", 300, 300),
        ("'redeemed'", 300, 120),
    ):
        await filled.execute(f"PREPARE asked AS {queries('engine.ledger', 'redemptions')[name]}")
        plan = await filled.fetchval(
            "EXPLAIN (ANALYZE, FORMAT JSON)"
            f" EXECUTE asked ({NEWEST}, 0, {look_at}, {state}, '{{}}', 101, {whose})"
        )
        await filled.execute("DEALLOCATE asked")
        steps = list(nodes(json.loads(plan)[0]["Plan"]))
        (scan,) = [
            step for step in steps if step.get("Index Name", "").endswith(index.removeprefix("ledger"))
        ]
        assert 0 < scan["Actual Rows"] <= most, (state, scan)
        assert not [step for step in steps if "Sort" in step["Node Type"]]
