"""Typed content of files: kinds of numbers, and errors that name the key.

`Strict` is the base of everything that is read from a file. It takes no key that it does not know, turns no
text into a number, and never changes once it is made.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from .errors import InputError

MOST = 1e9
"""Rates and times above this are a slip; sums and products of smaller ones stay finite."""


def _sequence(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


Number = Annotated[float, Field(ge=0, le=MOST)]
"""Finite, at least 0."""
Positive = Annotated[float, Field(gt=0, le=MOST)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Items = BeforeValidator(_sequence)
"""For tuples: files have lists."""
RegionName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
"""A DNS label, since it becomes part of host names: a to z, 0 to 9 and hyphens within, at most 63."""


class Strict(BaseModel):
    """Base of what is read from files: frozen, no unknown keys, no conversion of types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True)


Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], content: object) -> Model:
    """Content of a file as a model.

    Raises:
        InputError: with the key and what is wrong with its value; the first, where several are wrong.
    """
    if content is None:
        raise InputError("is empty")
    if not isinstance(content, dict):
        raise InputError(f"should hold keys and values, and is {_short(content)}")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise _first(error, model) from None


def wrong(key: str, message: str) -> PydanticCustomError:
    """For validators: an error at `key`, a path seen from what is validated; empty for itself."""
    return PydanticCustomError("wrong", "{text}", {"key": key, "text": message})


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean x?` for what is nearly one of the known names, else the names where they are few."""
    names = sorted(one if len(one) <= 80 else f"{one[:60]}..." for one in known)  # a damaged file has any name
    if close := difflib.get_close_matches(name, names, n=1):
        return f"; did you mean {close[0]}?"
    return f"; known are {', '.join(names)}" if len(names) <= 20 else ""


def _first(error: ValidationError, model: type[BaseModel]) -> InputError:
    errors = error.errors(include_url=False)
    # A slip in a key's name first, since it makes another key missing.
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    where = [str(part) for part in first["loc"] if part != "[key]"]
    if first["type"] == "extra_forbidden":
        text = "unknown key" + did_you_mean(where[-1], _keys(model, where[:-1]))
    else:
        text = _text(dict(first))
    if first["type"] == "wrong" and first["ctx"]["key"]:
        where.append(str(first["ctx"]["key"]))
    if len(errors) > 1:
        text += f" (and {len(errors) - 1} more)"
    return InputError(text, key=".".join(part if len(part) < 100 else part[:80] + "..." for part in where))


def _keys(model: object, where: list[str]) -> list[str]:
    """Keys that there are at a place within a model."""
    for part in where:
        if isinstance(model, type) and issubclass(model, BaseModel):
            model = next(info.annotation for name, info in model.model_fields.items() if _key(name, info) == part)
        else:  # a mapping or a tuple: its values are of one kind
            model = next(kind for kind in reversed(get_args(model)) if kind is not Ellipsis)
        while get_origin(model) in {Annotated, UnionType, Union}:
            model = get_args(model)[0]
    assert isinstance(model, type)
    assert issubclass(model, BaseModel)
    return [_key(name, info) for name, info in model.model_fields.items()]


def _key(name: str, info: FieldInfo) -> str:
    return info.validation_alias if isinstance(info.validation_alias, str) else name


_TEXTS = {
    "missing": "is missing",
    "string_pattern_mismatch": "should be made of a to z, 0 to 9 and hyphens within, at most 63 characters",
    "too_short": "should hold at least one",
}
_EXPECTED = {
    "dict_type": "keys and values",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "mapping_type": "keys and values",
    "model_type": "keys and values",
    "tuple_type": "a list",
}


def _text(error: dict[str, Any]) -> str:
    kind, value = error["type"], _short(error["input"])
    if "[key]" in error["loc"] and kind == "string_type":
        return f"the key {value} should be text; put it in quotes"
    if kind == "wrong":
        return str(error["msg"])
    if kind in _TEXTS:
        return _TEXTS[kind]
    expected = f"should be {_EXPECTED[kind]}" if kind in _EXPECTED else error["msg"]
    return f"{expected.replace('Input should', 'should')}, and is {value}"


def _short(value: object) -> str:
    # Bounded in depth and length: a small YAML file can stand for a huge value.
    if value is None:
        return "empty"
    return reprlib.repr(value) if not isinstance(value, dict) else "keys and values"
