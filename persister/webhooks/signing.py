"""Signs messages as the Standard Webhooks specification says, with its own library.

An endpoint verifies ``webhook-signature`` over ``webhook-id``, ``webhook-timestamp`` and the body. While a
secret is being replaced, there is one signature for each valid secret.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from standardwebhooks import Webhook

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime


def signed_headers(secrets: Sequence[str], message_id: str, at: datetime, body: bytes) -> dict[str, str]:
    """The three headers of a message. ``at`` is in UTC; each secret begins with ``whsec_``."""
    text = body.decode()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(Webhook(secret).sign(message_id, at, text) for secret in secrets),
    }
