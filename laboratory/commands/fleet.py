"""`fleet`: a fleet on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from routing.errors import InputError

NAME = "fleet"
HELP = "run a fleet on this machine: up, status, down"

_HOME = Path(".fleet")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in (
        ("up", "start it, and wait until it is ready"),
        ("status", "how it is"),
        ("down", "end it, with all that belongs to it"),
    ):
        action = actions.add_parser(name, help=text, description=text)
        # As well as before the action; left out, it must not undo that.
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document")
        required = name == "up"
        action.add_argument("--fleet", type=Path, required=required, metavar="YAML", help="regions, GPUs, policies")
        where = f"for its files, logs and state (default: {_HOME}/ and the name of the fleet file)"
        action.add_argument("--dir", type=Path, metavar="DIR", help=where)
        if name == "up":
            _add_up(action)


def _add_up(parser: argparse.ArgumentParser) -> None:
    text = "real servers, or stand-ins that take time and compute nothing (default: standin)"
    parser.add_argument("--servers", choices=("standin", "bentoml"), default="standin", help=text)
    text = "of real servers: tag or folder (default: the newest of the store)"
    parser.add_argument("--model", metavar="TAG", help=text)
    text = (
        "of stand-ins: seconds, exponential:MEAN, lognormal:MEAN,VARIATION, or a file of `pipeline bench --json` "
        "(default: service_time_s of the fleet)"
    )
    parser.add_argument("--service-time", metavar="TIMES", help=text)
    text = "start a Prometheus where one is installed (default: auto)"
    parser.add_argument("--prometheus", choices=("auto", "no"), default="auto", help=text)
    text = "first port, below 32768 (default: the first of a row that is free)"
    parser.add_argument("--port-base", type=int, metavar="N", help=text)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Do it."""
    folder = find(options.dir, options.fleet)
    if options.action == "up":
        return _up(options, folder)
    if options.action == "status":
        from ..local.report import report

        return {"action": "status", **report(folder)}
    from ..local.processes import down

    return {"action": "down", "folder": str(folder), "processes": down(folder)}


def _up(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    if options.servers == "bentoml" and options.service_time is not None:
        options.usage_error("--service-time is for stand-ins")
    if options.servers == "standin" and options.model is not None:
        options.usage_error("--model is for --servers bentoml")

    from routing.console import tell
    from routing.fleet import load_fleet

    from ..local.launch import Options, up
    from ..local.report import report

    fleet = load_fleet(options.fleet)
    tell(f"starting {options.fleet} in {folder}")
    up(
        fleet,
        options.fleet,
        folder,
        Options(
            servers=options.servers,
            model=options.model,
            service_time=options.service_time,
            prometheus=options.prometheus,
            port_base=options.port_base,
        ),
    )
    return {"action": "up", **report(folder)}


def find(folder: Path | None, fleet: Path | None = None) -> Path:
    """Return the folder of the fleet that is meant: as given, of this fleet file, or the only one there is.

    Raises:
        InputError: there is none, or more than one.
    """
    if folder is not None:
        return folder
    if fleet is not None:
        return _HOME / str(fleet.stem)
    found = sorted(path.parent for path in _HOME.glob("*/about.json"))
    from ..local.processes import runs

    running = [path for path in found if runs(path)] or found
    if len(running) != 1:
        names = ", ".join(str(path) for path in running) or "none"
        raise InputError(f"which fleet? There is {names} in {_HOME}; give --fleet or --dir")
    return running[0]


def lines(result: dict[str, Any]) -> list[str]:
    """The result for people."""
    if result["action"] == "down":
        count = result["processes"]
        return [f"{result['folder']}: {f'{count} processes ended' if count else 'nothing was running'}"]
    from ..local.report import lines as report_lines

    if result["action"] == "status":
        return report_lines(result)
    edges = [f"  {name:<16} {one['edge']}{result['path']}" for name, one in result["regions"].items()]
    what = "stand-ins for GPU servers: they take time and compute nothing" if result["servers"] == "stand-in" else ""
    return [f"ready; send requests to the edge of a region{f' ({what})' if what else ''}", *edges]
