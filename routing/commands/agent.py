"""`agent`: keep the files of an edge that the control loop does not reach."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

NAME = "agent"
HELP = "keep the files of one edge up to date, beside it, by the rows of control loops"
ALIASES = ("follow",)  # as the last release calls it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("--fleet", type=Path, required=True, metavar="YAML", help="regions, proxies, policies")
    parser.add_argument("--region", required=True, help="that the edge is in")
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR", help="of the edge's files")
    text = "control loops to go by, the preferred first"
    parser.add_argument("--control", type=_urls, required=True, metavar="URL[,URL]", help=text)
    text = "file with the token that the loops were started with (default: STILLMOTION_CONTROL_TOKEN has it, or none)"
    parser.add_argument("--token-file", type=Path, metavar="FILE", help=text)
    text = "where /livez and /metrics are (default: nowhere)"
    parser.add_argument("--listen", metavar="HOST:PORT", help=text)
    parser.add_argument("--once", action="store_true", help="ask each loop once, and end")


def _urls(text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    for url in found:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise argparse.ArgumentTypeError(f"{url} is no address such as http://10.1.0.20:9900")
    if not found:
        raise argparse.ArgumentTypeError("names no control loop")
    return found


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Go by the loops until stopped; which row is in use at the end."""
    import asyncio

    from ..agent.service import serve
    from ..fleet import load_fleet

    agent = asyncio.run(
        serve(
            load_fleet(options.fleet),
            options.region,
            options.folder,
            options.control,
            token_file=options.token_file,
            listen=None if options.once else options.listen,
            once=options.once,
        )
    )
    row = agent.seen.row
    return {
        "table_epoch": None if row is None else row.epoch,
        "table_version": None if row is None else row.version,
        "control": agent.seen.source or None,
        "problems": list(agent.seen.problems.values()),
    }


def lines(result: dict[str, Any]) -> list[str]:
    """Which row is in use, and what is wrong."""
    found = [f"table {result['table_version']} of {result['control']}"] if result["control"] else []
    return [*found, *result["problems"]]
