"""The request's form: multipart in, one checked value out. Nothing here touches pixels or blocks for long.

The body is parsed here rather than by BentoML's own input types, which answer 500 to malformed multipart,
fetch a picture that is given as an address, and turn a prompt such as `123` into a number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from pipeline.errors import InputError
from pipeline.media.formats import Format
from pipeline.media.images import check_header
from pipeline.serve.manifest import ModelInfo
from pipeline.serve.request import ALL_FIELDS, AnimationRequest, Field, fields_of, names

from .settings import Settings

_MOST_PARTS = 32
_NUMBER = re.compile(r"[+-]?[0-9]{1,20}")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})(?:[eE][+-]?[0-9]{1,3})?")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class Form:
    """A checked request: the picture's file as it came, and what to make of it.

    Attributes:
        last_image: file of the picture that the clip ends with.
    """

    image: bytes = field(repr=False)
    request: AnimationRequest
    format: Format = "mp4"
    last_image: bytes | None = field(default=None, repr=False)


@dataclass
class _Part:
    name: str = ""
    filename: str | None = None
    data: bytearray = field(default_factory=bytearray)


def boundary_of(content_type: str) -> bytes:
    """The boundary of a multipart body.

    Raises:
        InputError: another type of content (415), or no usable boundary (400).
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise InputError("body", "not_multipart", "send multipart/form-data with the fields image and prompt", 415)
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 256:
        raise InputError("body", "malformed", "the Content-Type has no usable multipart boundary")
    return boundary


def parse(body: bytes, content_type: str, settings: Settings, info: ModelInfo) -> Form:
    """Read and check a form.

    Args:
        info: of the model that is asked: it decides which fields there are.

    Raises:
        InputError: with the field and the limit.
    """
    parts = _parts(body, boundary_of(content_type))
    known = {one.name: one for one in fields_of(info)}
    found: dict[str, _Part] = {}
    for part in parts:
        if part.name not in known and part.name not in names(ALL_FIELDS):
            there = ", ".join(known)
            raise InputError(part.name[:64] or "body", "unknown_field", f"no such field; there are {there}")
        if part.name in found:
            raise InputError(part.name, "repeated", "the field is given more than once")
        found[part.name] = part
    values = {name: _value(known.get(name), name, part, settings) for name, part in found.items() if name != "image"}
    if "prompt" in known and not values.get("prompt"):
        code = "empty" if "prompt" in found else "missing"
        raise InputError("prompt", code, "say what should move")
    for name, value in values.items():
        if name not in known and value is not None:
            raise InputError(name, "not_supported", "the model has no such control; leave it out")
    image = _picture("image", found.get("image"), settings)
    file_format, last_image = cast(Format, values.pop("format", None) or "mp4"), values.pop("last_image", None)
    own = {name: values.pop(name, None) for name in _OWN}
    request = AnimationRequest(
        **{**own, "prompt": own["prompt"] or ""},
        controls={name: value for name, value in values.items() if value is not None},
    )
    return Form(image=image, request=request, format=file_format, last_image=last_image)


_OWN = ("prompt", "negative_prompt", "seed", "frames", "fps", "size", "steps")
"""Fields that a request has beside the model's controls."""


def _value(one: Field | None, name: str, part: _Part, settings: Settings) -> Any:
    """The value of a field, by its kind; None where it is left empty."""
    kind = one.kind if one is not None else next(field.kind for field in ALL_FIELDS if field.name == name)
    if kind == "file":
        given = part.data or part.filename
        return _picture(name, part, settings) if given else None
    text = _text(name, part)
    if kind == "text":
        return _prompt(name, text, settings.max_prompt_chars) or None
    if kind == "integer":
        return _number(name, text)
    if kind == "number":
        return _decimal(name, text)
    value = _unquoted(text).lower()
    if one is not None and value and value not in one.choices:
        code = "unknown_format" if name == "format" else "out_of_range"
        raise InputError(name, code, f"not one of {', '.join(one.choices)}")
    return value or None


def _parts(body: bytes, boundary: bytes) -> list[_Part]:
    parts: list[_Part] = []
    header_name, header_value = bytearray(), bytearray()
    headers: dict[str, bytes] = {}
    ended = False

    def begin() -> None:
        if len(parts) == _MOST_PARTS:
            raise InputError("body", "too_many_fields", f"more than {_MOST_PARTS} fields")
        parts.append(_Part())
        headers.clear()

    def header_end() -> None:
        headers[header_name.decode("latin-1").lower()] = bytes(header_value)
        header_name.clear()
        header_value.clear()

    def headers_finished() -> None:
        kind, options = parse_options_header(headers.get("content-disposition", b""))
        if kind != b"form-data" or b"name" not in options:
            raise InputError("body", "malformed", "a part of the multipart body has no name")
        parts[-1].name = options[b"name"].decode("utf-8", "replace")
        filename = options.get(b"filename")
        parts[-1].filename = None if filename is None else filename.decode("utf-8", "replace")

    def end() -> None:
        nonlocal ended
        ended = True

    callbacks: dict[str, Callable[..., None]] = {
        "on_part_begin": begin,
        "on_part_data": lambda data, start, stop: parts[-1].data.extend(data[start:stop]),
        "on_header_field": lambda data, start, stop: header_name.extend(data[start:stop]),
        "on_header_value": lambda data, start, stop: header_value.extend(data[start:stop]),
        "on_header_end": header_end,
        "on_headers_finished": headers_finished,
        "on_end": end,
    }
    try:
        parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise InputError("body", "malformed", "the multipart body is malformed") from error
    if not ended:
        raise InputError("body", "malformed", "the multipart body ends before its closing boundary")
    return parts


def _text(name: str, part: _Part) -> str:
    try:
        text = part.data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(name, "not_text", "not UTF-8 text") from error
    if _CONTROL.search(text):
        raise InputError(name, "not_text", "holds control characters")
    return text.strip()


def _unquoted(text: str) -> str:
    """BentoML's own clients send each text field as JSON: `"a prompt"`, `null`."""
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            value = json.loads(text)
        except ValueError:
            return text
        return value.strip() if isinstance(value, str) else text
    return "" if text == "null" else text


def _prompt(name: str, text: str, limit: int) -> str:
    prompt = _unquoted(text) if text != "null" else text
    if len(prompt) > limit:
        raise InputError(name, "too_long", f"{len(prompt)} characters is over the limit of {limit}")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, by way of a JSON escape
        raise InputError(name, "not_text", "not UTF-8 text") from error
    if _CONTROL.search(prompt):
        raise InputError(name, "not_text", "holds control characters")
    return prompt


def _number(name: str, text: str) -> int | None:
    value = _unquoted(text)
    if not value:
        return None
    if not _NUMBER.fullmatch(value):
        raise InputError(name, "not_a_number", f"{_shown(value)} is not a whole number")
    return int(value)


def _decimal(name: str, text: str) -> float | None:
    value = _unquoted(text)
    if not value:
        return None
    if not _DECIMAL.fullmatch(value):
        raise InputError(name, "not_a_number", f"{_shown(value)} is not a number")
    return float(value)


def _shown(value: str) -> str:
    return repr(value if len(value) <= 40 else value[:40] + "...")


def _picture(name: str, part: _Part | None, settings: Settings) -> bytes:
    if part is None or (part.filename == "" and not part.data):  # a browser's form with no file chosen
        raise InputError(name, "missing", "send a picture (PNG, JPEG or WebP)")
    data = bytes(part.data)
    try:
        check_header(data, settings.picture_limits)
    except InputError as error:
        if part.filename is None and error.code in ("not_an_image", "empty"):
            raise InputError(
                name, "not_a_file", "send the picture itself as a file; addresses are never fetched"
            ) from error
        raise InputError(name, error.code, error.message, error.status) from error
    return data
