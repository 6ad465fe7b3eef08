"""The report and the verdict of the last run, beside Locust's own web page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import Flask, Response

if TYPE_CHECKING:
    from .master import Master


def add_pages(app: Flask, master: Master) -> None:
    """Add `/verdict` (the page) and `/verdict.json`.

    Args:
        app: Locust's.
        master: whose last run it is.
    """

    @app.get("/verdict")
    def verdict_page() -> Response:
        if master.result is None:
            return Response("no run has been judged yet\n", 404, mimetype="text/plain")
        return Response(master.page, mimetype="text/html")

    @app.get("/verdict.json")
    def verdict_json() -> Response:
        import json

        if master.result is None:
            return Response('{"error": "no run has been judged yet"}\n', 404, mimetype="application/json")
        return Response(json.dumps(master.result), mimetype="application/json")
