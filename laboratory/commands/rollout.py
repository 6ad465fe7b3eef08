"""`rollout`: a new version of the model on a fleet of this machine, as fast as it proves itself."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

NAME = "rollout"
HELP = "give a fleet on this machine another model, step by step: start, status, promote, abort"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, about in (
        ("start", "begin a rollout, and run it to its end: promoted (exit status 0) or aborted (1)"),
        ("status", "how the rollout is"),
        ("promote", "end it now: all servers get the candidate"),
        ("abort", "end it now: all servers get the stable model back"),
    ):
        action = actions.add_parser(name, help=about, description=about)
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document")
        text = "of the fleet (default: the only one there is in .fleet/)"
        action.add_argument("--dir", type=Path, metavar="DIR", help=text)
        if name == "start":
            text = "the candidate: tag or folder; of stand-ins any name, which becomes stand-in:NAME"
            action.add_argument("--model", required=True, metavar="TAG", help=text)
            text = "steps, pauses, limits (default: those of docs/rollout.md)"
            action.add_argument("--file", type=Path, metavar="YAML", help=text)
            text = "of stand-ins with the candidate, such as '{\"slowness\": 2}'"
            action.add_argument("--faults", default="{}", metavar="JSON", help=text)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Do it."""
    from ..local.rollouts import end, start, status
    from .fleet import find

    folder = find(options.dir)
    if options.action == "start":
        return start(folder, options.model, options.file, options.faults)
    if options.action == "status":
        return status(folder)
    return end(folder, options.action)


def lines(result: dict[str, Any]) -> list[str]:
    """The result for people."""
    if result.get("told"):
        return [f"the rollout was told to {result['told']}"]
    found = [f"{result['phase']}: {result['stable']} > {result['candidate']}, step {result['step']}: {result['why']}"]
    return found + [f"  {one['text']}" for one in result.get("judgement", {}).get("findings", [])]


def exit_status(result: dict[str, Any]) -> int:
    """1 for a rollout that was aborted by itself."""
    return 1 if result["action"] == "start" and result["phase"] != "promoted" else 0
