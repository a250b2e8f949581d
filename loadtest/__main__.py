"""The command ``redeem loadtest``. It is a separate program: the engine imports none of it.

Results go to stdout, everything else to stderr. Exit status: 0 passed; 1 failed, or could not be
run; 2 wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from engine.errors import Fault, StoreUnavailable
from engine.settings import SettingsError
from loadtest import scenarios
from loadtest.api import Api, ApiError
from loadtest.scenarios import run_name
from loadtest.thresholds import DEFAULT_FILE, ThresholdsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engine.settings import Settings

KEY_VARIABLE: Final = "LOADTEST_KEY"
SCOPES: Final = ("redeem", "read", "events", "admin")
NOT_INSTALLED: Final = "locust is not installed: pip install 'redemption-engine[loadtest]'"
REPORTS: Final = Path("build") / "loadtest"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = _parser().parse_args(arguments)
    from loadtest.run import RunError  # noqa: PLC0415 - only after the arguments are checked

    try:
        status: int = options.action(options)
    except (ApiError, RunError, ThresholdsError, SettingsError, Fault, OSError) as error:
        _say(f"Error: {error}")
        return 1
    except KeyboardInterrupt:
        _say("Aborted!")
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="redeem loadtest", description="Put load on an engine and verify its responses."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run a scenario, verify its responses, and check the thresholds")
    run.add_argument("scenario", choices=scenarios.SCENARIOS, metavar="SCENARIO", help="see `list`")
    run.add_argument("--peak", type=_positive, metavar="N", help="attempts started per second at the peak")
    run.add_argument("--seconds", type=_positive, metavar="S", help="duration")
    run.add_argument(
        "--processes", type=int, default=1, metavar="N", help="locust processes; each uses one core"
    )
    run.add_argument(
        "--thresholds", type=Path, default=DEFAULT_FILE, metavar="FILE", help="TOML file with the thresholds"
    )
    run.add_argument("--seed", type=int, default=0, help="random seed")
    run.add_argument(
        "--keep-rules",
        action="store_true",
        help="leave the guard's rules as they are; default: the scenario's rule is enforced during the run",
    )
    run.add_argument(
        "--address-header",
        metavar="NAME",
        help="header in which pages say where they come from; the engine must trust this machine",
    )
    _connect_options(run)
    run.set_defaults(action=_run)

    capacity = commands.add_parser(
        "capacity", help="measure the capacity of an engine; the report is one page"
    )
    capacity.add_argument(
        "--from", dest="first", type=_positive, default=200.0, metavar="N", help="first rate, per second"
    )
    capacity.add_argument(
        "--to", dest="most", type=_positive, default=50_000.0, metavar="N", help="highest rate, per second"
    )
    capacity.add_argument("--step", type=_positive, default=10.0, metavar="S", help="seconds at each rate")
    capacity.add_argument(
        "--confirm", type=_count, default=2, metavar="N", help="runs that must hold before a rate is claimed"
    )
    capacity.add_argument(
        "--confirm-step", type=_positive, metavar="S", help="seconds of such a run; default: twice --step"
    )
    capacity.add_argument("--connections", type=_count, default=256, metavar="N", help="connections in total")
    capacity.add_argument(
        "--generators", type=_count, default=1, metavar="N", help="load generator processes"
    )
    capacity.add_argument(
        "--p99-ms", type=_positive, default=50.0, metavar="MS", help="a step breaks above this p99"
    )
    capacity.add_argument(
        "--lag", type=_positive, default=5.0, metavar="S", help="a step breaks above this ledger lag"
    )
    capacity.add_argument(
        "--response",
        type=_positive,
        default=15.0,
        metavar="S",
        help="how long to wait for the last responses of a step",
    )
    _connect_options(capacity)
    capacity.set_defaults(action=_capacity)

    check = commands.add_parser(
        "verify", help="compare the responses of an earlier run with the ledger again"
    )
    check.add_argument("directory", type=Path, metavar="DIR", help="directory of the run")
    check.add_argument(
        "--settle", type=float, default=60.0, metavar="S", help="how long to wait for the ledger"
    )
    _connect_options(check)
    check.set_defaults(action=_verify)

    listing = commands.add_parser("list", help="list the scenarios")
    listing.set_defaults(action=_list)
    return parser


def _connect_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--url", help="URL of the engine; default: from REDEEM_HOST and REDEEM_PORT")
    command.add_argument(
        "--key-file",
        type=Path,
        metavar="FILE",
        help=f"file with an API key, scopes {','.join(SCOPES)}; or set {KEY_VARIABLE}; default: a new key",
    )
    command.add_argument(
        "--out", type=Path, metavar="DIR", help=f"directory for reports; default: a new one in {REPORTS}"
    )
    command.add_argument("--json", action="store_true", help="print the result as JSON")


def _run(options: argparse.Namespace) -> int:
    from loadtest.run import run  # noqa: PLC0415 - only where it is needed

    if importlib.util.find_spec("locust") is None:
        raise ApiError(NOT_INSTALLED)
    with _connected(options) as (url, key):
        result = run(
            url,
            key,
            options.scenario,
            _directory(options, options.scenario),
            thresholds=options.thresholds,
            peak_per_s=options.peak,
            seconds=options.seconds,
            processes=options.processes,
            seed=options.seed,
            address_header=options.address_header,
            keep_rules=options.keep_rules,
            say=_say,
        )
    print(json.dumps(result.document()) if options.json else "\n".join(result.lines()))
    return 1 if result.failed else 0


def _capacity(options: argparse.Namespace) -> int:
    if importlib.util.find_spec("psutil") is None:
        raise ApiError(NOT_INSTALLED)
    from loadtest.capacity import Capacity  # noqa: PLC0415 - only where it is needed
    from loadtest.capacity_page import page  # noqa: PLC0415 - only where it is needed
    from loadtest.steps import Limits  # noqa: PLC0415 - only where it is needed

    directory = _directory(options, "capacity")
    with _connected(options) as (url, key):
        capacity = Capacity(
            url,
            key,
            directory,
            limits=Limits(p99_ms=options.p99_ms, lag_s=options.lag, response_s=options.response),
            step_s=options.step,
            confirmations=options.confirm,
            confirmation_s=options.confirm_step or 2 * options.step,
            connections=options.connections,
            generators=options.generators,
            say=_say,
        )
        report = capacity.measure(run_name(), first=options.first, most=max(options.first, options.most))
    (directory / "capacity.html").write_text(page(report), encoding="utf-8")
    document = json.dumps(report.document() | {"page": str(directory / "capacity.html")})
    (directory / "capacity.json").write_text(document + "\n", encoding="utf-8")
    if options.json:
        print(document)
    else:
        listed = map(str, report.findings.listed)
        print(report.headline, report.evidence, *listed, directory / "capacity.html", sep="\n")
    return 1 if report.findings.counts or not report.confirmed else 0


def _verify(options: argparse.Namespace) -> int:
    from loadtest.verifier import verify  # noqa: PLC0415 - only where it is needed

    plan = scenarios.read_plan(options.directory)
    with _connected(options) as (url, key), Api(url, key) as api:
        found = verify(api, plan, options.directory, settle_s=options.settle, say=_say)
    if options.json:
        print(json.dumps(found.document()))
    else:
        print(f"{found.acknowledged} acknowledged, {found.events} events, {found.counts.total()} differences")
        for item in found.listed:
            print(f"{item.kind}: {item.item}: {item.text}")
    return 1 if found.counts else 0


def _list(_: argparse.Namespace) -> int:
    for name, scenario in scenarios.SCENARIOS.items():
        print(f"{name:14}{scenario.about} ({scenario.peak_per_s:g} a second, {scenario.seconds:g} s)")
    return 0


@contextlib.contextmanager
def _connected(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Yield URL and API key. A key that is created here is revoked at the end."""
    key = options.key_file.read_text().strip() if options.key_file else os.environ.get(KEY_VARIABLE, "")
    if key and options.url:
        yield options.url, key
        return
    from engine.cli import connect  # noqa: PLC0415 - only beside an engine of this machine
    from engine.control import api_keys  # noqa: PLC0415 - only beside an engine of this machine

    settings = connect.load_settings()
    url = options.url or f"http://{settings.host}:{settings.port}"
    if key:
        yield url, key
        return
    issued = connect.run_change(lambda plane: api_keys.create(plane, "load test", SCOPES), settings)
    try:
        yield url, issued.key
    finally:
        _revoke(issued.api_key.id, settings)


def _revoke(key_id: str, settings: Settings) -> None:
    from engine.cli import connect  # noqa: PLC0415 - only beside an engine of this machine
    from engine.control import api_keys  # noqa: PLC0415 - only beside an engine of this machine

    try:
        connect.run_change(lambda plane: api_keys.revoke(plane, key_id), settings)
    except StoreUnavailable as fault:
        _say(f"The API key of this run is still valid ({fault}). Revoke it: redeem keys revoke {key_id}")


def _directory(options: argparse.Namespace, name: str) -> Path:
    given: Path | None = options.out
    return (given or REPORTS / f"{name}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}").resolve()


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(text)
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
