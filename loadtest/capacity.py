"""Measures the capacity of an engine: raises the load until a limit breaks, and names the bottleneck.

Each attempt has its own code; the load comes from a cheap generator (``open_loop``). Each step holds one
rate; between steps the ledger catches up. When a step breaks, a few more steps search between it and the last
good rate. A rate that held once proves little: the highest one is run again, longer, then fractions of it.
If one of these runs breaks, a lower rate is confirmed instead. The report claims only a confirmed rate.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final

import msgspec
import psutil  # type: ignore[import-untyped] # it has no types

from engine.settings import without_settings
from loadtest.answers import AnswerLog
from loadtest.api import Api, ApiError
from loadtest.machine import GENERATOR, description, engine_processes
from loadtest.open_loop import Step, StepReport
from loadtest.rates import confirm, search
from loadtest.run import RunError, end_campaign
from loadtest.sampling import LAG_EVENTS, Sampler
from loadtest.scenarios import prepare
from loadtest.steps import (
    CONFIRMATION,
    Limits,
    Report,
    StepFigures,
    broken,
    first_to_give,
    others_cores,
)
from loadtest.thresholds import percentiles
from loadtest.verifier import verify

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STOP_S_MAX: Final = 30.0
DRAIN_S_MAX: Final = 120.0
WARM_UP_S: Final = 1.0


class Capacity:
    """Measures one engine."""

    def __init__(
        self,
        url: str,
        key: str,
        directory: Path,
        *,
        limits: Limits,
        step_s: float,
        confirmations: int,
        confirmation_s: float,
        connections: int,
        generators: int,
        say: Callable[[str], object],
    ) -> None:
        self._url, self._key, self._directory = url, key, directory
        self._limits = limits
        self._step_s = step_s
        self._confirmations = confirmations
        self._confirmation_s = confirmation_s
        self._connections = connections
        self._generators = generators
        self._say = say

    def measure(self, run: str, *, first: float, most: float) -> Report:
        """Run steps from the rate ``first`` up to at most ``most``, and return the report.

        Raises:
            ApiError, RunError: the measurement failed.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        with Api(self._url, self._key) as api:
            plan = prepare(api, run, "unique-codes", peak_per_s=most, seconds=self._step_s)
            plan.write(self._directory)
            report = Report(plan, self._limits, self._confirmations)
            processes = engine_processes(self._url)
            if not processes:
                self._say("the engine's processes are not visible from here: their CPU time is not measured")
            try:
                with Sampler(self._url, self._key, processes=processes, interval_s=0.5) as sampler:

                    def hold(rate: float, purpose: str) -> StepFigures:
                        report.steps.append(self._held(api, rate, purpose, sampler))
                        return report.steps[-1]

                    search(hold, first, most)
                    confirm(hold, report, first, self._say)
                    self._say("comparing the responses with the ledger")
                    report.findings = verify(api, plan, self._directory, say=self._say)
            finally:
                end_campaign(api, plan.campaign)
        report.samples = sampler.samples
        report.others_cores = others_cores(sampler.samples)
        if report.broke:
            report.first_to_give = first_to_give(report.broke, sampler.samples, self._limits)
        self._hand_over(report, processes)
        return report

    def _hand_over(self, report: Report, processes: dict[str, list[psutil.Process]]) -> None:
        """Give the result to the engine, whose dashboard shows it. An older engine does not take it."""
        try:
            with Api(self._url, self._key) as api:
                api.call("POST", "/v1/capacity-reports", report.summary(description(processes)))
        except ApiError as error:
            self._say(f"the dashboard will not show this report: {error}")

    def _held(self, api: Api, rate: float, purpose: str, sampler: Sampler) -> StepFigures:
        """Run one step, print it, and wait until the ledger has all of it."""
        step = self._step(rate, purpose, sampler)
        line = f"{rate:8,.0f}/s: {step.done_per_s:8,.0f} done, p99 {step.latency_ms[1]:8.1f} ms"
        self._say(line + (f"  {'; '.join(step.broken)}" if step.broken else ""))
        self._drain(api)
        return step

    def _step(self, rate: float, purpose: str, sampler: Sampler) -> StepFigures:
        """Hold one rate for the duration of a step and return its figures."""
        step_s = self._confirmation_s if purpose == CONFIRMATION else self._step_s
        reports, pids = self._generate(rate, step_s, sampler)
        latencies: list[float] = []
        errors: dict[str, int] = {}
        first, last, done = float("inf"), 0.0, 0
        grace_s = self._limits.p99_ms / 1000
        answers = AnswerLog(self._directory, pids)
        for answer in answers:
            first, last = min(first, answer.at), max(last, answer.at)
        last = max(last, first + step_s)  # some may be unsent
        for answer in answers:
            if answer.at < first + min(WARM_UP_S, step_s / 4):
                continue
            latencies.append(answer.ms)
            done += answer.expected and answer.at + answer.ms / 1000 <= last + grace_s
            if not answer.expected:
                name = answer.problem or (str(answer.status) if answer.status else "no answer")
                errors[name] = errors.get(name, 0) + 1
        if not latencies:
            raise RunError(f"no attempt was made at {rate:g}/s")
        lags = [sample.lag_s for sample in sampler.samples if sample.at >= first and sample.lag_s is not None]
        step = StepFigures(
            purpose=purpose,
            per_second=rate,
            seconds=step_s,
            done_per_s=rate * done / (len(latencies) + answers.unsent),
            latency_ms=percentiles(latencies),
            errors=errors,
            unsent=answers.unsent,
            sent_late_ms=max(one.sent_late_ms for one in reports),
            began=first,
            ended=last,
            lag_s=max(lags, default=None),
        )
        step.broken = broken(step, len(latencies), self._limits)
        return step

    def _generate(self, rate: float, step_s: float, sampler: Sampler) -> tuple[list[StepReport], list[int]]:
        share = Step(
            directory=str(self._directory),
            per_second=rate / self._generators,
            seconds=step_s,
            connections=max(1, self._connections // self._generators),
            response_s=self._limits.response_s,
        )
        argv = [sys.executable, "-m", "loadtest.open_loop", msgspec.json.encode(share).decode()]
        environment = without_settings(os.environ) | {"LOADTEST_KEY": self._key}
        running = []
        try:
            for _ in range(self._generators):
                process = subprocess.Popen(  # noqa: S603 - our own program
                    argv, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
                running.append(process)
                sampler.watch(GENERATOR, psutil.Process(process.pid))
            for process in running:  # wait until each is ready
                if process.stdout is None or not process.stdout.readline():
                    raise RunError("the load generator failed")
            for process in running:  # each starts when its stdin ends
                if process.stdin is not None:
                    process.stdin.close()
                    process.stdin = None
            stop_s_max = self._limits.response_s + STOP_S_MAX
            reports = [process.communicate(timeout=step_s + stop_s_max)[0] for process in running]
        except subprocess.TimeoutExpired as error:
            raise RunError("the load generator did not end") from error
        finally:
            for process in running:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        if any(process.returncode for process in running):
            raise RunError("the load generator failed")
        return [msgspec.json.decode(one, type=StepReport) for one in reports], [
            process.pid for process in running
        ]

    def _drain(self, api: Api) -> None:
        """Wait until the ledger has all events, so that a step does not slow down the next."""
        deadline = time.monotonic() + DRAIN_S_MAX
        while sum(api.metrics().get(LAG_EVENTS, ())) and time.monotonic() < deadline:
            time.sleep(0.2)
