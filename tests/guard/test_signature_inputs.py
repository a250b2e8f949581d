"""The quick reading of a usual Signature-Input gives what the strict one gives."""

from __future__ import annotations

import random
import re

import pytest

from engine.errors import Refusal
from engine.guard import signatures
from tests.support.signing import signed_headers

PIECES = (
    "",
    '"',
    ";",
    "=",
    "(",
    ")",
    " ",
    "0",
    "x",
    "\\",
    '"@query"',
    ";created=1",
    ";tag=",
    "sig=",
    "\n",
    "é",
)


def outcome(read: object, text: str) -> object:
    assert callable(read)
    try:
        return read(text)
    except Refusal as refusal:
        return refusal.code, refusal.detail


@pytest.mark.parametrize("seed", range(20))
def test_both_readings_agree_on_inputs_that_were_changed(seed: int) -> None:
    chance = random.Random(seed)
    good = signed_headers("sgn_1", "rs_1", "POST", "http://a/v1/redemptions", b"", "k")["Signature-Input"]
    label, names, *parameters = re.split(r"(?<=sig=)|;", good)
    assert outcome(signatures._parse_input, good) == outcome(signatures._parse_any_input, good)
    accepted = usual = 0
    for _ in range(1000):
        text = good
        for _ in range(chance.choice([0, 1, 1, 2])):
            at = chance.randrange(len(text) + 1)
            text = text[:at] + chance.choice(PIECES) + text[at + chance.choice([0, 0, 1, 2]) :]
        if chance.random() < 0.1:
            text = f"{label}{names};" + ";".join(chance.sample(parameters, len(parameters)))
        expected = outcome(signatures._parse_any_input, text)
        assert outcome(signatures._parse_input, text) == expected, text
        accepted += isinstance(expected, signatures._Input)
        usual += signatures._USUAL_INPUT.fullmatch(text) is not None
    assert 0 < usual < accepted < 1000
