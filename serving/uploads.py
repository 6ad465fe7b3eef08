"""Bodies of requests while they arrive: within limits of time and memory, and only as long as the slot is free.

A body is read before its request has the slot, so that a slow client keeps no GPU idle. Several may arrive at a time.
The first that is complete and valid gets the slot, and the others are interrupted then: waiting for the rest of a body
would be a queue that nobody sees.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from pipeline.errors import InputError

if TYPE_CHECKING:
    from starlette.types import Receive


class ClientGoneError(Exception):
    """The client went away, or takes the response too slowly."""


class TooManyUploadsError(Exception):
    """The bodies that arrive now take all the memory, or all the places, that there are for them."""


class Upload:
    """One body on its way. Made by `Uploads.begin`.

    Attributes:
        interrupted: whether it was stopped because its request can no longer have the slot.
    """

    def __init__(self, uploads: Uploads, limit: asyncio.Timeout) -> None:
        self._uploads, self._limit = uploads, limit
        self.interrupted = False
        self.held_bytes = 0

    async def read(self, receive: Receive, headers: dict[bytes, bytes], most_bytes: int) -> bytes:
        """The request's body, complete. There is no limit of time afterwards.

        Raises:
            InputError: it is over the limit, by its Content-Length or as it comes (413).
            ClientGoneError: it ended early.
            TooManyUploadsError: there is no memory left for it beside the others.
        """
        too_large = InputError("body", "too_large", f"over the limit of {most_bytes} bytes", 413)
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > most_bytes:
            raise too_large
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            chunk = message.get("body", b"")
            if len(body) + len(chunk) > most_bytes:
                raise too_large
            self._uploads.take(self, len(chunk))
            body += chunk
            if not message.get("more_body", False):
                self._limit.reschedule(None)
                return bytes(body)

    def interrupt(self) -> None:
        """Stop it now: its block ends with TimeoutError."""
        if not self._limit.expired():
            self.interrupted = True
            self._limit.reschedule(asyncio.get_running_loop().time())


class Uploads:
    """All bodies that are arriving. To be used in the event loop's thread.

    Args:
        most_bytes: of all of them together.
        most: how many may arrive at a time; each also costs a connection and its buffers.
    """

    def __init__(self, most_bytes: int, most: int) -> None:
        self._most_bytes, self._most = most_bytes, most
        self._open: set[Upload] = set()

    @property
    def held_bytes(self) -> int:
        """Bytes that the bodies take now."""
        return sum(upload.held_bytes for upload in self._open)

    @asynccontextmanager
    async def begin(self, seconds: float) -> AsyncIterator[Upload]:
        """Around the reading of one body, and what has to be done with it before the slot is asked for.

        Args:
            seconds: in which the body has to arrive.

        Raises:
            TimeoutError: it did not, or it was interrupted.
            TooManyUploadsError: there is no room for another one.
        """
        if len(self._open) >= self._most:
            raise TooManyUploadsError
        async with asyncio.timeout(seconds) as limit:
            upload = Upload(self, limit)
            self._open.add(upload)
            try:
                yield upload
            finally:
                self._open.remove(upload)

    def take(self, upload: Upload, count: int) -> None:
        """Set memory aside for so many bytes more of a body.

        Raises:
            TooManyUploadsError: there is none left.
        """
        if self.held_bytes + count > self._most_bytes:
            raise TooManyUploadsError
        upload.held_bytes += count

    def interrupt(self) -> None:
        """Stop all of them: the slot has been taken, or the server stops."""
        for upload in self._open:
            upload.interrupt()
