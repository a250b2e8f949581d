"""Measures the capacity of an engine: raises the load until a limit breaks, and names the bottleneck.

Each attempt has its own code; the load comes from a cheap generator (``open_loop``). Each step holds one
rate; between steps the ledger catches up. When a step breaks, a few more steps search between it and the last
good rate: the highest rate that holds is the knee. Latency is then measured again at fractions of the knee.
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
from loadtest.api import Api
from loadtest.machine import GENERATOR, engine_processes
from loadtest.open_loop import Step, StepReport
from loadtest.run import RunError, end_campaign
from loadtest.sampling import LAG_EVENTS, Sampler
from loadtest.scenarios import prepare
from loadtest.steps import SHARES, Limits, Report, StepFigures, broken, first_to_give, others_cores
from loadtest.thresholds import percentiles
from loadtest.verifier import verify

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STOP_S_MAX: Final = 30.0
DRAIN_S_MAX: Final = 120.0
WARM_UP_S: Final = 1.0
GROWTH: Final = 1.5
HALVINGS: Final = 3
TRIES: Final = 2
STEPS_MAX: Final = 30


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
        connections: int,
        generators: int,
        say: Callable[[str], object],
    ) -> None:
        self._url, self._key, self._directory = url, key, directory
        self._limits = limits
        self._step_s = step_s
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
            report = Report(plan, self._limits)
            processes = engine_processes(self._url)
            if not processes:
                self._say("the engine's processes are not visible from here: their CPU time is not measured")
            try:
                with Sampler(self._url, self._key, processes=processes, interval_s=0.5) as sampler:
                    self._climb(api, report, sampler, first, most)
                    if report.knee is not None:
                        for share in SHARES:
                            report.below.append(self._held(api, report.knee.per_second * share, sampler))
                    self._say("comparing the responses with the ledger")
                    report.findings = verify(api, plan, self._directory, say=self._say)
            finally:
                end_campaign(api, plan.campaign)
        report.samples = sampler.samples
        report.others_cores = others_cores(sampler.samples)
        if report.broke:
            report.first_to_give = first_to_give(report.broke, sampler.samples, self._limits)
        return report

    def _climb(self, api: Api, report: Report, sampler: Sampler, first: float, most: float) -> None:
        """Raise the rate until it breaks. A rate that breaks is tried again: it may have been disturbed."""
        rate, good, bad, halvings, tries = first, 0.0, float("inf"), 0, 0
        while len(report.steps) < STEPS_MAX:
            step = self._held(api, rate, sampler)
            report.steps.append(step)
            tries += 1
            if step.broken and tries < TRIES:
                continue
            tries = 0
            if step.broken:
                bad = rate
            else:
                good = rate
            if bad < float("inf"):
                halvings += 1
                rate = (good + bad) / 2
            elif good >= most:
                return
            else:
                rate = min(most, rate * GROWTH)
            if halvings > HALVINGS or (not good and halvings):
                return

    def _held(self, api: Api, rate: float, sampler: Sampler) -> StepFigures:
        """Run one step, print it, and wait until the ledger has all of it."""
        step = self._step(rate, sampler)
        line = f"{rate:8,.0f}/s: {step.done_per_s:8,.0f} done, p99 {step.latency_ms[1]:8.1f} ms"
        self._say(line + (f"  {'; '.join(step.broken)}" if step.broken else ""))
        self._drain(api)
        return step

    def _step(self, rate: float, sampler: Sampler) -> StepFigures:
        """Hold one rate for the duration of a step and return its figures."""
        reports, pids = self._generate(rate, sampler)
        latencies: list[float] = []
        errors: dict[str, int] = {}
        first, last, done = float("inf"), 0.0, 0
        grace_s = self._limits.p99_ms / 1000
        answers = AnswerLog(self._directory, pids)
        for answer in answers:
            first, last = min(first, answer.at), max(last, answer.at)
        for answer in answers:
            if answer.at < first + min(WARM_UP_S, self._step_s / 4):
                continue
            latencies.append(answer.ms)
            done += answer.expected and answer.at + answer.ms / 1000 <= last + grace_s
            if not answer.expected:
                name = answer.problem or (str(answer.status) if answer.status else "no answer")
                errors[name] = errors.get(name, 0) + 1
        if not latencies:
            raise RunError(f"no attempt was made at {rate:g}/s")
        seconds = last - first - min(WARM_UP_S, self._step_s / 4) + 1 / rate
        lags = [sample.lag_s for sample in sampler.samples if sample.at >= first and sample.lag_s is not None]
        step = StepFigures(
            per_second=rate,
            done_per_s=done / seconds,
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

    def _generate(self, rate: float, sampler: Sampler) -> tuple[list[StepReport], list[int]]:
        share = Step(
            directory=str(self._directory),
            per_second=rate / self._generators,
            seconds=self._step_s,
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
            reports = [process.communicate(timeout=self._step_s + stop_s_max)[0] for process in running]
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
