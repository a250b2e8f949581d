from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import Refusal
from engine.imports.parser import CodeLines, Form, guess_form
from engine.settings import Settings

LINE_BYTES_MAX: Final = 100
SETTINGS: Final = replace(Settings(), import_line_bytes_max=LINE_BYTES_MAX)

Read = tuple[list[tuple[int, str]], list[tuple[int, str]]]


def reader(form: Form = Form.CSV) -> CodeLines:
    return CodeLines(form, hashlib.sha256(), SETTINGS)


def read(content: bytes | str, form: Form = Form.CSV, *, size: int = 1 << 20) -> Read:
    content = content.encode() if isinstance(content, str) else content
    lines = reader(form)
    for at in range(0, len(content), size):
        lines.feed(content[at : at + size])
        assert len(lines._rest) < LINE_BYTES_MAX + len("\r\n")
    lines.feed(b"", last=True)
    assert lines.bytes == len(content)
    assert lines.mac.digest() == hashlib.sha256(content).digest()
    return [(line, code.decode()) for line, code in lines.codes], lines.problems


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\N{ZERO WIDTH NO-BREAK SPACE}"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(
    ("lines", "codes"),
    [
        (["AAAA", "bbbb", "CC-CC"], [(1, "AAAA"), (2, "BBBB"), (3, "CCCC")]),
        (["code", "AAAA"], [(2, "AAAA")]),
        ([" Code ", "AAAA"], [(2, "AAAA")]),
        (['"code"', "AAAA"], [(2, "AAAA")]),
        (["serial,code,note", "1,AAAA,x", "2,BBBB,"], [(2, "AAAA"), (3, "BBBB")]),
        (['"AAAA"', '"BB""BB"', "CCCC"], [(1, "AAAA"), (3, "CCCC")]),
        (["code,note", 'AAAA,"a, b"', '"BBBB",c'], [(2, "AAAA"), (3, "BBBB")]),
    ],
)
def test_csv_is_read_however_it_is_written(
    lines: list[str], codes: list[tuple[int, str]], end: str, bom: str, *, last: bool
) -> None:
    content = bom + end.join(lines) + (end if last else "")
    assert read(content)[0] == codes


def test_a_quoted_field_may_go_over_several_lines_and_lines_are_those_of_the_file() -> None:
    codes, problems = read('code,note\nAAAA,"one\ntwo\r\nthree"\nBBBB,x\n"CC\nCC",y\nDDDD\nEEEE,z')
    assert codes == [(2, "AAAA"), (5, "BBBB"), (9, "EEEE")]
    assert problems == [(6, "not_a_code"), (8, "wrong_columns")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "empty"),
        (b"   ", "empty"),
        (b"AB", "code_too_short"),
        (b"A-B-C", "code_too_short"),
        (b"AAAA!", "not_a_code"),
        (b"AAAA\x00", "not_a_code"),
        (b"AAAA\x1b[2J", "not_a_code"),
        ("ÄÄÄÄ".encode(), "not_a_code"),
        (b"A" * 65, "not_a_code"),
        (b"A" * (LINE_BYTES_MAX + 1), "line_too_long"),
        (b"AAAA\xff", "not_utf8"),
        (b"AAAA,BBBB", "wrong_columns"),
        (b'AA"AA', "malformed"),
        (b'"AAAA"A', "malformed"),
    ],
)
def test_a_line_that_is_no_code_costs_no_other(line: bytes, reason: str) -> None:
    expected = ([(1, "BEF0RE"), (3, "AFTER")], [(2, reason)])
    for size in (1, 7, 1 << 20):
        assert read(b"BEFORE\n" + line + b"\nAFTER\n", size=size) == expected


@pytest.mark.parametrize("filler", ["CCCC\n" * 100, "C" * 1000 + "\n", "CCCC\n" * 3])
def test_a_quote_that_is_never_closed_costs_one_line(filler: str) -> None:
    codes, problems = read('AAAA\n"BBBB\n' + filler + "DDDD\n", size=13)
    assert (2, "malformed") in problems
    assert codes[0] == (1, "AAAA")
    assert codes[-1] == (3 + filler.count("\n"), "DDDD")
    assert len(codes) + len(problems) == 3 + filler.count("\n")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "empty"),
        (b"{", "malformed"),
        (b'"AAAA"', "malformed"),
        (b'{"serial": 1}', "malformed"),
        (b'{"code": 1234}', "malformed"),
        (b'{"code": null}', "malformed"),
        (b'{"code": ""}', "empty"),
        (b'{"code": "A\\u0000AAA"}', "not_a_code"),
        (b'{"code": "AAA"}', "code_too_short"),
        (b"[" * 90, "malformed"),
        (b'{"code": "' + b"A" * LINE_BYTES_MAX + b'"}', "line_too_long"),
    ],
)
def test_a_line_of_ndjson_that_gives_no_code_costs_no_other(line: bytes, reason: str) -> None:
    content = b'{"code": "be-fore", "serial": 1}\n' + line + b'\n{"code":"AFTER"}'
    for size in (1, 7, 1 << 20):
        expected = ([(1, "BEF0RE"), (3, "AFTER")], [(2, reason)])
        assert read(content, Form.NDJSON, size=size) == expected


def test_json_that_is_not_utf8_is_reported() -> None:
    _, problems = read(b'{"code": "AAAA\xff"}\n', Form.NDJSON)
    assert problems[0][0] == 1
    assert problems[0][1] in {"not_utf8", "malformed"}


@pytest.mark.parametrize(
    "content", ["a,b\n1,2\n", "code;serial\nAAAA;1\n", "code\tserial\n", "code,code\nAAAA,BBBB\n", "x,\n"]
)
def test_columns_without_the_name_code_are_refused(content: str) -> None:
    with pytest.raises(Refusal, match="first line"):
        read(content)


def test_utf16_is_refused_and_not_taken_for_garbage() -> None:
    with pytest.raises(Refusal, match="UTF-16"):
        read("code\nAAAA\n".encode("utf-16"))


def test_a_line_of_any_length_is_skipped_without_being_held() -> None:
    lines = reader()
    lines.feed(b"AAAA\n")
    for _ in range(1000):
        lines.feed(b"B" * 4096)
        assert not lines._rest
        assert lines.within_line
    lines.feed(b"BB\nCCCC\n", last=True)
    assert not lines.within_line
    assert lines.codes == [(1, b"AAAA"), (3, b"CCCC")]
    assert lines.problems == [(2, "line_too_long")]


def test_reading_goes_on_from_where_another_reader_ended() -> None:
    content = "note,code\n" + "".join(f'"{n}\n",CODE{n:03}\n' for n in range(50))
    whole, _ = read(content)
    first = reader()
    first.feed(content[:200].encode())
    second = CodeLines(
        Form.CSV, hashlib.sha256(), SETTINGS, line=first.line, columns=first.columns, column=first.column
    )
    second.skip(content[: first.bytes].encode())
    assert second.mac.digest() == first.mac.digest()
    second.feed(content[first.bytes :].encode(), last=True)
    assert [(line, code.decode()) for line, code in first.codes + second.codes] == whole


LINES = st.lists(
    st.one_of(
        st.text("ABC-", max_size=12),
        st.text('AB",\r\n ', max_size=20),
        st.text("A", min_size=90, max_size=120),
        st.just('"' + "x\n" * 60 + '"'),
    ),
    max_size=12,
)


@given(lines=LINES, size=st.integers(1, 40), form=st.sampled_from(Form), named=st.booleans())
def test_how_the_bytes_arrive_makes_no_difference(
    lines: list[str], size: int, form: Form, *, named: bool
) -> None:
    content = "\n".join([*(["x,code"] if named and form is Form.CSV else ["AAAA"]), *lines])
    assert read(content, form, size=size) == read(content, form)


@pytest.mark.parametrize(
    ("beginning", "form"),
    [
        (b'{"code": "A"}', Form.NDJSON),
        (b'\xef\xbb\xbf \n{"code"', Form.NDJSON),
        (b"code\nAAAA", Form.CSV),
        (b"", Form.CSV),
    ],
)
def test_a_form_that_is_not_said_is_seen(beginning: bytes, form: Form) -> None:
    assert guess_form(beginning) is form
