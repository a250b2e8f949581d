"""The card of a campaign: what its customer page shows beside the code, as plain text (docs/card.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import msgspec

from engine.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

LANGUAGES: Final = ("en", "zh")
_LENGTHS_MAX: Final = {"brand": 60, "title": 80, "good_for": 300, "how_to_use": 600}
_WITH_LINES: Final = frozenset(("good_for", "how_to_use"))

Accent = Literal["blue", "green", "red", "purple", "orange", "slate"]
Scheme = Literal["auto", "light", "dark"]


class CardTexts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The texts of a card in one language."""

    title: str | None = None
    good_for: str | None = None
    how_to_use: str | None = None


class TextsByLanguage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The texts of a card by language, each a member of ``LANGUAGES``."""

    en: CardTexts | None = None
    zh: CardTexts | None = None

    def best(self, language: str) -> CardTexts:
        """Return the texts in a language; those of the other one if there are none in it."""
        return (self.zh or self.en if language == "zh" else self.en or self.zh) or CardTexts()


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The card of a campaign. Every member may be left out: then the page has its own look and words."""

    brand: str | None = None
    accent: Accent | None = None
    scheme: Scheme | None = None
    texts: TextsByLanguage | None = None

    def all_texts(self) -> Iterator[tuple[str, str]]:
        """Yield each text with the name of its member, such as ``card.texts.en.title``."""
        if self.brand is not None:
            yield "card.brand", self.brand
        for language in LANGUAGES:
            texts: CardTexts | None = getattr(self.texts, language, None)
            for name in CardTexts.__struct_fields__ if texts is not None else ():
                text = getattr(texts, name)
                if text is not None:
                    yield f"card.texts.{language}.{name}", text

    def document(self) -> dict[str, object]:
        """Return the JSON object of the API."""
        document: dict[str, object] = msgspec.to_builtins(self)
        return document


def card_in(stored: str | None) -> Card | None:
    """Return a card that is stored as JSON."""
    return None if stored is None else msgspec.json.decode(stored, type=Card)


def check_card(card: Card | None) -> Card | None:
    """Return a card whose texts can be shown.

    Raises:
        Refusal: ``malformed_request``: a text is empty, too long, or has characters that are not printable.
            Two of them may have line breaks.
    """
    for place, text in () if card is None else card.all_texts():
        name = place.rpartition(".")[2]
        if not 0 < len(text) <= _LENGTHS_MAX[name] or text.isspace():
            raise Refusal("malformed_request", f"{place} must have 1 to {_LENGTHS_MAX[name]} characters")
        printable = text.replace("\n", "") if name in _WITH_LINES else text
        if not printable.isprintable():
            raise Refusal("malformed_request", f"{place} has unprintable characters")
    return card
