"""Errors that people see: each says what is wrong, where, and what to do."""

from __future__ import annotations


class RoutingError(Exception):
    """Something failed; a command prints the text and exits with 1.

    Attributes:
        key: path of the setting that is concerned, such as `regions.us-east.gpus`; empty where there is none.
        exit_status: what a command exits with.
    """

    exit_status = 1

    def __init__(self, message: str, *, key: str = "") -> None:
        super().__init__(f"{key}: {message}" if key else message)
        self.key = key


class InputError(RoutingError):
    """A file or an argument that cannot be used as it is; a command exits with 2."""

    exit_status = 2

    def __init__(self, message: str, *, key: str = "", file: str = "") -> None:
        super().__init__(message, key=key)
        self.message, self.file = message, file

    def __str__(self) -> str:
        text = ": ".join(part for part in (self.file, self.key, self.message) if part)
        # A key may hold what ends a line or moves a cursor.
        return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)

    def within(self, file: object) -> InputError:
        """The same error, with the file that it was found in."""
        return InputError(self.message, key=self.key, file=str(file))
