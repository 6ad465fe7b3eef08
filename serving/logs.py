"""Log lines: which request they are of, JSON for those who collect them, and no control characters for terminals.

A request's id is what the edge has given it (`X-Request-ID`): one search finds the edge's line and the server's.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from contextvars import ContextVar
from datetime import UTC, datetime

request_id: ContextVar[str] = ContextVar("stillmotion_request_id", default="")
"""Of the request that is being worked on, in this task or thread."""

ABOUT = "about"
"""Name of a log record's fields that become keys of its JSON: `logger.info(text, extra={ABOUT: {...}})`."""

_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_LOGGERS = ("", "bentoml", "circus", "uvicorn.error")


def id_of(header: bytes | None) -> str:
    """The id that a request came with, if it is one that can stand in a log; else a new one."""
    return header.decode() if header is not None and _ID.fullmatch(header) else str(uuid.uuid4())


class JsonFormatter(logging.Formatter):
    """A line of JSON: `time`, `level`, `logger`, `message`, and what is known beside.

    Args:
        region: that the server stands in.
    """

    def __init__(self, region: str) -> None:
        super().__init__()
        self._region = region

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "region": self._region,
            "message": record.getMessage(),
        }
        if current := request_id.get():
            line["request_id"] = current
        line |= getattr(record, ABOUT, {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def use_json(region: str) -> None:
    """Write lines of JSON from now on, whoever set the loggers up."""
    formatter = JsonFormatter(region)
    for name in _LOGGERS:
        for handler in logging.getLogger(name).handlers:
            handler.setFormatter(formatter)


# Those that act on a terminal; lines and columns stay.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class EscapeControls(logging.Filter):
    """Writes control characters of a message, which may come from a client, as escapes."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if _CONTROL.search(message):
            record.msg = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", message)
            record.args = ()
        return True


def escape_text() -> None:
    """Escape control characters from now on, whoever set the loggers up."""
    for name in _LOGGERS:
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(EscapeControls())
