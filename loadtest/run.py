"""Runs a scenario: sets it up, starts locust, verifies the responses, checks the thresholds."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from engine.settings import without_settings
from loadtest.answers import AnswerLog
from loadtest.api import Api, ApiError
from loadtest.sampling import Sampler
from loadtest.scenarios import ORIGIN, SCENARIOS, Plan, prepare, run_name
from loadtest.thresholds import Figures, figures, judge, read_thresholds
from loadtest.verifier import Findings, verify

if TYPE_CHECKING:
    from collections.abc import Callable

LOCUSTFILE: Final = Path(__file__).with_name("locustfile.py")
RESULT_FILE: Final = "result.json"
STOP_S: Final = 30
START_S_MAX: Final = 120.0


class RunError(Exception):
    """The load could not be generated; the message is one line."""


@dataclass(slots=True)
class Result:
    """Result of a run. It passed if ``failed`` is empty."""

    plan: Plan
    figures: Figures
    findings: Findings
    failed: list[str]
    directory: Path

    def document(self) -> dict[str, object]:
        """Return the result as a JSON document."""
        return {
            "scenario": self.plan.scenario,
            "run": self.plan.run,
            "passed": not self.failed,
            "failed": self.failed,
            "per_second": round(self.figures.per_second, 1),
            **msgspec.structs.asdict(self.figures),
            "verifier": self.findings.document(),
            "directory": str(self.directory),
        }

    def lines(self) -> list[str]:
        """Return the result as lines of text."""
        found, findings = self.figures, self.findings
        lag = "unknown" if found.lag_s is None else f"{found.lag_s:.2f} s"
        answers = ", ".join(f"{count} {name}" for name, count in found.answers.items())
        lines = [
            f"{self.plan.scenario}: {found.attempts} attempts, {found.per_second:.0f} a second",
            f"answers: {answers}; {found.unsent} never sent",
            *(
                f"latency of {op}: p50 {p50:.1f} ms, p99 {p99:.1f} ms, p99.9 {p999:.1f} ms"
                for op, (p50, p99, p999) in found.latency_ms.items()
            ),
            f"persister lag: {lag} at most",
            f"verifier: {findings.acknowledged} acknowledged, {findings.events} events",
            f"without an outcome: {findings.unknown}, of which the ledger has {findings.settled_unknown}",
            *_of_guard(findings.guard),
            *(f"{item.kind}: {item.item}: {item.text}" for item in findings.listed),
        ]
        return [*lines, *(f"FAILED: {why}" for why in self.failed), f"reports: {self.directory}"]


def _of_guard(guard: dict[str, object]) -> list[str]:
    if not guard:
        return []
    lines = ["guard: {found} of {guessers} guessers found; {challenges_solved} challenges solved"]
    if guard["found"]:
        lines += ["guard: {answer} {wait_s_median} s after code {after_codes} (most {wait_s_most} s)"]
    return [line.format_map(guard) for line in lines]


def run(
    url: str,
    key: str,
    scenario: str,
    directory: Path,
    *,
    thresholds: Path,
    peak_per_s: float | None = None,
    seconds: float | None = None,
    processes: int = 1,
    seed: int = 0,
    address_header: str | None = None,
    keep_rules: bool = False,
    say: Callable[[str], object] = lambda _: None,
) -> Result:
    """Run a scenario against an engine, and end its campaign afterwards.

    A scenario with guessers has the guard enforce its rule until the run is over, unless ``keep_rules``.

    Raises:
        ApiError, RunError, ThresholdsError: the run or its evaluation failed.
    """
    wanted = read_thresholds(thresholds, scenario)
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise RunError(f"{directory} is not empty")
    with Api(url, key) as api:
        plan = prepare(
            api,
            run_name(),
            scenario,
            peak_per_s=peak_per_s,
            seconds=seconds,
            processes=processes,
            seed=seed,
            address_header=address_header,
        )
        plan.write(directory)
        with contextlib.ExitStack() as afterwards:
            afterwards.callback(end_campaign, api, plan.campaign)
            page_key = _page_key(api, plan, afterwards)
            if plan.rule and not keep_rules:
                say(f"the rule {plan.rule} of the guard is enforced until the run is over")
                before = api.set_rule(plan.rule, "enforce")
                afterwards.callback(api.set_rule, plan.rule, before)
            say(
                f"{scenario}: up to {plan.peak_per_s:g} attempts a second for {plan.seconds:g} s, {directory}"
            )
            with Sampler(url, key) as sampler:
                status = _load(plan, {"LOADTEST_KEY": key, "LOADTEST_PAGE_KEY": page_key}, directory)
                say("comparing the responses with the ledger")
                findings = verify(api, plan, directory, say=say)
    found = figures(AnswerLog(directory), sampler.lags_s)
    failed = judge(found, wanted)
    failed += [f"{count} x {kind}" for kind, count in findings.counts.items()]
    if status:
        failed.append(f"locust ended with status {status}: {directory / 'locust.log'}")
    result = Result(plan, found, findings, failed, directory)
    (directory / RESULT_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(result.document())) + b"\n")
    return result


def end_campaign(api: Api, campaign: str) -> None:
    """End the campaign, so that unused codes can no longer be redeemed."""
    with contextlib.suppress(ApiError):
        api.call("PATCH", f"/v1/campaigns/{campaign}", {"state": "ended"})


def _page_key(api: Api, plan: Plan, afterwards: contextlib.ExitStack) -> str:
    """Make a browser key that is revoked afterwards; an empty text if the scenario has no pages."""
    if not SCENARIOS[plan.scenario].pages:
        return ""
    number, key = api.browser_key(plan.campaign, ORIGIN)
    afterwards.callback(api.call, "DELETE", f"/v1/keys/{number}")
    return key


def _load(plan: Plan, keys: dict[str, str], directory: Path) -> int:
    """Run locust and return its exit status. After Ctrl-C it stops in order, and the results so far count."""
    argv = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"]
    argv += ["--host", plan.url, "--stop-timeout", str(STOP_S), "--exit-code-on-error", "0"]
    argv += [
        "--html",
        str(directory / "locust.html"),
        "--csv",
        str(directory / "locust"),
        "--csv-full-history",
    ]
    if plan.processes > 1:
        argv += ["--processes", str(plan.processes), "--master-bind-host", "127.0.0.1"]
    environment = without_settings(os.environ) | {"LOADTEST_DIRECTORY": str(directory), **keys}
    with (
        (directory / "locust.log").open("wb") as log,
        subprocess.Popen(argv, env=environment, stdout=log, stderr=log) as process,  # noqa: S603 - locust itself
    ):
        try:
            return process.wait(plan.seconds + STOP_S + START_S_MAX)
        except KeyboardInterrupt:  # the signal reached locust, too
            return process.wait(STOP_S * 2)
        except subprocess.TimeoutExpired as error:
            raise RunError(f"locust did not end: {directory / 'locust.log'}") from error
        finally:
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_S)
            if process.poll() is None:
                process.kill()
