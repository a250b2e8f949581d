"""``redeem webhooks ping`` and ``listen``: for whoever sets up an endpoint, or writes one."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING, Final

import click
import orjson

from engine.cli.connect import run
from engine.errors import Refusal, StoreUnavailable

_SECRET: Final = re.compile(r"whsec_[A-Za-z0-9+/]{4,}={0,2}")

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from persister.webhooks.sender import DeliveryResult


@click.command()
@click.argument("webhook_id", metavar="WEBHOOK")
def ping(webhook_id: str) -> None:
    """Send a signed message of the type `ping` to an endpoint from this machine, and print its answer."""
    from persister.webhooks.messages import ping_message  # noqa: PLC0415 - other commands start sooner without HTTP
    from persister.webhooks.sender import open_sender  # noqa: PLC0415 - likewise
    from persister.webhooks.store import read_endpoint  # noqa: PLC0415 - likewise

    async def send(plane: ControlPlane) -> DeliveryResult:
        async with plane.database.connection() as connection:
            endpoint = await read_endpoint(connection, webhook_id)
        if endpoint is None:
            raise Refusal("webhook_not_found", "there is no such webhook")
        async with open_sender(plane.settings) as sender:
            return await sender.send(endpoint, ping_message(endpoint.id))

    result = run(send)
    if result.error is not None:
        raise StoreUnavailable(f"{webhook_id} did not take the message: {result.error}")
    click.echo(f"{webhook_id}  answered {result.status} after {result.duration_ms} ms")


@click.command()
@click.option(
    "--secret",
    required=True,
    envvar="WEBHOOK_SECRET",
    help="The endpoint's secret, whsec_…; better in the variable WEBHOOK_SECRET than on the command line.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=8088, show_default=True, type=click.IntRange(0, 65535), help="0: any.")
def listen(secret: str, host: str, port: int) -> None:
    """Be an endpoint: print each message that comes and is signed with the secret, until Ctrl-C.

    It answers 204; to a message with a wrong signature it answers 401, and reports it on stderr. For an
    endpoint on this machine, set REDEEM_WEBHOOKS_ALLOW_PRIVATE.
    """
    if not _SECRET.fullmatch(secret):
        raise click.BadParameter("a secret is whsec_ and a text in base64", param_hint="--secret")
    with contextlib.suppress(KeyboardInterrupt):  # the usual way to stop
        asyncio.run(_listen(secret, host, port))


async def _listen(secret: str, host: str, port: int) -> None:
    from aiohttp import web  # noqa: PLC0415 - as in ping
    from standardwebhooks import Webhook, WebhookVerificationError  # noqa: PLC0415 - as in ping

    verifier = Webhook(secret)

    async def receive(request: web.Request) -> web.Response:
        body = await request.read()
        try:
            verifier.verify(body.decode(), dict(request.headers))
        except (WebhookVerificationError, ValueError) as error:
            click.echo(f"not verified: {error}", err=True)
            return web.Response(status=401)
        click.echo(orjson.dumps({"webhook-id": request.headers["webhook-id"], "body": orjson.loads(body)}))
        return web.Response(status=204)

    app = web.Application()
    app.router.add_post("/{path:.*}", receive)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        listening_on = runner.addresses[0][1]
        click.echo(f"listening on http://{host}:{listening_on}", err=True)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
