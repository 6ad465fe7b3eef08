"""`drain`: take a proxy out before it stops."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

NAME = "drain"
HELP = "take a proxy out: its /readyz is 503 from now on, and its requests end"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    which = parser.add_mutually_exclusive_group()
    text = "an edge's admin page (default: 127.0.0.1:9901)"
    which.add_argument("--admin", default="127.0.0.1:9901", metavar="HOST:PORT", help=text)
    which.add_argument("--socket", type=Path, metavar="PATH", help="a dispatcher's runtime socket")
    text = "time for load balancers and edges to see it (default: 5)"
    parser.add_argument("--leave", type=_seconds, default=5.0, metavar="S", help=text)
    text = "time for requests in flight after that (default: 230)"
    parser.add_argument("--limit", type=_seconds, default=230.0, metavar="S", help=text)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 86_400:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 86,400 seconds")
    return value


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Drain it; how many requests were left."""
    from ..dispatcher.runtime import Runtime
    from ..errors import RoutingError
    from ..proxies import EdgeAdmin, drain

    proxy = EdgeAdmin(options.admin) if options.socket is None else Runtime(options.socket)
    if left := drain(proxy, options.leave, options.limit):
        raise RoutingError(f"{left} requests are still in flight after {options.leave + options.limit:g} s")
    return {"proxy": str(options.socket or options.admin), "in_flight": left}


def lines(result: dict[str, Any]) -> list[str]:
    """That it is done."""
    return [f"{result['proxy']}: nothing is in flight; it can be stopped"]
