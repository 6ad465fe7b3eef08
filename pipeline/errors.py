"""Errors that people see: each says what is wrong, where, and what to do."""

from __future__ import annotations


class StillmotionError(Exception):
    """Base of the errors whose text is meant for people; a command prints it and exits with 1."""


class InputError(StillmotionError):
    """A request that cannot be served as it is.

    Attributes:
        field: the part of the request that is wrong.
        code: stable and machine-readable.
        status: HTTP status that fits.
    """

    def __init__(self, field: str, code: str, message: str, status: int = 400) -> None:
        super().__init__(f"{field}: {message}")
        self.field, self.code, self.message, self.status = field, code, message, status


def system_error(error: OSError) -> str:
    """Return what the system said, on one line: the file, where it is known, and the reason."""
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    return reason if error.filename is None else f"{error.filename}: {reason}"


class ModelError(StillmotionError):
    """A model that is missing, damaged or of an unknown family."""


class NotFiniteError(ModelError):
    """A model computed NaN or infinity, which as a clip would be black."""


class StageSkipped(StillmotionError):
    """A notebook has nothing to do for this checkpoint; the text says why, and the run goes on without it."""


class Cancelled(StillmotionError):
    """The computation was stopped between two steps because nobody waits for it any more."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
