"""`control`: the loop that keeps the routing table in step with the traffic."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

NAME = "control"
HELP = "keep the routing table in step with the traffic"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("--fleet", type=Path, required=True, metavar="YAML", help="regions, policies, metrics")
    text = "folder to publish into, one loop at a time (default: control)"
    parser.add_argument("--out", type=Path, default=Path("control"), metavar="DIR", help=text)
    text = "folder of the fleet's Envoys, as `render` wrote it, to keep up to date"
    parser.add_argument("--envoy", type=Path, metavar="DIR", help=text)
    parser.add_argument("--interval", type=float, default=2.0, metavar="S", help="from round to round (default: 2)")
    parser.add_argument("--prometheus", metavar="URL", help="take metrics from there, not from the proxies")
    text = "where the status page is (default: 127.0.0.1:9900)"
    parser.add_argument("--listen", default="127.0.0.1:9900", metavar="HOST:PORT", help=text)
    text = "file with the token of operators (default: STILLMOTION_CONTROL_TOKEN has it, or there are no switches)"
    parser.add_argument("--token-file", type=Path, metavar="FILE", help=text)
    parser.add_argument("--once", action="store_true", help="look twice, publish once, and end; without a page")
    text = "wait while another loop publishes into the folder, to take over when it ends"
    parser.add_argument("--standby", action="store_true", help=text)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the loop until it is stopped; the last status."""
    from ..fleet import load_fleet

    fleet = load_fleet(options.fleet)
    if not fleet.metrics.time_limit_s < options.interval <= fleet.stale_after_s:
        limits = f"metrics.time_limit_s ({fleet.metrics.time_limit_s:g}) and stale_after_s ({fleet.stale_after_s:g})"
        options.usage_error(f"--interval {options.interval:g} is not between {limits}")
    import asyncio

    from ..control.service import Options, serve

    return asyncio.run(
        serve(
            fleet,
            Options(
                base=options.fleet.parent,
                out=options.out,
                envoy=options.envoy,
                interval_s=options.interval,
                prometheus=options.prometheus,
                listen=options.listen,
                token_file=options.token_file,
                once=options.once,
                standby=options.standby,
            ),
        )
    )


def lines(result: dict[str, Any]) -> list[str]:
    """The table, and what is wrong."""
    found = [f"table {result['version']}, {result['rounds']} rounds, {result['failed_rounds']} failed"]
    if result["failure"] or result["frozen"]:
        found.append(result["failure"] or f"frozen: {result['frozen']}")
    if result["switches"]:
        found.append(f"switched: {result['switches']}")
    for source, row in result["shares"].items():
        shares = "  ".join(f"{to} {100 * share:.1f} %" for to, share in row.items())
        found.append(f"{source}: {shares}")
    return found
