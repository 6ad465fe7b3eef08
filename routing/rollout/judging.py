"""Judging from the outside: until it is known, or as a page that is asked again and again."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ..console import tell
from ..data_plane import host_and_port
from ..errors import InputError, RoutingError
from .counters import Growth, Source
from .judge import Clips, judge
from .probe import ProbeError, ask, look, look_at_stable, wrong_with
from .settings import Limits, Probe


class Judge:
    """A judge who has looked since a first reading.

    Args:
        source: of counters.
        limits: margins and error.
        slow_s: a job that takes longer is slow.
        clips: gives the comparison of clips until now; None: nobody compares any.
    """

    def __init__(self, source: Source, limits: Limits, slow_s: float, clips: Callable[[], Clips] | None = None) -> None:
        self._source, self._limits, self._slow_s, self._growth = source, limits, slow_s, Growth()
        self._clips, self._first = clips, clips and clips()

    def look(self) -> dict[str, Any]:
        """Read the counters, and return what is known, as `Judgement.to_dict` has it."""
        try:
            self._growth.take(self._source.read())
        except RoutingError as error:  # perhaps only now
            return {"verdict": "cannot tell", "why": str(error)}
        stable, candidate = self._growth.tally("stable"), self._growth.tally("candidate")
        clips = self._clips().since(self._first) if self._clips and self._first else None
        return judge(stable, candidate, self._limits, self._slow_s, clips).to_dict()


def judged(one: Judge, for_s: float, every_s: float) -> dict[str, Any]:
    """Look again and again until it is known, or the time is over."""
    began = time.monotonic()
    while True:
        found = one.look()
        left_s = began + for_s - time.monotonic()
        if found["verdict"] != "cannot tell" or left_s <= 0:
            return found | {"seconds": round(time.monotonic() - began, 1)}
        time.sleep(min(every_s, left_s))


def probed(url: str, probe: Probe, base: Path) -> str:
    """Return what is wrong with the candidate's clip, by a dispatcher; empty: nothing, or there is none to compare."""
    try:
        stable = look_at_stable(ask(url, probe, base, "stable"))
    except ProbeError as error:
        tell(f"clips are not compared: of the stable version there is {error}")
        return ""
    try:
        return wrong_with(stable, look(ask(url, probe, base, "candidate")))
    except ProbeError as error:
        return f"a probe of the candidate has {error}"


def serve(address: str, new: Callable[[], Judge]) -> None:
    """Serve `/verdict?candidate=NAME` until interrupted; each new name has a new judge.

    Raises:
        InputError: nobody can listen there.
    """
    lock = threading.Lock()
    judges: dict[str, Judge] = {}

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            if parts.path == "/livez":
                self._answer(HTTPStatus.OK, {"alive": True})
                return
            name = (parse_qs(parts.query).get("candidate") or [""])[0]
            if parts.path != "/verdict" or not name:
                self._answer(HTTPStatus.NOT_FOUND, {"error": "ask for /verdict?candidate=NAME"})
                return
            with lock:
                if name not in judges:  # one rollout at a time
                    judges.clear()
                    judges[name] = new()
                self._answer(HTTPStatus.OK, judges[name].look())

        def _answer(self, status: HTTPStatus, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing of each question."""

    host, port = host_and_port(address)
    try:
        server = ThreadingHTTPServer((host, port), Page)
    except OSError as error:
        raise InputError(f"nobody can listen at {address} ({error.strerror})", key="--listen") from None
    tell(f"verdicts at http://{address}/verdict?candidate=NAME")
    with server:
        server.serve_forever()
