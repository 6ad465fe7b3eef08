"""Sends webhooks, signed as https://www.standardwebhooks.com has it, until they arrive or too much time has passed.

OpenAI signs its webhooks in the same way, so that `client.webhooks.verify_signature` of the `openai` package checks
ours. A webhook may arrive twice, with the same `webhook-id`: after a process is killed between sending and noting it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import random
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx

from .errors import StorageError
from .metrics import Metrics
from .outside import ForbiddenError, Outside
from .records import Delivery
from .settings import Settings
from .store import Store

logger = logging.getLogger("stillmotion.jobs")

_LOOK_S = 1.0
_AGAIN_S = 60.0  # a process that dies while it sends one: then another one does
_AT_A_TIME, _AT_A_HOST = 64, 8
_CROWDED_S = 5.0
_FIRST_S, _MOST_S = 5.0, 6 * 3600.0


def sign(secret: str, message_id: str, timestamp: int, body: str) -> str:
    """Return the header `webhook-signature`: HMAC-SHA256 of `id.timestamp.body`, in base64.

    Args:
        secret: `whsec_` and a key in base64.
    """
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"{message_id}.{timestamp}.{body}".encode(), hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def backoff_s(attempts: int, rng: random.Random) -> float:
    """Return seconds until the next attempt: 5 s, four times as long after each, 6 h at most, spread by a fifth."""
    return float(min(_MOST_S, _FIRST_S * 4.0 ** (attempts - 1)) * rng.uniform(0.8, 1.2))


class Courier:
    """Sends what is in the outbox, of this process and of others."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        outside: Outside,
        metrics: Metrics,
        clock: Callable[[], float],
        rng: random.Random | None = None,
    ) -> None:
        self._settings, self._store, self._outside, self._metrics = settings, store, outside, metrics
        self._clock, self._rng = clock, rng or random.Random()  # noqa: S311  # guards nothing
        self._sending: dict[asyncio.Task[None], str] = {}  # to which host

    async def run(self) -> None:
        """Send, for ever."""
        try:
            while True:
                taken = 0
                try:
                    taken = await self._begin()
                except StorageError as error:
                    logger.warning("%s", error)
                except Exception:
                    logger.exception("a round of webhooks failed")
                if not taken:
                    await asyncio.sleep(_LOOK_S)
        finally:
            for task in self._sending:
                task.cancel()
            await asyncio.gather(*self._sending, return_exceptions=True)

    async def _begin(self) -> int:
        """Begin to send what is due, as far as there is room; returns how many that are.

        What hangs keeps its place for seconds. No host gets all places, so that the others' webhooks go on.
        """
        now, taken = self._clock(), 0
        room = _AT_A_TIME - len(self._sending)
        for one in await asyncio.to_thread(self._store.due, now, now + _AGAIN_S, room) if room else ():
            host = urlsplit(one.url).netloc
            if list(self._sending.values()).count(host) >= _AT_A_HOST:
                await asyncio.to_thread(self._store.postpone, one.id, now + _CROWDED_S, one.attempts)
                continue
            task = asyncio.create_task(self._deliver(one))
            self._sending[task] = host
            task.add_done_callback(self._done)
            taken += 1
        return taken

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._sending[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("%s; the webhook comes up again", error)

    async def _deliver(self, one: Delivery) -> None:
        attempts = one.attempts + 1
        try:
            status = await self._send(one)
            problem = "" if 200 <= status < 300 else f"answered {status}"
        except ForbiddenError as error:
            problem = str(error)
            attempts = self._settings.webhook_attempts  # it will be so the next time as well
        except (TimeoutError, httpx.HTTPError, OSError) as error:
            problem = f"{type(error).__name__}: {error}".rstrip(": ")
        except Exception as error:  # whatever it is, it counts as an attempt
            logger.exception("webhook %s failed", one.id)
            problem = type(error).__name__
        if not problem:
            self._metrics.webhooks.labels(outcome="delivered").inc()
            await asyncio.to_thread(self._store.sent, one.id)
        elif attempts >= self._settings.webhook_attempts:
            logger.warning("webhook %s is given up after %d attempts: %s", one.id, attempts, problem)
            self._metrics.webhooks.labels(outcome="given_up").inc()
            await asyncio.to_thread(self._store.sent, one.id)
        else:
            self._metrics.webhooks.labels(outcome="retried").inc()
            await asyncio.to_thread(
                self._store.postpone, one.id, self._clock() + backoff_s(attempts, self._rng), attempts
            )

    async def _send(self, one: Delivery) -> int:
        secret = self._settings.secret_of(one.owner)
        if secret is None:
            raise ForbiddenError("there is no secret to sign it with any more")
        # The time of this attempt: a receiver refuses old ones.
        timestamp = int(self._clock())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "stillmotion-jobs",
            "webhook-id": one.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(secret, one.id, timestamp, one.body),
        }
        status, _ = await self._outside.send(
            "POST", one.url, self._settings.webhook_hosts, content=one.body.encode(), headers=headers, most=1024
        )
        return status
