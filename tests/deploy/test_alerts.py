"""Each alert fires for what it is about, and none else; alerts and dashboard name metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.support.metric_names import metric_names

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
ALERTS: Final = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD: Final = DEPLOY / "grafana" / "redeem.json"
PROMTOOL: Final = shutil.which("promtool")
MINUTES: Final = 60


def series(suffix: str, labels: str) -> str:
    """The name of a series of the histogram, of redemptions."""
    return f'redeem_request_seconds_{suffix}{{route="POST /v1/redemptions",{labels}}}'


HEALTHY: Final = {
    "redeem_workers": "2x60",
    "redeem_workers_hung": "0x60",
    "redeem_supervisor_up": "1x60",
    'redeem_crash_loop{process="persister"}': "0x60",
    "redeem_redis_up": "1x60",
    "redeem_postgresql_up": "1x60",
    "redeem_redis_memory_short": "0x60",
    "redeem_redis_memory_bytes": "50x60",
    "redeem_redis_memory_bytes_max": "100x60",
    series("count", 'status="200"'): "0+6000x60",
    series("count", 'status="503"'): "0+6x60",
    series("bucket", 'status="200",le="0.25"'): "0+6000x60",
    series("bucket", 'status="200",le="1"'): "0+6000x60",
    series("bucket", 'status="200",le="+Inf"'): "0+6000x60",
    'redeem_attempts_total{operation="redeem",outcome="redeemed"}': "0+6000x60",
    'redeem_attempts_total{operation="redeem",outcome="code_not_found"}': "0+60x60",
    'redeem_ledger_missing_events{shard="0"}': "0x60",
    'redeem_persister_owner{shard="0"}': "1x60",
    'redeem_persister_lag_seconds{shard="0"}': "1x60",
    'redeem_persister_rejects_total{shard="0"}': "3x60",
    'redeem_unread_trimmed_total{shard="0"}': "3x60",
    "redeem_deliverer_active": "1x60",
    'redeem_webhook_lag_events{webhook="wh_1"}': "5x60",
    'redeem_webhook_lag_seconds{webhook="wh_1"}': "5x60",
    'redeem_webhook_failing{webhook="wh_1"}': "0x60",
    'redeem_webhook_dead_letters{webhook="wh_1"}': "0x60",
}
CASES: Final[list[tuple[str, dict[str, str | None]]]] = [
    ("RedeemNoWorker", {"redeem_workers": None}),
    ("RedeemNoWorker", {"redeem_workers": "0x60"}),
    ("RedeemWorkerHung", {"redeem_workers_hung": "1x60"}),
    ("RedeemSupervisorDown", {"redeem_supervisor_up": "0x60"}),
    ("RedeemCrashLoop", {'redeem_crash_loop{process="persister"}': "1x60"}),
    ("RedeemRedisDown", {"redeem_redis_up": "0x60"}),
    ("RedeemRedisMemoryShort", {"redeem_redis_memory_short": "1x60"}),
    ("RedeemRedisMemoryHigh", {"redeem_redis_memory_bytes": "60x60"}),
    ("RedeemServerErrors", {series("count", 'status="503"'): "0+600x60"}),
    ("RedeemSlow", {series("bucket", 'status="200",le="0.25"'): "0+5000x60"}),
    (
        "RedeemCodesGuessed",
        {'redeem_attempts_total{operation="redeem",outcome="code_not_found"}': "0+9000x60"},
    ),
    ("RedeemLedgerHole", {'redeem_ledger_missing_events{shard="0"}': "29x60"}),
    ("RedeemConflict", {'redeem_conflicts_total{kind="uses"}': "1x60"}),
    ("RedeemPersisterDown", {'redeem_persister_owner{shard="0"}': "0x60"}),
    ("RedeemLedgerBehind", {'redeem_persister_lag_seconds{shard="0"}': "31x60"}),
    ("RedeemPostgresqlDown", {"redeem_postgresql_up": "0x60"}),
    ("RedeemEventsRejected", {'redeem_persister_rejects_total{shard="0"}': "3x50 4x10"}),
    ("RedeemUnreadTrimmed", {'redeem_unread_trimmed_total{shard="0"}': "3x50 4x10"}),
    ("RedeemDelivererDown", {"redeem_deliverer_active": "0x60"}),
    ("RedeemWebhookFails", {'redeem_webhook_failing{webhook="wh_1"}': "1x60"}),
    ("RedeemWebhookBehind", {'redeem_webhook_lag_seconds{webhook="wh_1"}': "301x60"}),
    ("RedeemDeadLetters", {'redeem_webhook_dead_letters{webhook="wh_1"}': "1x60"}),
]


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def rule_test(name: str, changes: dict[str, str | None], alerts: list[str]) -> dict[str, Any]:
    """A test of promtool: with these series, exactly these alerts fire after an hour."""
    all_series = {**HEALTHY, **changes}
    return {
        "name": name,
        "interval": "1m",
        "input_series": [
            {"series": each, "values": values} for each, values in all_series.items() if values is not None
        ],
        "promql_expr_test": [
            {
                "expr": 'group by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": f"{MINUTES}m",
                "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in alerts],
            }
        ],
    }


def run(directory: Path, tests: list[dict[str, Any]]) -> tuple[int, str]:
    if PROMTOOL is None:
        pytest.skip("promtool is not installed (Debian: prometheus), so the alerts do not run")
    file = directory / "tests.yml"
    document = {"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests}
    file.write_text(json.dumps(document), encoding="utf-8")  # JSON is YAML, too
    done = subprocess.run(
        [PROMTOOL, "test", "rules", str(file)], capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


def test_each_alert_fires_for_what_it_is_about_and_no_other(tmp_path: Path) -> None:
    tests = [rule_test(f"{alert} {changes}", changes, [alert]) for alert, changes in CASES]
    status, says = run(tmp_path, [rule_test("all is well", {}, []), *tests])
    assert status == 0, says
    status, says = run(tmp_path, [rule_test("promtool sees a difference", {}, ["RedeemConflict"])])
    assert status != 0, says


def test_each_alert_has_a_case_and_says_what_to_do() -> None:
    assert {rule["alert"] for rule in rules()} == {alert for alert, _ in CASES}
    for rule in rules():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"].keys() == {"summary", "do"}


def expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    found = [target["expr"] for panel in panels for target in panel["targets"]]
    assert found
    return [*found, *(rule["expr"] for rule in rules())]


def test_each_expression_names_only_metrics_that_there_are(tmp_path: Path) -> None:
    there = metric_names(tmp_path)
    for expression in expressions():
        named = re.findall(r"redeem_\w+", expression)
        assert named, expression
        for name in named:
            assert name in there or re.sub(r"_(bucket|count|sum)$", "", name) in there, expression


def test_each_expression_of_the_dashboard_can_be_parsed(tmp_path: Path) -> None:
    if PROMTOOL is None:
        pytest.skip("promtool is not installed (Debian: prometheus), so the expressions are not parsed")
    recorded = [{"record": f"r{number}", "expr": each} for number, each in enumerate(expressions())]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "all", "rules": recorded}]}), encoding="utf-8")
    done = subprocess.run(
        [PROMTOOL, "check", "rules", str(file)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
