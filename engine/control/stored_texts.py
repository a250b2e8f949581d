"""Refuses names, reasons and descriptions that contain an issued code: no usable code may rest in clear (P7).

Texts of a redemption are checked by ``redemption.core``, without a query.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from engine.codes import mint_keys
from engine.codes.codec import Codec
from engine.codes.formats import FORMATS
from engine.codes.texts import SHORTEST_CODE, possible
from engine.errors import Refusal
from engine.queries import queries
from engine.store.configuration import IMPORTED

if TYPE_CHECKING:
    from engine.postgres_types import Connection
    from engine.settings import Settings

CODE_IN_TEXT: Final = "must not contain a code"
_SQL: Final = queries(__package__, "stored_texts")


async def refuse_codes(connection: Connection, settings: Settings, **texts: str | None) -> None:
    """Refuse texts that contain a minted code. ``texts``: by the names of their fields.

    Of an imported code only a digest is known, so it is not found. If a mint key is not here, its codes are
    not found either: nobody can tell them from other texts without it.

    Raises:
        Refusal: ``malformed_request``; the detail names the field.
    """
    long = {name: text for name, text in texts.items() if text is not None and _may_have_code(text)}
    if not long:
        return
    in_use = defaultdict(list)
    for row in await connection.fetch(_SQL["in_use"], IMPORTED):
        in_use[FORMATS[row["format"]]].append(row["mint_key"])
    try:
        by_name = mint_keys.from_settings(settings).by_name
    except mint_keys.MintKeyError:
        return
    codec = Codec(by_name)
    for name, text in long.items():
        for fmt, key_names in in_use.items():
            parts = [part for _, part in possible(text, [fmt])]
            for key_name in [key_name for key_name in key_names if key_name in by_name] if parts else ():
                for identity in filter(None, codec.decode_many(parts, fmt, key_name)):
                    if await connection.fetchval(_SQL["is_issued"], *identity, fmt.name, key_name):
                        raise Refusal("malformed_request", f"{name} {CODE_IN_TEXT}")


def _may_have_code(text: str) -> bool:
    return len(text) >= SHORTEST_CODE or not text.isascii()
