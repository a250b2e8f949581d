"""Reads codes from the bytes of a file, line by line, in constant memory. Lines without a code are reported.

Two formats are read:

* CSV (RFC 4180; LF or CRLF, quotes, a byte order mark). Either the first line names the columns and one of
  them is ``code``, and the other columns are ignored. Or there is one column and no line of names.
* NDJSON: one object per line, with a string member ``code``. Other members are ignored.

No message and no reason repeats text of the file, because it may be a code (P7).
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from engine.codes.formats import normalise
from engine.errors import Refusal

if TYPE_CHECKING:
    from engine.settings import Settings

CODE: Final = "code"
_BOM: Final = b"\xef\xbb\xbf"
_CRLF: Final = b"\r\n"
_UTF16_BOMS: Final = (b"\xff\xfe", b"\xfe\xff")
_FIELD: Final = rb'(?:"(?:[^"]|"")*+"|[^",\n]*+)'
_RECORD: Final = re.compile(rb"%b(?:,%b)*+\r?(?:\n|\Z)" % (_FIELD, _FIELD))
_FIELDS: Final = re.compile(rb"(?:\A|,)(%b)" % _FIELD)


class Form(StrEnum):
    """The format of a file."""

    CSV = "csv"
    NDJSON = "ndjson"


class Reason(StrEnum):
    """Why a line gave no code."""

    EMPTY = "empty"
    TOO_LONG = "line_too_long"
    NOT_UTF8 = "not_utf8"
    MALFORMED = "malformed"
    WRONG_COLUMNS = "wrong_columns"
    NO_CODE = "not_a_code"
    TOO_SHORT = "code_too_short"
    IN_FILE = "duplicate_in_file"
    IN_SYSTEM = "duplicate_in_system"


class Hash(Protocol):
    """A hash or HMAC object, as ``hashlib`` and ``hmac`` return it."""

    def update(self, data: bytes, /) -> None:
        """Add data to the hash."""

    def digest(self) -> bytes:
        """Return the digest of all data added until now."""


class _Line(msgspec.Struct):
    """One line of NDJSON."""

    code: str


_decode_line = msgspec.json.Decoder(_Line).decode


class CodeLines:
    """Reads a file in pieces of any size.

    Attributes:
        codes: (line, normalised code) for each code read since the caller last emptied the list.
        problems: (line, reason) for each line without a code since the caller last emptied the list.
        bytes: number of bytes consumed. They end at the end of a line, unless ``within_line``.
        mac: MAC of the consumed bytes.
        line: number of lines consumed.
        columns, column: for CSV, the number of columns and the index of the one with the code; None before
            the first line.
        within_line: whether the parser is skipping the rest of a line that is too long.
    """

    def __init__(
        self,
        form: Form,
        mac: Hash,
        settings: Settings,
        *,
        line: int = 0,
        columns: int | None = None,
        column: int | None = None,
    ) -> None:
        self._form = form
        self._line_bytes_max = settings.import_line_bytes_max
        self._characters_max = settings.code_length_max
        self._symbols_min = settings.import_code_symbols_min
        self._rest = b""
        self.mac = mac
        self.bytes = 0
        self.line = line
        self.columns = columns
        self.column = column
        self.within_line = False
        self.codes: list[tuple[int, bytes]] = []
        self.problems: list[tuple[int, str]] = []

    def skip(self, data: bytes) -> None:
        """Consume data without reading codes from it, because an earlier call imported it."""
        self.mac.update(data)
        self.bytes += len(data)

    def feed(self, data: bytes, *, last: bool = False) -> None:
        """Read the next piece. In the ``last`` piece, a line without a line end counts, too.

        Raises:
            Refusal: ``malformed_request``: the file is in UTF-16, or it has several columns and
                none of them is named ``code``.
        """
        buffer = self._rest + data if self._rest else data
        if self.bytes == 0 and not self.within_line:
            if len(buffer) < len(_BOM) and not last:
                self._rest = buffer
                return
            buffer = self._without_bom(buffer)
        self._rest = b""
        if self.within_line:
            buffer = self._skip_line(buffer)
        at = self._read(buffer, last=last)
        self._rest = buffer[at:]
        self.mac.update(buffer[:at])
        self.bytes += at
        if len(self._rest) >= self._line_bytes_max + len(_CRLF) and not self.within_line:
            self._reject(Reason.TOO_LONG)
            self.within_line = True
            self._rest = self._skip_line(self._rest)

    def _without_bom(self, buffer: bytes) -> bytes:
        if buffer.startswith(_UTF16_BOMS):
            raise Refusal("malformed_request", "The file is in UTF-16; it must be in UTF-8.")
        if buffer.startswith(_BOM):
            self.skip(_BOM)
            return buffer[len(_BOM) :]
        return buffer

    def _skip_line(self, buffer: bytes) -> bytes:
        """Skip the rest of a line that is too long. Return what follows the line."""
        end = buffer.find(b"\n") + 1
        self.within_line = end == 0
        end = end or len(buffer)
        self.skip(buffer[:end])
        return buffer[end:]

    def _read(self, buffer: bytes, *, last: bool) -> int:
        """Read all complete lines. Return the position after them."""
        if self._form is Form.NDJSON:
            return self._read_plainly(buffer, 0, last=last)
        at = 0
        while self.columns is None and at < len(buffer):
            at, before = self._read_record(buffer, at, last=last), at
            if at == before:
                return at
        if self.columns is None:
            return at
        if b'"' not in buffer:
            return self._read_plainly(buffer, at, last=last)
        while at < len(buffer):
            at, before = self._read_record(buffer, at, last=last), at
            if at == before:
                break
        return at

    def _read_plainly(self, buffer: bytes, at: int, *, last: bool) -> int:
        """Read lines that each end at a line end: NDJSON, or CSV without quotes."""
        end = len(buffer) if last else buffer.rfind(b"\n") + 1
        if end <= at:
            return at
        block = buffer[at:end]
        if b"\r" in block:
            block = block.replace(b"\r\n", b"\n").removesuffix(b"\r")
        take = self._take_json if self._form is Form.NDJSON else self._take_plain
        for raw in block.removesuffix(b"\n").split(b"\n"):
            self.line += 1
            if len(raw) > self._line_bytes_max:
                self.problems.append((self.line, Reason.TOO_LONG))
            else:
                take(raw)
        return end

    def _take_plain(self, raw: bytes) -> None:
        if self.columns == 1:
            if b"," in raw:
                self.problems.append((self.line, Reason.WRONG_COLUMNS))
            else:
                self._take(raw, self.line)
        else:
            self._take_fields(raw.split(b","), self.line)

    def _take_json(self, raw: bytes) -> None:
        if not raw.strip():
            self.problems.append((self.line, Reason.EMPTY))
            return
        try:
            text = _decode_line(raw).code
        except UnicodeDecodeError:
            self.problems.append((self.line, Reason.NOT_UTF8))
        except (msgspec.DecodeError, RecursionError):
            self.problems.append((self.line, Reason.MALFORMED))
        else:
            self._take_text(text, self.line)

    def _read_record(self, buffer: bytes, at: int, *, last: bool) -> int:
        """Read one CSV record; its quoted fields may contain line ends. Return the position after it."""
        window = self._line_bytes_max + len(_CRLF)
        match = _RECORD.match(buffer, at, at + window)
        end = match.end() if match else at
        record = _without_end(buffer[at:end])
        is_whole = buffer[at:end].endswith(b"\n") or (last and end == len(buffer))
        if match and is_whole and len(record) <= self._line_bytes_max:
            line = self.line + 1
            self.line += record.count(b"\n") + 1
            self._take_record([_unquoted(field) for field in _FIELDS.findall(record)], line)
            return end
        if not last and len(buffer) - at < window:
            return at  # the next piece may end a quoted field
        end = buffer.find(b"\n", at) + 1
        if end == 0:
            if not last:
                return at
            end = len(buffer)
        # Not a record: reject one line only, so that a stray quote does not affect the next lines.
        is_long = len(_without_end(buffer[at:end])) > self._line_bytes_max
        self._reject(Reason.TOO_LONG if is_long else Reason.MALFORMED)
        return end

    def _reject(self, reason: Reason) -> None:
        self.line += 1
        self.problems.append((self.line, reason))

    def _take_record(self, fields: list[bytes], line: int) -> None:
        if self.columns is not None:
            self._take_fields(fields, line)
        elif not any(field.strip() for field in fields):
            self.problems.append((line, Reason.EMPTY))
        else:
            self._take_first(fields, line)

    def _take_first(self, fields: list[bytes], line: int) -> None:
        """Read the first line: it names the columns, or it is the first code."""
        names = [field.strip().lower() for field in fields]
        if names.count(CODE.encode()) == 1:
            self.columns, self.column = len(fields), names.index(CODE.encode())
        elif len(fields) > 1 or b";" in fields[0] or b"\t" in fields[0]:
            raise Refusal(
                "malformed_request",
                "The first line must name the columns, separated by commas, one of them `code`.",
            )
        else:
            self.columns, self.column = 1, 0
            self._take(fields[0], line)

    def _take_fields(self, fields: list[bytes], line: int) -> None:
        if len(fields) == self.columns and self.column is not None:
            self._take(fields[self.column], line)
        elif fields == [b""]:
            self.problems.append((line, Reason.EMPTY))
        else:
            self.problems.append((line, Reason.WRONG_COLUMNS))

    def _take(self, field: bytes, line: int) -> None:
        try:
            text = field.decode()
        except UnicodeDecodeError:
            self.problems.append((line, Reason.NOT_UTF8))
        else:
            self._take_text(text, line)

    def _take_text(self, text: str, line: int) -> None:
        code = normalise(text, characters_max=self._characters_max)
        if code is None:
            self.problems.append((line, Reason.NO_CODE if text.strip() else Reason.EMPTY))
        elif len(code) < self._symbols_min:
            self.problems.append((line, Reason.TOO_SHORT))
        else:
            self.codes.append((line, code))


def guess_form(beginning: bytes) -> Form:
    """Guess the format from the beginning of a file: NDJSON if it starts with an object, else CSV."""
    text = beginning.removeprefix(_BOM).lstrip()
    return Form.NDJSON if text.startswith(b"{") else Form.CSV


def _without_end(line: bytes) -> bytes:
    return line.removesuffix(b"\n").removesuffix(b"\r")


def _unquoted(field: bytes) -> bytes:
    return field[1:-1].replace(b'""', b'"') if field.startswith(b'"') else field
