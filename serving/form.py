"""The request's form: multipart in, one checked value out. Nothing here touches pixels or blocks for long.

The body is parsed here rather than by BentoML's own input types, which answer 500 to malformed multipart,
fetch a picture that is given as an address, and turn a prompt such as `123` into a number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from pipeline.errors import InputError
from pipeline.media.images import check_header
from pipeline.media.video import FORMATS, Format
from pipeline.serve.engine import AnimationRequest

from .settings import Settings

TEXT_FIELDS = ("prompt", "seed", "frames", "fps", "motion_scale", "guidance_scale", "format")
FIELDS = ("image", *TEXT_FIELDS)
_MOST_PARTS = 32
_NUMBER = re.compile(r"[+-]?[0-9]{1,20}")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})(?:[eE][+-]?[0-9]{1,3})?")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class Form:
    """A checked request: the picture's file as it came, and what to make of it."""

    image: bytes = field(repr=False)
    request: AnimationRequest
    format: Format = "mp4"


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


def parse(body: bytes, content_type: str, settings: Settings) -> Form:
    """Read and check a form.

    Raises:
        InputError: with the field and the limit.
    """
    parts = _parts(body, boundary_of(content_type))
    found: dict[str, _Part] = {}
    for part in parts:
        if part.name not in FIELDS:
            known = ", ".join(FIELDS)
            raise InputError(part.name[:64] or "body", "unknown_field", f"no such field; there are {known}")
        if part.name in found:
            raise InputError(part.name, "repeated", "the field is given more than once")
        found[part.name] = part
    texts = {name: _text(name, found[name]) for name in TEXT_FIELDS if name in found}
    prompt = _prompt(texts.get("prompt"), settings.max_prompt_chars)
    request = AnimationRequest(
        prompt=prompt,
        seed=_number("seed", texts.get("seed")),
        frames=_number("frames", texts.get("frames")),
        fps=_number("fps", texts.get("fps")),
        motion_scale=_number("motion_scale", texts.get("motion_scale")),
        guidance_scale=_decimal("guidance_scale", texts.get("guidance_scale")),
    )
    file_format = _unquoted(texts.get("format", "")).lower() or "mp4"
    if file_format not in FORMATS:
        raise InputError("format", "unknown_format", f"not one of {', '.join(FORMATS)}")
    image = _picture(found.get("image"), settings)
    return Form(image=image, request=request, format=file_format)


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


def _prompt(text: str | None, limit: int) -> str:
    if text is None:
        raise InputError("prompt", "missing", "say what should move")
    prompt = _unquoted(text) if text != "null" else text
    if not prompt:
        raise InputError("prompt", "empty", "say what should move")
    if len(prompt) > limit:
        raise InputError("prompt", "too_long", f"{len(prompt)} characters is over the limit of {limit}")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, by way of a JSON escape
        raise InputError("prompt", "not_text", "not UTF-8 text") from error
    if _CONTROL.search(prompt):
        raise InputError("prompt", "not_text", "holds control characters")
    return prompt


def _number(name: str, text: str | None) -> int | None:
    value = _unquoted(text or "")
    if not value:
        return None
    if not _NUMBER.fullmatch(value):
        raise InputError(name, "not_a_number", f"{_shown(value)} is not a whole number")
    return int(value)


def _decimal(name: str, text: str | None) -> float | None:
    value = _unquoted(text or "")
    if not value:
        return None
    if not _DECIMAL.fullmatch(value):
        raise InputError(name, "not_a_number", f"{_shown(value)} is not a number")
    return float(value)


def _shown(value: str) -> str:
    return repr(value if len(value) <= 40 else value[:40] + "...")


def _picture(part: _Part | None, settings: Settings) -> bytes:
    if part is None or (part.filename == "" and not part.data):  # a browser's form with no file chosen
        raise InputError("image", "missing", "send a picture (PNG, JPEG or WebP)")
    data = bytes(part.data)
    try:
        check_header(data, settings.picture_limits)
    except InputError as error:
        if part.filename is None and error.code in ("not_an_image", "empty"):
            raise InputError(
                "image", "not_a_file", "send the picture itself as a file; addresses are never fetched"
            ) from error
        raise
    return data
