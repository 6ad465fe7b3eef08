"""What goes wrong, and how a client is told: in the shape of OpenAI's errors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.responses import JSONResponse

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class JobsError(Exception):
    """An error whose text is meant for people: it names the thing, the value and the limit."""


class SettingsError(JobsError):
    """A setting that cannot be used; the text names it."""


class StorageError(JobsError):
    """The database or the store of files does not answer, or has no room. It may come back by itself.

    Attributes:
        said: what clients are told: the cause names addresses and users.
    """

    @property
    def said(self) -> str:
        return str(self).partition(": ")[0]


class ApiError(JobsError):
    """A request that cannot be served.

    Args:
        status: of the response.
        code: for programs; stable.
        message: for people.
        param: the field that is wrong, where it is one.
        retry_after_s: when it is worth trying again, where it is.
    """

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.retry_after_s = retry_after_s

    def response(self) -> JSONResponse:
        """Return it as OpenAI's API writes errors."""
        from starlette.responses import JSONResponse  # the command line needs this module before anything is installed

        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        headers = {"Cache-Control": "no-store"}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse({"error": error}, self.status, headers)


def bad(param: str | None, code: str, message: str, status: int = 400) -> ApiError:
    """Return the error of a field; its text begins with the field's name."""
    return ApiError(status, code, f"{param}: {message}" if param else message, param)


def unavailable(error: StorageError) -> ApiError:
    """Return what a client is told while a store is gone."""
    return ApiError(503, "storage_unavailable", error.said, retry_after_s=5)


def problem(code: str, message: str, param: str | None = None) -> dict[str, Any]:
    """Return why a job failed, as a video's `error` has it."""
    return {"code": code, "message": message, **({"param": param} if param else {})}
