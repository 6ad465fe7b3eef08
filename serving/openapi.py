"""The API's description at `/docs.json`: every status that a request can get, and no other."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from pipeline.media.formats import FORMATS, MEDIA_TYPES
from pipeline.serve.request import ALL_FIELDS, Field, fields_of

if TYPE_CHECKING:
    from .host import Host
    from .settings import Settings

JSON = dict[str, Any]

_HEADERS = {
    "X-Stillmotion-Seed": "Seed of this animation; send it again to get the same one.",
    "X-Stillmotion-Model": "Tag of the model.",
    "X-Stillmotion-Steps": "Steps of the solver.",
    "X-Stillmotion-Passes": "Passes of the network: evaluations of the solver times guidance branches.",
    "X-Stillmotion-Compute-Seconds": "From decoding the picture to encoding the video.",
    "X-Stillmotion-Region": "Region of the server.",
    "X-Stillmotion-Marks": "Marks in the file that say that it is made by AI: c2pa, iptc.",
    "X-Stillmotion-Prompt-Truncated": "Where the prompt is longer than the model reads: how many tokens it read.",
}


def describe_api(host: Host) -> JSON:
    """An OpenAPI 3.0 document. Ranges that depend on the model appear once it is loaded."""
    video = {"schema": {"type": "string", "format": "binary"}}
    video_headers = {name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()}
    whole = {
        "description": "The animation, in the format that was asked for.",
        "headers": video_headers,
        "content": dict.fromkeys(MEDIA_TYPES.values(), video),
    }
    events = {
        "description": (
            "Server-sent events: `start` {steps, model, left_s}; `step` {step, steps, left_s} after each evaluation of "
            "the network, which is a step for most solvers; at the end `result` {seed, model, steps, passes, "
            "compute_seconds, region, marks, format, media_type, data, and prompt_truncated where the prompt is longer "
            "than the model reads} with the video in base64, or `error` {error, code, field}."
        ),
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
    return {
        "openapi": "3.0.2",
        "info": {
            "title": "stillmotion",
            "description": "Turns a still picture and a prompt into a short animation, one request at a time.",
            "version": _version(),
            "license": {"name": "Apache-2.0"},
            "x-marks": {one: list(host.marker.kinds(one)) for one in FORMATS},
        },
        "servers": [{"url": "."}],
        "tags": [{"name": "Service APIs"}, {"name": "Infrastructure"}],
        "paths": {
            "/animate": {"post": _animate(host, "animate", "Animate a picture", whole)},
            "/animate/stream": {"post": _animate(host, "animate_stream", "Animate a picture, with progress", events)},
            **_infrastructure(),
        },
        "components": {
            "schemas": {
                "Error": {
                    "type": "object",
                    "required": ["error", "code", "field"],
                    "additionalProperties": False,
                    "properties": {
                        "error": {"type": "string", "description": "For people; names the field and the limit."},
                        "code": {"type": "string", "description": "For programs; stable."},
                        "field": {"type": "string", "nullable": True, "description": "What was wrong."},
                    },
                }
            }
        },
    }


def _animate(host: Host, name: str, summary: str, answer: JSON) -> JSON:
    s = host.settings
    retry = {
        "Retry-After": {
            "required": True,
            "description": "Seconds until it is worth trying again.",
            "schema": {"type": "integer", "minimum": 1},
        }
    }
    return {
        "summary": summary,
        "operationId": f"stillmotion__{name}",
        "tags": ["Service APIs"],
        "x-bentoml-name": name,
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _form(host)}}},
        "responses": {
            "200": answer,
            "400": _error("A field is wrong, or the picture has too many pixels or is damaged."),
            "408": _error(f"The request did not arrive within {s.upload_s:g} seconds."),
            "413": _error(f"The picture is over {s.max_image_bytes} bytes, or the request over {s.max_body_bytes}."),
            "415": _error("Not multipart/form-data, or not a PNG, JPEG or WebP picture."),
            "429": {"description": "Busy with another request. The body is empty.", "headers": retry},
            "500": _error("The server failed; its log says why."),
            "503": _error("The server is loading its model, or about to stop.") | {"headers": retry},
            "504": _error(f"Not finished within {s.deadline_s:g} seconds; the computation was stopped."),
        },
    }


def _form(host: Host) -> JSON:
    """The form's schema: of the model that is loaded, or of any model before."""
    fields = fields_of(host.engine.info) if host.loaded else ALL_FIELDS
    return {
        "type": "object",
        "required": [one.name for one in fields if one.required],
        "additionalProperties": False,
        "properties": {one.name: _property(one, host.settings) for one in fields},
    }


def _property(one: Field, s: Settings) -> JSON:
    """The schema of one field."""
    about: JSON = {"description": f"{one.about}."}
    if one.kind == "file":
        limits = f"up to {s.max_image_bytes} bytes, {s.max_image_pixels} pixels and {s.max_image_side} pixels a side"
        description = f"{one.about}; {limits}. Addresses are never fetched."
        return {"type": "string", "format": "binary", "description": description}
    if one.kind == "text":
        return about | {"type": "string", "minLength": int(one.required), "maxLength": s.max_prompt_chars}
    if one.kind == "choice":
        choices = {"enum": list(one.choices)} if one.choices else {}
        return about | {"type": "string", **choices} | ({} if one.default is None else {"default": one.default})
    whole = one.kind == "integer"
    numbers: dict[str, Any] = {"minimum": one.least, "maximum": one.most, "default": one.default}
    given = {name: int(value) if whole else value for name, value in numbers.items() if value is not None}
    return about | {"type": "integer" if whole else "number", **given}


def _error(description: str) -> JSON:
    schema = {"$ref": "#/components/schemas/Error"}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _infrastructure() -> JSON:
    text = {"text/plain": {"schema": {"type": "string"}}}
    live = {"200": {"description": "The process answers.", "content": text}}
    ready = {
        "200": {"description": "A warm-up animation has succeeded; requests are taken.", "content": text},
        "503": {"description": "Loading, or about to stop.", "content": text},
    }
    metrics = {"200": {"description": "Prometheus metrics.", "content": text}}

    def get(name: str, summary: str, responses: JSON) -> JSON:
        return {"get": {"operationId": name, "summary": summary, "tags": ["Infrastructure"], "responses": responses}}

    return {
        "/livez": get("livez", "Liveness", live),
        "/healthz": get("healthz", "Liveness, by its older name", live),
        "/readyz": get("readyz", "Readiness", ready),
        "/metrics": get("metrics", "Metrics", metrics),
    }


def _version() -> str:
    try:
        return version("stillmotion")
    except PackageNotFoundError:  # in a Bento the sources lie beside the service and are not installed
        return "0"
