"""Receives webhooks."""

from __future__ import annotations

import contextlib

from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from .conftest import served


class Receiver:
    """A server for webhooks.

    Args:
        statuses: of its answers, one after the other; the last one stays.
    """

    def __init__(self, *statuses):
        self.statuses, self.received = list(statuses) or [204], []
        self.hang = None  # an awaitable that each request waits for

    async def hook(self, request):
        self.received.append((dict(request.headers), (await request.body()).decode()))
        if self.hang is not None:
            await self.hang()
        return Response(status_code=self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0])

    def first(self):
        return self.received[0] if self.received else None

    def __enter__(self):
        self._stack = contextlib.ExitStack()
        app = Starlette(routes=[Route("/hook", self.hook, methods=["POST"])])
        self.url = self._stack.enter_context(served(app)) + "/hook"
        return self

    def __exit__(self, *_):
        self._stack.close()
