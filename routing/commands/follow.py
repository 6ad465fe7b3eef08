"""`follow`: keep the files of a proxy that the control loop does not reach."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

NAME = "follow"
HELP = "keep the files of one proxy up to date, beside it: the table of a control loop, GPU servers by their name"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("--fleet", type=Path, required=True, metavar="YAML", help="regions, proxies, policies")
    parser.add_argument("--region", required=True, help="that the proxy is in")
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR", help="of the proxy's files")
    text = "control loops to take the table from, the preferred first; for an edge"
    parser.add_argument("--control", type=_urls, default=(), metavar="URL[,URL]", help=text)
    text = "name and port of the GPU servers, looked up again and again; for an ingress"
    parser.add_argument("--servers", type=_servers, metavar="NAME:PORT", help=text)
    parser.add_argument("--interval", type=float, default=1.0, metavar="S", help="from round to round (default: 1)")
    text = "where /livez and /metrics are (default: nowhere)"
    parser.add_argument("--listen", metavar="HOST:PORT", help=text)
    parser.add_argument("--once", action="store_true", help="one round, and end")


def _urls(text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    for url in found:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise argparse.ArgumentTypeError(f"{url} is no address such as http://10.1.0.20:9900")
    if not found:
        raise argparse.ArgumentTypeError("names no control loop")
    return found


def _servers(text: str) -> tuple[str, int]:
    from ..follow.servers import name_and_port

    try:
        return name_and_port(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Follow until stopped; what was followed last."""
    if not options.control and options.servers is None:
        options.usage_error("give --control, --servers or both")
    if not 0.1 <= options.interval <= 60:
        options.usage_error(f"--interval {options.interval:g} is not between 0.1 and 60")
    import asyncio

    from ..fleet import load_fleet
    from ..follow.service import serve

    follower = asyncio.run(
        serve(
            load_fleet(options.fleet),
            options.region,
            options.folder,
            options.control,
            options.servers,
            interval_s=0.0 if options.once else options.interval,
            listen=None if options.once else options.listen,
        )
    )
    seen = follower.seen
    return {
        "rounds": seen.rounds,
        "table_version": seen.version,
        "control": seen.source or None,
        "servers": None if seen.servers is None else list(seen.servers),
        "problems": list(seen.problems.values()),
    }


def lines(result: dict[str, Any]) -> list[str]:
    """What the files hold."""
    found = []
    if result["table_version"] is not None:
        found.append(f"table {result['table_version']} of {result['control']}")
    if result["servers"] is not None:
        found.append(f"{len(result['servers'])} GPU servers: {', '.join(result['servers'])}")
    return [*found, *result["problems"]]
