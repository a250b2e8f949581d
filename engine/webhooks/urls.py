"""Checks the URL of a webhook early, for a clear error. The deliverer checks each address that it calls."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from engine.api.checks import check_text
from engine.errors import Refusal
from engine.webhooks.addresses import is_address, is_public

URL_LENGTH_MAX: Final = 2048
HOST_LENGTH_MAX: Final = 253  # RFC 1035, section 2.3.4
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")  # the last part of another spelling of an IPv4 address


def check_url(url: str, *, allow_private: bool) -> None:
    """Refuse a URL that no endpoint can have, or that may not be called.

    Raises:
        Refusal: ``malformed_request``; the detail names the field ``url``, never its value.
    """
    check_text("url", url, URL_LENGTH_MAX)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _malformed("is not a valid URL; a port is a number from 1 to 65535") from None
    if not url.isascii() or " " in url or not host or parts.fragment:
        raise _malformed("must be an absolute URL of ASCII characters, without a fragment")
    if parts.username is not None or parts.password is not None:
        raise _malformed("must not contain a user or password")
    if not url.startswith(("https://", "http://") if allow_private else "https://"):
        raise _malformed("must begin with https://")
    if port == 0:
        raise _malformed("is not a valid URL; a port is a number from 1 to 65535")
    if not (is_address(host) or _is_name(host)):
        raise _malformed("must name a host: a DNS name, or an address in its usual spelling")
    if not allow_private and _is_private(host):
        raise _malformed("must not name a private or loopback address")


def _is_name(host: str) -> bool:
    """Whether DNS may have a name. ``host`` is in lower case."""
    labels = host.removesuffix(".").split(".")
    return (
        len(host) <= HOST_LENGTH_MAX
        and all(map(_LABEL.fullmatch, labels))
        and not _NUMBER.fullmatch(labels[-1])
        and labels[-1] != "invalid"  # RFC 6761, section 6.4
    )


def _is_private(host: str) -> bool:
    """Whether a host is certainly not public. A name of one label is one of the local network."""
    if is_address(host):
        return not is_public(host)
    name = host.removesuffix(".")
    return "." not in name or name.endswith(".localhost")


def _malformed(says: str) -> Refusal:
    return Refusal("malformed_request", f"url {says}")
