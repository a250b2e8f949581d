from __future__ import annotations

import hashlib
import hmac

from hypothesis import given
from hypothesis import strategies as st

from engine.codes.digests import Digester, file_mac

KEYS = st.binary(min_size=32, max_size=32)


@given(key=KEYS, code=st.binary(max_size=100))
def test_a_digest_is_the_hmac_that_the_design_names(key: bytes, code: bytes) -> None:
    pepper = hmac.new(key, b"redeem import pepper v1", hashlib.sha256).digest()
    expected = hmac.new(pepper, code, hashlib.sha256).digest()[:16]
    digester = Digester(key)
    assert digester.digest(code) == digester.digest(code) == expected


@given(key=KEYS, content=st.binary(max_size=100))
def test_the_digest_of_a_file_needs_the_key_and_is_none_of_a_code(key: bytes, content: bytes) -> None:
    mac, other = file_mac(key), file_mac(bytes(32))
    for one in (mac, other):
        one.update(content)
    assert (mac.digest() == other.digest()) is (key == bytes(32))
    assert Digester(key).digest(content) not in mac.digest()
    assert mac.digest() != hashlib.blake2b(content, digest_size=32).digest()
