"""`proxy`: become the pinned Envoy, with the arguments that its files are meant for."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, NoReturn

NAME = "proxy"
HELP = "start one proxy: the pinned Envoy takes this process's place"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR", help="of its files")
    text = "that carry requests; an ingress has one (default: 1)"
    parser.add_argument("--threads", type=int, default=1, metavar="N", help=text)


def run(options: argparse.Namespace) -> NoReturn:
    """Start it; this does not return."""
    if not 1 <= options.threads <= 256:
        options.usage_error(f"--threads {options.threads} is not between 1 and 256")
    from ..envoy.binary import find_envoy
    from ..envoy.folders import BOOTSTRAP
    from ..errors import InputError, RoutingError

    bootstrap = options.folder / BOOTSTRAP
    if not bootstrap.is_file():
        raise InputError(f"{options.folder} has no {BOOTSTRAP}; write it with `render`", key="--folder")
    command = find_envoy().command(bootstrap, threads=options.threads)
    try:
        os.execv(command[0], command)  # noqa: S606  # the pinned program
    except OSError as error:
        raise RoutingError(f"{command[0]}: cannot be started ({error.strerror})") from error


def lines(result: dict[str, Any]) -> list[str]:
    """Nothing: Envoy is there now."""
    raise NotImplementedError
