"""A shop's page that lets customers redeem codes in it: it embeds the customer page with ``<redeem-card>``.

Run it beside ``make run``, with a browser key for the origin of this shop::

    redeem keys create --browser --campaign cmp_1 --origin http://localhost:8081
    .venv/bin/python examples/shop/shop.py --engine http://127.0.0.1:8080 --key pk_...

With the key's signing secret (``SIGNING_SECRET=rs_...`` in the environment), the shop also says who its
customer is: ``ann``. The page asks for a user token, and for another one when it has ended.

The page hears of a redemption through the event ``redeemed``, which has its id. A page can be made to say
anything, so before a shop hands out goods, its backend asks the engine for that id with its own key.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hmac
import json
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

HERE: Final = Path(__file__).parent
FILES: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/shop.js": ("shop.js", "text/javascript; charset=utf-8"),
    "/shop.css": ("shop.css", "text/css; charset=utf-8"),
}


USER: Final = "ann"
TOKEN_S: Final = 600


def user_token(key: str, secret: str) -> str:
    """Return a JSON Web Token (RFC 7519) that says who the customer is."""
    now = int(time.time())
    claims = {"sub": USER, "aud": f"key_{key.split('_')[1]}", "iat": now, "exp": now + TOKEN_S}
    parts = (json.dumps(part).encode() for part in ({"alg": "HS256", "typ": "JWT"}, claims))
    signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    mac = base64.urlsafe_b64encode(hmac.digest(secret.encode(), signed, "sha256")).rstrip(b"=")
    return f"{signed.decode()}.{mac.decode()}"


class Shop(ThreadingHTTPServer):
    """Serves the files of this directory, with the engine's address and the key filled in.

    Attributes:
        secret: signs user tokens; empty if the shop does not know its customers.
    """

    def __init__(self, port: int, values: Mapping[str, str], secret: str) -> None:
        super().__init__(("127.0.0.1", port), Page)
        self.values = values
        self.secret = secret


class Page(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Shop

    def do_GET(self) -> None:
        """Answer with a token or a file. The policy is all that the element needs of a shop's page."""
        if self.path == "/user-token":
            self._answer_token()
            return
        found = FILES.get(self.path)
        if found is None:
            self.send_error(404)
            return
        name, content_type = found
        text = (HERE / name).read_text(encoding="utf-8")
        for value, filled in self.server.values.items():
            text = text.replace(f"{{{{{value}}}}}", filled)
        engine = self.server.values["engine"]
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header(
            "Content-Security-Policy",
            "default-src 'none'; style-src 'self'; img-src data:; connect-src 'self'; "
            f"script-src 'self' {engine}; frame-src {engine}",
        )
        self.end_headers()
        self.wfile.write(text.encode())

    def _answer_token(self) -> None:
        token = user_token(self.server.values["key"], self.server.secret) if self.server.secret else ""
        self.send_response(200 if token else 204)
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(token.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default="http://127.0.0.1:8080", help="address of the engine")
    parser.add_argument("--key", required=True, help="browser key for the origin of this shop")
    parser.add_argument("--port", type=int, default=8081)
    options = parser.parse_args()
    secret = os.environ.get("SIGNING_SECRET", "")
    with Shop(options.port, {"engine": options.engine, "key": options.key}, secret) as shop:
        print(f"listening on http://localhost:{shop.server_port}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            shop.serve_forever()


if __name__ == "__main__":
    main()
