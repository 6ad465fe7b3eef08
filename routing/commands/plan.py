"""`plan`: a routing table from a fleet and its load."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

NAME = "plan"
HELP = "make a routing table from a fleet and its load"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("--fleet", type=Path, required=True, metavar="YAML", help="regions, distances, policies")
    parser.add_argument("--load", type=Path, required=True, metavar="JSON", help="demand and capacity of each region")
    text = "lp is the optimum for the same overflow, to compare with (default: iterative)"
    parser.add_argument("--solver", choices=("iterative", "lp"), default="iterative", help=text)
    parser.add_argument("--out", type=Path, metavar="JSON", help="write the table there too, at once and whole")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Plan once, without smoothing, hysteresis or a limit on steps."""
    from ..fleet import load_fleet
    from ..load import load_load
    from ..planner import plan

    fleet = load_fleet(options.fleet)
    load = load_load(options.load, fleet)
    now = datetime.now(UTC).replace(microsecond=0)
    table = plan(fleet, load, generated_at=now, solver=options.solver)
    if options.out is not None:
        table.write(options.out)
    return table.to_dict()


def lines(result: dict[str, Any]) -> list[str]:
    """Shares, moves with their reasons, and what is unserved."""
    moves = [f"{move['rps']:.2f} rps  {move['why']}" for move in result["moves"]]
    unserved = [f"unserved in {name}: {rps:.2f} rps" for name, rps in result["unserved_rps"].items() if rps > 0]
    return [*_shares(result["shares"]), "", *(moves or ["nothing moves"]), "", *(unserved or ["all is served"])]


def _shares(shares: dict[str, dict[str, float]]) -> list[str]:
    """A matrix of per cent where it fits a screen, else a line a source."""
    width = max(8, *(len(name) for name in shares))
    if (width + 2) * (len(shares) + 1) > 120:
        return [
            f"{source:<{width}}  " + ", ".join(f"{to} {100 * share:.2f} %" for to, share in row.items())
            for source, row in shares.items()
        ]
    found = [f"{'from':<{width}}" + "".join(f"  {name:>{width}}" for name in shares)]
    for source, row in shares.items():
        cells = (f"{100 * row[name]:.2f} %" if name in row else "-" for name in shares)
        found.append(f"{source:<{width}}" + "".join(f"  {cell:>{width}}" for cell in cells))
    return found
