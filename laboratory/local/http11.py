"""HTTP/1.1 for stand-ins: as much of it as proxies and tools speak, on asyncio alone.

A machine is to hold hundreds of stand-ins that are asked for their health twice a second. Under uvicorn that is 2.7
times the work a request (155 us of a core, here 58), twice as much to start one, and a third more memory.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

IDLE_S = 5.0
"""As uvicorn, under which the real servers run, closes connections that nobody uses."""
_HEAD_S = 10.0
_LARGEST_HEAD = 64 * 1024
_MOST_LEFT = 32 * 2**20
SERVER = "stillmotion-stand-in"


class BadRequestError(Exception):
    """No HTTP, or more of it than is taken; the connection is closed."""


class TooLargeError(Exception):
    """A body is over the limit."""


@dataclass
class Body:
    """A request's body, read when it is asked for."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    length: int | None
    expects: bool
    ended: bool = False

    async def read(self, limit: int) -> bytes:
        """All of it.

        Raises:
            TooLargeError: it has more bytes than `limit`.
        """
        found = bytearray()
        async for part in self.parts():
            found += part
            if len(found) > limit:
                raise TooLargeError
        return bytes(found)

    async def parts(self) -> AsyncIterator[bytes]:
        """What is left of it, as it comes."""
        if self.ended:
            return
        if self.expects:
            self.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.expects = False
        if self.length is None:
            async for part in self._chunks():
                yield part
        while self.length:
            part = await self.reader.read(min(self.length, 2**16))
            if not part:
                raise asyncio.IncompleteReadError(part, self.length)
            self.length -= len(part)
            yield part
        self.ended = True

    async def _chunks(self) -> AsyncIterator[bytes]:
        while True:
            line = await self.reader.readuntil(b"\r\n")
            try:
                size = int(line.split(b";")[0], 16)
            except ValueError:
                raise BadRequestError from None
            if size == 0:
                break
            yield (await self.reader.readexactly(size + 2))[:-2]
        while await self.reader.readuntil(b"\r\n") != b"\r\n":
            pass  # trailers
        self.length = 0


@dataclass(frozen=True)
class Request:
    """A request, of which the body has not been read.

    Attributes:
        headers: by name in small letters; of a name that is there twice, the last.
        peer: IP address of who connected.
        gone: done when the client has closed the connection.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: Body
    peer: str
    gone: asyncio.Future[None]


@dataclass(frozen=True)
class Reply:
    """A response, whole or in parts.

    Attributes:
        parts: of a body whose length is not known before; `body` is not used then.
        close: whether the connection ends with it.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    parts: AsyncGenerator[bytes, None] | None = None
    close: bool = False


Answer = Callable[[Request], Awaitable[Reply]]


class Listener:
    """A listening socket and its connections.

    Args:
        answer: gives the reply to a request.
        address: IP address and port.
    """

    def __init__(self, answer: Answer, address: str) -> None:
        self._answer = answer
        host, _, port = address.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen.

        Raises:
            OSError: the address is taken.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._protocol, self._host, self._port, backlog=512)

    def cut(self) -> None:
        """Close the socket and all connections at once, as when the process were killed."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in self._connections:
            task.cancel()

    def _protocol(self) -> asyncio.Protocol:
        reader = asyncio.StreamReader(limit=_LARGEST_HEAD)
        return _Protocol(reader, self._connected)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        gone = asyncio.ensure_future(writer.wait_closed())
        # Seen: of an error that nobody waits for asyncio writes many lines.
        gone.add_done_callback(lambda done: done.cancelled() or done.exception())
        cut = False
        try:
            while await self._exchange(reader, writer, gone):
                pass
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, ConnectionError, BadRequestError):
            pass  # the client has gone, is idle, or speaks something else
        except asyncio.CancelledError:
            cut = True
        finally:
            self._connections.discard(task)
            if cut:
                writer.transport.abort()
            writer.close()

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gone: asyncio.Future[None]
    ) -> bool:
        """One request and its reply; whether there may be another one."""
        async with asyncio.timeout(IDLE_S):
            first = await reader.readexactly(1)
        async with asyncio.timeout(_HEAD_S):
            head = first + await reader.readuntil(b"\r\n\r\n")
        peer = (writer.get_extra_info("peername") or ("",))[0]
        method, path, headers = _parse(head)
        length = None if "chunked" in headers.get("transfer-encoding", "").lower() else _length(headers)
        body = Body(reader, writer, length, headers.get("expect", "").lower() == "100-continue")
        reply = await self._answer(Request(method, path, headers, body, str(peer), gone))
        await _send(writer, reply, whole=method != "HEAD")
        if reply.close or headers.get("connection", "").lower() == "close" or body.expects:
            return False
        size = 0
        async for part in body.parts():  # of a request that was refused: the connection can be used again
            size += len(part)
            if size > _MOST_LEFT:
                return False
        return True


class _Protocol(asyncio.StreamReaderProtocol):
    def eof_received(self) -> bool:
        # A client that sends no more has gone: its connection closes at once, which ends what it waited for.
        super().eof_received()
        return False


def _parse(head: bytes) -> tuple[str, str, dict[str, str]]:
    try:
        first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        method, target, version = first.split(" ")
        pairs = [line.split(":", 1) for line in lines]
        headers = {name.strip().lower(): value.strip() for name, value in pairs}
    except ValueError:
        raise BadRequestError from None
    if not version.startswith("HTTP/1."):
        raise BadRequestError
    return method, target.partition("?")[0], headers


def _length(headers: Mapping[str, str]) -> int:
    text = headers.get("content-length", "0")
    if not text.isascii() or not text.isdigit():
        raise BadRequestError
    return int(text)


async def _send(writer: asyncio.StreamWriter, reply: Reply, *, whole: bool) -> None:
    lines = [f"HTTP/1.1 {reply.status} {_phrase(reply.status)}", f"Server: {SERVER}"]
    lines.append(f"Content-Length: {len(reply.body)}" if reply.parts is None else "Transfer-Encoding: chunked")
    lines += _written(reply.headers.items())
    if reply.close:
        lines.append("Connection: close")
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + (reply.body if whole else b""))
    if reply.parts is not None:
        # Closed, whatever happens to the connection: it holds a GPU until then.
        async with contextlib.aclosing(reply.parts) as parts:
            async for part in parts:
                writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                await writer.drain()
        writer.write(b"0\r\n\r\n")
    await writer.drain()


def _written(headers: Iterable[tuple[str, str]]) -> list[str]:
    return [f"{name}: {value}" for name, value in headers]


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
