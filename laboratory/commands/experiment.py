"""`experiment`: lines and retries on real proxies, beside one ideal line of all GPUs."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from routing.console import tell

NAME = "experiment"
HELP = "compare fleets with and without lines on real proxies, beside the ideal line"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    text = "one minute instead of ten: enough to see that it works, too little for its figures"
    parser.add_argument("--quick", action="store_true", help=text)
    text = "folder for experiment.json, .md and .png (default: experiment)"
    parser.add_argument("--out", type=Path, default=Path("experiment"), metavar="DIR", help=text)
    parser.add_argument("--seed", type=int, default=0, help="of arrivals and service times (default: 0)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, and write the results."""
    from ..experiment import CASES, FULL, QUICK, document, measure, write

    effort = QUICK if options.quick else FULL
    began = time.monotonic()
    found = measure(CASES, effort, options.seed)
    result = document(found, effort, options.seed, time.monotonic() - began)
    for path in write(result, options.out):
        tell(f"written: {path}")
    return result


def lines(result: dict[str, Any]) -> list[str]:
    """The table."""
    from ..experiment import table

    return table(result)
