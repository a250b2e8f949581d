"""The customer page without JavaScript, as HTML: form, card, result. It knows no HTTP.

Whatever comes from a request or from a merchant is escaped here.
"""

from __future__ import annotations

import re
import tomllib
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Final, NamedTuple

from engine.api.cards import Card, CardTexts
from engine.api.html import STYLE, page

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.api.cards import Accent
    from engine.api.outcomes import Checked, Redeemed

LANGUAGES_TEXTS: Final[dict[str, dict[str, str]]] = tomllib.loads(
    resources.files(__package__).joinpath("plain_card.toml").read_text(encoding="utf-8")
)
"""The texts by language."""
ACCENTS: Final[dict[Accent, str]] = {
    "blue": "#2456c7",
    "green": "#1d7a45",
    "red": "#b3261e",
    "purple": "#6b3fb5",
    "orange": "#a84b00",
    "slate": "#414a57",
}
"""The colours of buttons: white can be read on each. They are those of ``web/src/card/card.css``."""
CARD_STYLE: Final = (
    f"{STYLE}button{{background:{ACCENTS['blue']};color:#fff;border:0;border-radius:.5rem;font-weight:600}}"
    "input{border:1px solid;border-radius:.5rem;font-weight:400}dd{font-size:1.25rem}label{font-weight:bold}"
    "[role=alert]{border-left:.25rem solid;padding-left:.75rem}"
    + "".join(
        f"[data-accent={name}] button{{background:{colour}}}[data-accent={name}] strong{{border-bottom:.2rem "
        f"solid {colour}}}"
        for name, colour in ACCENTS.items()
    )
    + "".join(f":root[data-scheme={scheme}]{{color-scheme:{scheme}}}" for scheme in ("light", "dark"))
)
_AMOUNT: Final = re.compile(r"([0-9]{1,12})(?:[.,]([0-9]{1,3}))?")
# ISO 4217: currencies whose minor unit is not a hundredth.
_WITHOUT_MINOR_UNIT: Final = frozenset(
    "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF".split()  # noqa: SIM905 - easier to read
)
_IN_THOUSANDTHS: Final = frozenset(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"))


class PlainCard(NamedTuple):
    """One customer's page.

    Attributes:
        language: a key of ``LANGUAGES_TEXTS``.
        key: the browser key.
        card: that of the campaign, for brand and texts.
    """

    language: str
    key: str
    card: Card

    @property
    def words(self) -> dict[str, str]:
        """The texts in the customer's language."""
        return LANGUAGES_TEXTS[self.language]

    def enter(self) -> str:
        """Return the page with the field for the code."""
        return self._page(self.words["enter"], self._entry())

    def shown(self, code: str, checked: Checked, idempotency_key: str) -> str:
        """Return the page that says what a code is worth, and asks whether to redeem it."""
        words, own = self.words, self._own
        balance = checked.balance if isinstance(checked.balance, int) else None
        money = _money(checked.amount if balance is None else balance, checked.currency)
        rows = [
            (words["worth" if balance is None else "left"], money),
            (words["uses_left"], str(checked.uses_left) if isinstance(checked.uses_left, int) else ""),
            (words["until"], _time(checked.ends_at)),
            (words["good_for"], own.good_for),
            (words["how_to_use"], own.how_to_use),
        ]
        if balance is None or checked.currency is None:
            button = words["redeem_amount"].format(amount=money) if money else words["redeem"]
            form = self._redeem_form(button, code=code, idempotency_key=idempotency_key)
        else:
            form = self._balance_form(code, idempotency_key, balance, checked.currency)
        return self._page(own.title or words["enter"], _list(rows) + f"<p>{words['nothing_yet']}</p>" + form)

    def redeemed(self, done: Redeemed) -> str:
        """Return the page with the result. A repeated request gets the same page."""
        words = self.words
        left = done.balance if isinstance(done.balance, int) else None
        rows = [
            (words["taken"], _money(done.amount, done.currency)),
            (words["remaining"], _money(left, done.currency)),
            (words["number"], done.id),
            (words["time"], _time(done.redeemed_at)),
        ]
        return self._page(f"✓ {words['done']}", _list(rows) + self._again())

    def unknown_outcome(self, **fields: str) -> str:
        """Return the page that asks again, with the same fields, after what may have been a redemption."""
        form = self._redeem_form(self.words["ask_again"], **fields)
        return self._page(self.words["trouble"], f"<p>{self.words['outcome_unknown']}</p>{form}")

    def trouble(self, name: str, *, seconds: int = 0) -> str:
        """Return the page that says why it did not work. ``name``: that of a text, such as a problem code."""
        message = self.words.get(name, self.words["other"]).format(seconds=seconds)
        return self._page(self.words["trouble"], f'<p role="alert">{message}</p>' + self._entry())

    def dead_end(self, name: str) -> str:
        """Return the page that says that nothing can be done here."""
        return self._page(self.words["trouble"], f'<p role="alert">{self.words[name]}</p>')

    @property
    def _own(self) -> CardTexts:
        return self.card.texts.best(self.language) if self.card.texts else CardTexts()

    def _page(self, title: str, body: str) -> str:
        brand = f"<p><strong>{escape(self.card.brand)}</strong></p>" if self.card.brand else ""
        scheme = f' data-scheme="{self.card.scheme}"' if self.card.scheme else ""
        return page(
            title,
            f"{brand}<h1>{escape(title)}</h1>{body}",
            self.words["lang"],
            style=CARD_STYLE,
            root=f' data-accent="{self.card.accent or "blue"}"{scheme}',
        )

    def _entry(self) -> str:
        return _form(
            self._hidden(step="card"),
            f'<p><label>{self.words["code"]}<br><input name="code" required maxlength="256" '
            f'autocomplete="off" autocapitalize="characters" spellcheck="false"></label></p>',
            self.words["look"],
        )

    def _balance_form(self, code: str, idempotency_key: str, balance: int, currency: str) -> str:
        """Ask how much to take, in a field for numbers, which the browser itself checks."""
        least, most = _decimal(1, currency), _decimal(balance, currency)
        label = self.words["how_much"].format(amount=_money(balance, currency))
        field = (
            f'<p><label>{label}<br><input name="amount" type="number" inputmode="decimal" min="{least}" '
            f'max="{most}" step="{least}"></label></p>'
        )
        hidden = self._hidden(
            step="redeem", code=code, idempotency_key=idempotency_key, whole="1", currency=currency
        )
        return _form(hidden, field, self.words["redeem"])

    def _redeem_form(self, button: str, **fields: str) -> str:
        return _form(self._hidden(step="redeem", **fields), "", button)

    def _again(self) -> str:
        return _form(self._hidden(step="enter"), "", self.words["again"])

    def _hidden(self, **fields: str) -> str:
        named = {"key": self.key, "lang": self.language, **fields}
        return "".join(self._hidden_one(name, value) for name, value in named.items())

    @staticmethod
    def _hidden_one(name: str, value: str) -> str:
        return f'<input type="hidden" name="{name}" value="{escape(value)}">'


def language_of(asked: str, accepted: str) -> str:
    """Return a key of ``LANGUAGES_TEXTS``: the one that was asked for, else the first that a browser accepts.

    ``accepted``: the header Accept-Language (RFC 9110, section 12.5.4). Weights are not read: browsers list
    the languages in their order.
    """
    for wanted in (asked, *accepted.split(",")):
        primary = wanted.strip().lower().partition(";")[0].partition("-")[0].strip()
        if primary in LANGUAGES_TEXTS:
            return primary
    return "en"


def _form(hidden: str, fields: str, button: str) -> str:
    return (
        f'<form method="post" action="/card">{hidden}{fields}<p><button>{escape(button)}</button></p></form>'
    )


def _list(rows: Iterable[tuple[str, str | None]]) -> str:
    """Return a list of what there is. Line breaks of a text stay."""
    shown = "".join(
        f"<dt>{name}</dt><dd>{escape(value).replace(chr(10), '<br>')}</dd>" for name, value in rows if value
    )
    return f"<dl>{shown}</dl>"


def minor_units(text: str, currency: str) -> int | None:
    """Return a decimal number as an amount in minor units; None if it is no amount of this currency."""
    match, digits = _AMOUNT.fullmatch(text.strip()), _digits(currency)
    if match is None or len(match[2] or "") > digits:
        return None
    return int(match[1] + (match[2] or "").ljust(digits, "0")) or None


def _digits(currency: str) -> int:
    return 0 if currency in _WITHOUT_MINOR_UNIT else 3 if currency in _IN_THOUSANDTHS else 2


def _decimal(amount: int, currency: str) -> str:
    digits = _digits(currency)
    whole, rest = divmod(amount, 10**digits)
    return f"{whole}.{rest:0{digits}}" if digits else str(whole)


def _money(amount: int | None, currency: str | None) -> str:
    return "" if amount is None or currency is None else f"{_decimal(amount, currency)} {currency}"


def _time(iso: str | None) -> str:
    """Return an instant of the API (ISO 8601 in UTC) as people write it, to the minute."""
    return "" if iso is None else f"{iso[:10]} {iso[11:16]} UTC"
