"""Says what is wrong with a request body: which field, and what was expected there.

It never quotes a value, because the value may be a code. It names a field that the call does not take only if
the name is too short for a code, or is a field of another call.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Final

import msgspec

from engine.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

_NOT_JSON: Final = "The body is not valid JSON."
_PATH: Final = re.compile(r" - at `\$\.?([^`]*)`$")
_UNKNOWN_FIELD: Final = re.compile(r"Object contains unknown field `([^`]*)`")
_MISSING_FIELD: Final = re.compile(r"Object missing required field `([^`]*)`")
_GOT: Final = re.compile(r", got `(\w+)`")
_POSITION: Final = re.compile(r"\(byte (\d+)\)")
_ORDINARY_NAME: Final = re.compile(r"[a-z]+(_[a-z]+)*")
SHORTEST_CODE: Final = 12  # symbols, over all formats of minted codes
_IN_WORDS: Final = {
    "int": "a whole number",
    "float": "a number with a fraction",
    "str": "a string",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
_TYPES: Final[dict[type[msgspec.inspect.Type], str]] = {
    msgspec.inspect.IntType: _IN_WORDS["int"],
    msgspec.inspect.StrType: _IN_WORDS["str"],
    msgspec.inspect.BoolType: _IN_WORDS["bool"],
    msgspec.inspect.ListType: _IN_WORDS["array"],
    msgspec.inspect.VarTupleType: _IN_WORDS["array"],
    msgspec.inspect.DictType: _IN_WORDS["object"],
    msgspec.inspect.StructType: _IN_WORDS["object"],
}


def refusal_of(error: Exception, body: bytes, body_type: type) -> Refusal:
    """Return the refusal of a body that could not be decoded as ``body_type``: ``malformed_request``."""
    if isinstance(error, msgspec.ValidationError):
        return Refusal("malformed_request", _invalid(str(error), _struct(body_type)))
    if not bytes(body).strip():
        return Refusal("malformed_request", f"The body is missing. {_form(_struct(body_type))}")
    position = _POSITION.search(str(error))
    where = f" The error is at byte {position[1]}." if position else ""
    return Refusal("malformed_request", _NOT_JSON + where)


def _invalid(message: str, whole: msgspec.inspect.Type) -> str:
    found = _PATH.search(message)
    path = found[1] if found else ""
    at, place = _resolve(whole, path), path or "The body"
    if missing := _MISSING_FIELD.match(message):
        field = missing[1]
        return f"{_join(path, field)} is missing: {_expected(_resolve(at, field))} is required."
    if unknown := _UNKNOWN_FIELD.match(message):
        name = unknown[1]
        named = f"an unknown field: {name}." if _may_be_named(name) else "an unknown field."
        return f"{place} has {named} It takes {_listed([field.encode_name for field in _fields(at)])}."
    if not path:
        return _form(whole)
    got = _GOT.search(message)
    if got:
        wrong = f", not {_IN_WORDS.get(got[1], 'that')}"
    else:
        wrong = ", not another string" if "enum value" in message else ", and in range"
    return f"{path} must be {_expected(at)}{wrong}."


def _form(whole: msgspec.inspect.Type) -> str:
    needed = [field.encode_name for field in _fields(whole) if field.required]
    return "The body must be a JSON object" + (f" with {_listed(needed)}." if needed else ".")


def _listed(names: list[str]) -> str:
    *first, last = names or ["no fields"]
    return f"{', '.join(first)} and {last}" if first else last


def _join(path: str, field: str) -> str:
    return f"{path}.{field}" if path else field


def _may_be_named(name: str) -> bool:
    if not _ORDINARY_NAME.fullmatch(name):
        return False
    return len(name.replace("_", "")) < SHORTEST_CODE or name in _known_fields()


@functools.cache
def _struct(body_type: type) -> msgspec.inspect.Type:
    return msgspec.inspect.type_info(body_type)


@functools.cache
def _known_fields() -> frozenset[str]:
    """The names of all fields of all bodies that were loaded."""
    bodies = [
        struct for struct in _subclasses(msgspec.Struct) if struct.__struct_config__.forbid_unknown_fields
    ]
    return frozenset(name for struct in bodies for name in struct.__struct_encode_fields__)


def _subclasses(struct: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    for subclass in struct.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _parts(of: msgspec.inspect.Type) -> list[msgspec.inspect.Type]:
    return list(of.types) if isinstance(of, msgspec.inspect.UnionType) else [of]


def _fields(of: msgspec.inspect.Type) -> tuple[msgspec.inspect.Field, ...]:
    for part in _parts(of):
        if isinstance(part, msgspec.inspect.StructType):
            return part.fields
    return ()


def _resolve(whole: msgspec.inspect.Type, path: str) -> msgspec.inspect.Type:
    """Return the type at a path such as ``codes[1].amount``."""
    at = whole
    for name in re.findall(r"\w+|\[[^\]]*\]", path):
        if name.startswith("["):
            lists = [part for part in _parts(at) if isinstance(part, msgspec.inspect.CollectionType)]
            at = lists[0].item_type if lists else msgspec.inspect.AnyType()
        else:
            at = next((f.type for f in _fields(at) if f.encode_name == name), msgspec.inspect.AnyType())
    return at


def _expected(of: msgspec.inspect.Type) -> str:
    words = []
    for part in _parts(of):
        if isinstance(part, msgspec.inspect.LiteralType):
            words += [f'"{value}"' for value in part.values]
        elif type(part) in _TYPES:
            words.append(_TYPES[type(part)])
    return " or ".join(words) or "another value"
