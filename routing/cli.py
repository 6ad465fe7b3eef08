"""The command line: `python -m routing <command>`.

Exit status: 0 done, 1 failed or a goal was not met, 2 wrong use or a file that cannot be used, 130 interrupted. What a
command imports for its work is imported when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
from collections.abc import Sequence

from .commands import COMMANDS, Command
from .console import put, tell
from .errors import RoutingError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status."""
    options = build_parser().parse_args(arguments)
    try:
        # Libraries print to stdout as they like; there it would spoil the document.
        with contextlib.redirect_stdout(sys.stderr):
            result = options.command.run(options)
    except RoutingError as error:
        tell(f"error: {error}")
        return error.exit_status
    except KeyboardInterrupt:
        tell("interrupted")
        return 130
    written = put([json.dumps(result, indent=2, allow_nan=False)] if options.json else options.command.lines(result))
    judge = getattr(options.command, "exit_status", None)
    return (judge(result) if judge is not None else 0) or written


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(prog="python -m routing", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (*COMMANDS, *_of_laboratory()):
        aliases = getattr(command, "ALIASES", ())
        added = commands.add_parser(command.NAME, help=command.HELP, description=command.HELP, aliases=aliases)
        added.add_argument("--json", action="store_true", help="print one JSON document on stdout")
        command.add_arguments(added)
        added.set_defaults(command=command, usage_error=added.error)
    return parser


def _of_laboratory() -> tuple[Command, ...]:
    """Return the commands that try a fleet out: an image for production is without them.

    Nothing else of this package imports the laboratory, which imports this package.
    """
    try:
        found: tuple[Command, ...] = importlib.import_module("laboratory.commands").COMMANDS
    except ModuleNotFoundError as error:
        if error.name not in {"laboratory", "laboratory.commands"}:
            raise
        return ()
    return found
