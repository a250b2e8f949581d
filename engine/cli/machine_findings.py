"""What `redeem doctor` says of the bundled servers, and of the supervisors of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine import bundled
from engine.bundled import Postgres, ProcessState, Valkey
from engine.health.parts_watch import supervisor_age
from engine.health.redis_checks import Finding, Verdict
from engine.observability.heartbeats import SILENT_S

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def bundled_server(data_dir: Path, check: str, reason: str, consequence: str) -> Finding | None:
    """Return the finding about a bundled server that cannot be used; None if no part of an engine is there.

    ``check``: ``redis`` or ``postgresql``. ``reason``: what the attempt to use it said.
    """
    server = Valkey(data_dir=data_dir) if check == "redis" else Postgres(data_dir=data_dir)
    name, log = ("Valkey", "valkey.log") if check == "redis" else ("PostgreSQL", "postgres.log")
    found, engine = server.presence, bundled.engine_presence(data_dir)
    its_name = f"the bundled {name} (pid {found.pid})"
    match found.state, engine.state:
        case ProcessState.HIDDEN, _:
            says = f"the bundled {name} cannot be reached: {reason}"
            do = f"run `redeem doctor` as the user whose engine runs on {data_dir}"
        case ProcessState.STOPPED, _:
            says, do = f"{its_name} is stopped, by SIGSTOP or a debugger", f"kill -CONT {found.pid}"
        case ProcessState.RUNS, _ if not server.socket_path.exists():
            says = f"{its_name} runs, but its socket {server.socket_path} is gone"
            do = f"kill -INT {found.pid}; `redeem up` then starts it again"
        case ProcessState.RUNS, _:
            says = f"{its_name} runs, but cannot be used: {reason}"
            do = f"read {data_dir}/log/{log}; is its disk full, does it load its data?"
        case _, ProcessState.STOPPED:
            says = f"the bundled {name} does not run, and `redeem up` (pid {engine.pid}) is stopped"
            do = f"kill -CONT {engine.pid}; it then starts {name} again"
        case _, ProcessState.RUNS:
            says = f"the bundled {name} does not run; `redeem up` (pid {engine.pid}) starts it again"
            do = f"look again in a few seconds; if it stays, read {data_dir}/log/{log}"
        case _:
            return None
    return Finding(check, Verdict.WRONG, f"{says}; {consequence}", do)


def engine_is_there(data_dir: Path) -> bool:
    """Whether any process of an engine with bundled servers is there, though perhaps stopped."""
    servers = (Valkey(data_dir=data_dir).presence, Postgres(data_dir=data_dir).presence)
    return any(part.state is not ProcessState.GONE for part in (*servers, bundled.engine_presence(data_dir)))


def supervisors(run_dir: Path) -> Iterator[Finding]:
    """Yield a finding if a `redeem up` or `redeem serve` of this machine does not beat.

    A front end that was killed leaves its directory. While another one works, that says nothing.
    """
    beats = [beat for place in sorted(run_dir.glob("*")) if (beat := supervisor_age(place)) is not None]
    works = any(age_s < SILENT_S for _, age_s in beats)
    for pid, age_s in beats:
        state = bundled.engine_state(pid)
        if age_s < SILENT_S or (works and state is ProcessState.GONE):
            continue
        name = f"`redeem up` or `redeem serve` (pid {pid})"
        if state is ProcessState.GONE:
            says, do = f"{name} was killed {age_s:.0f} s ago", "redeem up, or redeem serve"
        elif state is ProcessState.STOPPED:
            says, do = f"{name} is stopped, by SIGSTOP or a debugger", f"kill -CONT {pid}"
        else:
            says = f"{name} hangs: no sign of life for {age_s:.0f} s"
            do = f"kill -9 {pid}, then start it again"
        yield Finding("supervisor", Verdict.WRONG, f"{says}: processes that end are not started again", do)
