"""A request for a video: multipart or JSON in, one checked value out."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import httpx
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from .errors import ApiError, StorageError, bad
from .limits import Limits
from .outside import ForbiddenError, Outside
from .settings import PRIORITIES, Key, Settings

_FORMATS = ("PNG", "JPEG", "WEBP")
_DATA_URL = re.compile(r"data:image/[a-z+.-]{1,20};base64,", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class Submission:
    """A checked request.

    Attributes:
        pictures: their files, by the field that the upstream knows.
        seconds, size: as the video shows them.
        fields: of the upstream's form, beside prompt and pictures.
    """

    prompt: str
    model: str
    seconds: str
    size: str
    priority: int
    webhook: str | None
    pictures: Mapping[str, bytes] = field(repr=False)
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Once:
    """A request that is to be taken once, however often it is sent.

    Attributes:
        key: of the header `Idempotency-Key`.
        digest: tells the request from another one with the same key. It is of what was sent, and not of what that
            means today: the model may be described otherwise when it is sent again.
    """

    key: str
    digest: str

    @classmethod
    def of(cls, request: Request, found: Mapping[str, Any], remixed: str | None = None) -> Once | None:
        """Return it, where the client sent such a key.

        Args:
            found: of `Reader.read`.
            remixed: id of the video that is remixed.

        Raises:
            ApiError: the key is empty or too long.
        """
        if (key := request.headers.get("idempotency-key")) is None:
            return None
        if not 1 <= len(key) <= 255:
            raise bad("Idempotency-Key", "out_of_range", f"{len(key)} characters is outside 1 to 255")
        try:
            written = json.dumps([remixed, found], sort_keys=True, default=lambda file: sha256(file).hexdigest())
        except RecursionError as error:
            raise ApiError(400, "malformed", "the body is nested too deeply") from error
        return cls(key, sha256(written.encode()).hexdigest())


class Reader:
    """Reads and checks requests.

    Args:
        outside: fetches pictures from the hosts that are allowed.
    """

    def __init__(self, settings: Settings, limits: Limits, outside: Outside) -> None:
        self._settings, self._limits, self._outside = settings, limits, outside
        self._uploads = asyncio.Semaphore(settings.max_uploads)

    async def read(self, request: Request) -> dict[str, Any]:
        """Return a request's fields, files as bytes.

        Raises:
            ApiError: it is too large, too slow, or neither multipart nor JSON.
        """
        if self._uploads.locked():
            message = f"{self._settings.max_uploads} uploads arrive already, which is the limit"
            raise ApiError(429, "too_many_uploads", message, retry_after_s=1)
        async with self._uploads:
            try:
                async with asyncio.timeout(self._settings.upload_s):
                    return await self._fields(request)
            except TimeoutError as error:
                message = f"the request did not arrive within {self._settings.upload_s:g} seconds"
                raise ApiError(408, "slow_upload", message) from error
            except ClientDisconnect as error:
                raise ApiError(499, "disconnected", "the client has gone") from error

    async def check(self, found: Mapping[str, Any], key: Key, *, picture_given: bool = False) -> Submission:
        """Check fields.

        Args:
            found: of `read`.
            key: of the client.
            picture_given: whether the picture is known already.

        Raises:
            ApiError: with the field, the value and the limit.
        """
        await self._limits.refresh()
        limits, left = self._limits, dict(found)
        pictures = {}
        for name, ours in (("input_reference", "image"), ("last_image", "last_image")):
            if (value := left.pop(name, None)) is not None and value != "":
                pictures[ours] = await self._picture(name, value)
        if "image" not in pictures and not picture_given:
            raise bad("input_reference", "missing", "send a picture (PNG, JPEG or WebP) as a file or a data: address")
        texts = {name: _text(name, value) for name, value in left.items()}
        texts = {name: text for name, text in texts.items() if text != "" or name == "prompt"}
        prompt = texts.pop("prompt", "").strip()
        if not prompt:
            raise bad("prompt", "missing", "say what should move")
        if len(prompt) > limits.most_prompt_chars:
            raise bad("prompt", "too_long", f"{len(prompt)} characters is over the limit of {limits.most_prompt_chars}")
        if texts.pop("n", "1") != "1":
            raise bad("n", "out_of_range", "a request makes one video; send another one for each further")
        model = self._model(texts.pop("model", None))
        priority = self._priority(texts.pop("priority", PRIORITIES[0]), key)
        webhook = self._webhook(texts.pop("webhook_url", None), key)
        size = limits.size_of(texts.pop("size", None))
        seconds, fps = texts.pop("seconds", None), texts.get("fps")
        if seconds is not None and "frames" in texts:
            raise bad("seconds", "repeated", "send seconds or frames, and not both")
        limits.check(texts, [name for name in pictures if name != "image"])
        if seconds is not None:
            asked = seconds
            frames, seconds = limits.frames_of(seconds, fps)
            # Where no server has told yet what a second is, the length is worked out when the job's turn comes.
            texts |= {"seconds": asked} if frames is None else {"frames": str(frames)}
        else:
            seconds = limits.seconds_of(texts.get("frames"), fps)
        texts |= {} if size is None else {"size": size}
        shown = limits.size_shown(size)
        return Submission(prompt, model, seconds, shown, priority, webhook, pictures, texts)

    async def _fields(self, request: Request) -> dict[str, Any]:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        most = self._settings.max_body_bytes
        too_large = ApiError(413, "too_large", f"the request is over the limit of {most} bytes")
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > most:
            raise too_large
        received = 0

        async def receive() -> Any:
            nonlocal received
            message = await request.receive()
            received += len(message.get("body", b""))
            if received > most:
                raise too_large
            return message

        counted = Request(request.scope, receive)
        if kind == "application/json":
            return _of_json(await counted.body())
        if kind != "multipart/form-data":
            raise ApiError(415, "unsupported_media_type", "send multipart/form-data or application/json")
        return await _of_form(counted, most)

    def _model(self, name: str | None) -> str:
        own = self._limits.about.get("model")
        names = [*self._settings.models, *([own] if own else [])]
        if name is not None and name not in names:
            raise bad("model", "model_not_found", f"{name[:64]!r} is not one of {', '.join(names)}", 404)
        return name or names[0]

    def _priority(self, name: str, key: Key) -> int:
        if name not in PRIORITIES:
            raise bad("priority", "out_of_range", f"{name[:40]!r} is not one of {', '.join(PRIORITIES)}")
        if name not in key.priorities:
            raise ApiError(403, "not_allowed", f"priority: {key.name} may only ask for {', '.join(key.priorities)}")
        return PRIORITIES.index(name)

    def _webhook(self, url: str | None, key: Key) -> str | None:
        if url is None:
            return None
        if self._settings.secret_of(key.name) is None:
            raise bad("webhook_url", "not_supported", "this service has no secret to sign webhooks with")
        try:
            self._outside.check(url, self._settings.webhook_hosts)
        except ForbiddenError as error:
            raise bad("webhook_url", "forbidden_address", str(error)) from error
        return url

    async def _picture(self, name: str, value: Any) -> bytes:
        if isinstance(value, Mapping):
            if value.get("file_id"):
                raise bad(name, "not_supported", "file_id: there is no store of files; send the picture itself")
            value = value.get("image_url")
        if isinstance(value, str):
            value = await self._from_address(name, value)
        if not isinstance(value, bytes):
            raise bad(name, "not_a_file", "send a picture as a file or a data: address")
        if len(value) > self._settings.max_image_bytes:
            message = f"{len(value)} bytes is over the limit of {self._settings.max_image_bytes}"
            raise bad(name, "too_large", message, 413)
        self._check_header(name, value)
        return value

    async def _from_address(self, name: str, text: str) -> bytes:
        if (match := _DATA_URL.match(text)) is not None:
            try:
                # Tools break lines of base64.
                return base64.b64decode("".join(text[match.end() :].split()), validate=True)
            except (binascii.Error, ValueError) as error:
                raise bad(name, "not_an_image", "the data: address is not base64") from error
        if text[:5].lower() == "data:":
            raise bad(name, "not_an_image", "the data: address is not data:image/...;base64,...")
        if not self._settings.fetch_hosts:
            message = "send the picture as a file or a data:image/...;base64 address; others are never fetched"
            raise bad(name, "not_a_file", message)
        most = self._settings.max_image_bytes
        try:
            status, body = await self._outside.send(
                "GET", text, self._settings.fetch_hosts, content=None, headers={}, most=most
            )
        except ForbiddenError as error:
            raise bad(name, "forbidden_address", str(error)) from error
        except (TimeoutError, httpx.HTTPError, OSError) as error:
            raise bad(name, "not_fetched", f"the picture's address does not answer: {type(error).__name__}") from error
        if status != 200:
            raise bad(name, "not_fetched", f"the picture's address answers {status}")
        return body

    def _check_header(self, name: str, data: bytes) -> None:
        """Look at the header alone: the server decodes it, with all of its limits."""
        if not data:
            raise bad(name, "empty", "the file is empty; send a picture (PNG, JPEG or WebP)")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
                    width, height = picture.size
        except Exception as error:  # Pillow raises anything at what is no picture
            raise bad(name, "not_an_image", "not a PNG, JPEG or WebP picture", 415) from error
        most = self._settings.max_image_pixels
        if width * height > most:
            raise bad(name, "too_many_pixels", f"{width} x {height} is over the limit of {most} pixels")


def _of_json(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body, object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "malformed", "the body is not JSON") from error
    if not isinstance(found, dict):
        raise ApiError(400, "malformed", "the body is not an object of JSON")
    return found


async def _of_form(request: Request, most: int) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    try:
        async with request.form(max_files=4, max_fields=64, max_part_size=most) as form:
            for name, value in form.multi_items():
                data: Any = await value.read() if isinstance(value, UploadFile) else value
                # `input_reference[image_url]` is how the openai package writes an object in a form.
                outer, _, inner = name.removesuffix("]").partition("[")
                if inner:
                    into = fields.setdefault(outer, {})
                else:
                    outer, inner, into = name, name, fields
                if not isinstance(into, dict) or inner in into:
                    raise _repeated(outer)
                into[inner] = data
    except HTTPException as error:
        raise ApiError(400, "malformed", f"the multipart body is malformed: {error.detail}") from error
    except (ValueError, LookupError) as error:  # a charset that Python knows and that is none of text, for one
        raise ApiError(400, "malformed", "the multipart body is malformed") from error
    except OSError as error:
        raise StorageError(f"an upload cannot be kept: {error.strerror}") from error
    return fields


def _repeated(name: str) -> ApiError:
    return bad(name[:64], "repeated", "the field is given more than once")


def _each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _repeated(name)
        found[name] = value
    return found


def _text(name: str, value: Any) -> str:
    if not _NAME.fullmatch(name):
        raise bad(None, "unknown_field", f"there is no field {name[:64]!r}")
    if isinstance(value, bytes):
        raise bad(name, "not_text", "a file where text is expected")
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise bad(name, "not_text", "neither text nor a number")
    text = str(value)
    if _CONTROL.search(text) or len(text) > 100_000:
        raise bad(name, "not_text", "holds control characters, or is too long")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise bad(name, "not_text", "not UTF-8 text") from error
    return text.strip()
