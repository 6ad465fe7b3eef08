"""Sends requests at their times, whether or not the ones before have been answered."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

import gevent
import gevent.socket
import gevent.ssl
from gevent.pool import Group
from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPConnectionClosed, HTTPParseError

from laboratory.arrivals import Arrival, Outcome
from routing.fleet import Fleet

from .form import Form
from .generator import FOREIGN, NO_CONNECTION, UNREACHED, Limits
from .tally import Tally

ATTEMPTS, REGION, COMPUTE = "x-stillmotion-attempts", "x-stillmotion-region", "x-stillmotion-compute-seconds"
PATH = "/animate"
_CONNECT_S = 5.0


class Sender:
    """One worker's part of a load test.

    Args:
        edges: URL by region.
        fleet: for distances.
        form: that is sent.
        headers: besides, as an API key.
        limits: of the generator.
        timeout_s: for an answer.
        tally: that outcomes are added to.
        watch: is given each outcome, and the size of the answer.
    """

    def __init__(
        self,
        edges: Mapping[str, str],
        fleet: Fleet,
        form: Form,
        headers: Mapping[str, str],
        limits: Limits,
        timeout_s: float,
        tally: Tally,
        watch: Callable[[Outcome, int], None],
    ) -> None:
        self._fleet, self._limits, self._tally, self._watch = fleet, limits, tally, watch
        self._form = form
        # A connection each, as users who come anew have. One that is kept may be closing when it is used again, and a
        # job must not be sent twice.
        self._headers = {**headers, "Content-Type": form.content_type, "Connection": "close"}
        self._clients = {region: _client(url, limits.in_flight, timeout_s) for region, url in edges.items()}
        self._group = Group()
        self._late_above_s = limits.late_above_jobs * fleet.service_time_s

    def send(self, arrivals: Sequence[Arrival], start: float) -> None:
        """Send all of them, and wait for what becomes of them.

        Args:
            arrivals: in order of time.
            start: monotonic time from which theirs count.
        """
        try:
            for one in arrivals:
                if (left_s := start + one.at_s - time.monotonic()) > 0:
                    gevent.sleep(left_s)
                self._tally.arrived(one.at_s, one.region)
                if len(self._group) >= self._limits.in_flight:
                    self._tally.dropped += 1
                else:
                    self._group.spawn(self._one, one, start + one.at_s)
            self._group.join()
        finally:
            self._group.kill()
            for client in self._clients.values():
                client.close()

    @property
    def in_flight(self) -> int:
        """Requests that have been sent and not answered."""
        return len(self._group)

    def _one(self, arrival: Arrival, due: float) -> None:
        sent = time.monotonic()
        size, status, headers, problem = 0, 0, {}, ""
        try:
            response = self._clients[arrival.region].request(
                "POST", PATH, body=self._form.sized(arrival.size), headers=self._headers
            )
            try:
                size = len(response.read())
                status = int(response.get_code())
                headers = {name: str(response.get(name) or "") for name in (ATTEMPTS, REGION, COMPUTE)}
            finally:
                response.release()
        except (ConnectionRefusedError, gevent.socket.gaierror, ssl.SSLError):
            status, problem = int(UNREACHED), NO_CONNECTION
        except (OSError, HTTPConnectionClosed, HTTPParseError, gevent.Timeout) as error:
            problem = "timed out" if isinstance(error, TimeoutError | gevent.Timeout) else type(error).__name__
        took_s = time.monotonic() - due
        if status > 0 and not headers.get(ATTEMPTS, "").isdigit():
            problem = FOREIGN
        outcome = self._outcome(arrival, sent - due, took_s, status, headers, problem)
        self._tally.add(outcome, self._late_above_s)
        self._watch(outcome, size)

    def _outcome(
        self, arrival: Arrival, late_s: float, took_s: float, status: int, headers: Mapping[str, str], problem: str
    ) -> Outcome:
        served, attempts = headers.get(REGION, ""), headers.get(ATTEMPTS, "")
        if status == 200 and not problem and served not in self._fleet.regions:
            problem = FOREIGN
        away_s = self._fleet.latency(arrival.region, served) / 1000 if served in self._fleet.regions else 0.0
        try:
            compute_s: float | None = float(headers.get(COMPUTE, ""))
        except ValueError:
            compute_s = None
        return Outcome(
            arrival.region,
            arrival.at_s,
            late_s,
            took_s,
            status,
            served,
            int(attempts) if attempts.isdigit() else 0,
            compute_s,
            away_s,
            problem,
        )


def _client(url: str, in_flight: int, timeout_s: float) -> HTTPClient:
    parts = urlsplit(url)
    tls = parts.scheme == "https"
    return HTTPClient(
        parts.hostname or "",
        port=parts.port or (443 if tls else 80),
        ssl=tls,
        # By default one connection, at which requests would queue: the loop would be closed without a word.
        concurrency=in_flight + 1,
        connection_timeout=_CONNECT_S,
        network_timeout=timeout_s,
        # The system's authorities, or those of SSL_CERT_FILE.
        ssl_context_factory=(lambda **_: gevent.ssl.create_default_context()) if tls else None,
    )
