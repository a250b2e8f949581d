"""``make bench-peers``: compares the engine with other implementations, in one run, on one machine.

All serve the same request to the same client (wrk; for a constant rate our own). Each is one process on one
processor; the client, Valkey and PostgreSQL use the other processors. A peer that is not installed is left
out, and a line says so.
docs/performance.md says what each peer does and does not do.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import uvloop
from redis.asyncio import Redis

from engine.bundled import Postgres, Valkey
from engine.control import api_keys
from engine.control.change import ControlPlane
from engine.database import open_database
from loadtest.benchmarks import testbed
from loadtest.comparators import contenders, parts, report, stores
from loadtest.comparators.run import Measured, Options, PeerLoad, Rounds, WrongError

if TYPE_CHECKING:
    from engine.settings import Settings
    from loadtest.comparators.contenders import Peer

CONNECTIONS: Final = (16, 256)


def main() -> None:
    """Parse the options and run. Exit 1 if that fails, or if a contender's responses are wrong."""
    options = _options()
    try:
        program = parts.program("wrk", "wrk")
    except parts.MissingError as error:
        sys.exit(f"nothing was measured: {error}")
    peers, missing = _install(options)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)  # fail now, not after the whole run
    connections = max(options.connections)
    loads = (*map(PeerLoad, options.connections), *(PeerLoad(connections, rate) for rate in options.rates))
    how = Options(rounds=options.rounds, seconds=options.seconds, loads=loads)
    with (
        tempfile.TemporaryDirectory() as directory,
        testbed.pinned(testbed.processors()[1]),
        testbed.servers(Path(directory)) as settings,
    ):
        try:
            measured, versions = uvloop.run(_run(settings, peers, program, how))
        except WrongError as error:
            sys.exit(str(error))
    found = report.results(measured)
    result = {
        "machine": report.machine(),
        "versions": versions,
        "rounds": how.rounds,
        "seconds": how.seconds,
        "peers_appendfsync": options.appendfsync,
        "results": found,
        "not_run": missing,
    }
    print(f"{result['machine']}; {', '.join(f'{name} {what}' for name, what in versions.items())}")
    fsync = ", ".join(options.appendfsync)
    print(f"{how.rounds} rounds of {how.seconds} s; appendfsync of the peers: {fsync}")
    for heading, one in found.items():
        print("\n" + report.table(one, list(peers), heading))
    for name, why in missing.items():
        print(f"\nnot run: {name}: {why}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def _options() -> argparse.Namespace:
    names = [peer.name for peer in contenders.PEERS]
    parser = argparse.ArgumentParser(prog="python -m loadtest.comparators", description=__doc__)
    parser.add_argument("--rounds", type=_positive, default=5)
    parser.add_argument(
        "--seconds", type=_positive, default=5, help="seconds for each contender in each round"
    )
    parser.add_argument(
        "--connections", type=_positives, default=CONNECTIONS, help="numbers of connections, such as 16,256"
    )
    parser.add_argument(
        "--rates",
        type=_positives,
        default=(),
        help="also loads with a constant rate (open loop) over the most connections: redemptions a second, "
        "such as 2000,4000",
    )
    parser.add_argument(
        "--only", type=_names(names), default=names, help=f"measure only these of {','.join(names)}"
    )
    parser.add_argument(
        "--appendfsync",
        type=_names(["no", "everysec", "always"]),
        default=["no", "always"],
        help="appendfsync of Valkey while a peer runs, such as no,always: each peer runs once with each; "
        "the engine always runs with `always`",
    )
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    parser.add_argument("--build", type=Path, default=Path("build/peers"), help="directory for built parts")
    return parser.parse_args()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _positives(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_positive(one) for one in text.split(",")))


def _names(known: list[str]) -> Any:  # noqa: ANN401 - a type for argparse
    def names(text: str) -> list[str]:
        found = text.split(",")
        if set(found) - set(known):
            raise argparse.ArgumentTypeError(f"choose from {', '.join(known)}")
        return found

    return names


def _install(options: argparse.Namespace) -> tuple[dict[Peer, Path], dict[str, str]]:
    """Return the contenders that can run, each with its part; and why the others cannot."""
    options.build.mkdir(parents=True, exist_ok=True)
    found: dict[Peer, Path] = {}
    missing: dict[str, str] = {}
    for peer in contenders.PEERS:
        if peer.name not in options.only:
            continue
        try:
            part = peer.install(options.build)
        except parts.MissingError as error:
            missing[peer.name] = str(error)
            print(f"not run: {peer.name}: {error}", file=sys.stderr)
        else:
            found |= dict.fromkeys(contenders.with_appendfsync(peer, options.appendfsync), part)
    return found, missing


async def _run(
    settings: Settings, peers: dict[Peer, Path], program: Path, options: Options
) -> tuple[Measured, dict[str, str]]:
    directory = settings.data_dir
    postgres, valkey = Postgres(data_dir=directory), Valkey(data_dir=directory)
    database_url = postgres.database_url("peers")
    connection, postgres_pid = await stores.open_database(postgres.database_url("postgres"), database_url)
    try:
        async with (
            open_database(settings, settings.database_url) as database,
            Redis.from_url(settings.redis_url) as redis,
        ):
            plane = ControlPlane(database, redis, settings)
            server = await redis.info("server")
            valkey_pid = server["process_id"]
            bench = contenders.Bench(
                settings=settings,
                directory=directory,
                key=(await api_keys.create(plane, "bench", ["redeem"])).value.key,
                redis_socket=str(valkey.socket_path),
                database_url=database_url,
                sha=await stores.open_scripts(redis),
            )
            kept: dict[str, stores.Store] = {
                "nothing": stores.Nothing(),
                "engine": stores.Events(redis, valkey_pid, settings),
                "engine's keys": stores.Events(redis, valkey_pid, settings),
                "redis": stores.Marks(redis, valkey_pid),
                "postgresql": stores.Rows(connection, postgres_pid),
            }
            versions = {
                "Valkey": server.get("valkey_version") or server["redis_version"],
                "PostgreSQL": await connection.fetchval("SHOW server_version"),
                **parts.versions(),
            }
            rounds = Rounds(
                plane=plane, bench=bench, peers=peers, stores=kept, program=program, options=options
            )
            return await rounds.measure(), versions
    finally:
        await connection.close()


if __name__ == "__main__":
    main()
