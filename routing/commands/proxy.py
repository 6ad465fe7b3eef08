"""`proxy`: run one proxy, an edge or a dispatcher, with the arguments that its files are meant for."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

NAME = "proxy"
HELP = "run one proxy by its files: Envoy as an edge, or HAProxy as a dispatcher"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR", help="of its files")
    text = "of an edge (default: 1); a dispatcher's are in its files"
    parser.add_argument("--threads", type=int, default=1, metavar="N", help=text)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run it: Envoy takes this process's place; HAProxy is reloaded when its files change, until it is stopped."""
    if not 1 <= options.threads <= 256:
        options.usage_error(f"--threads {options.threads} is not between 1 and 256")
    from ..dispatcher.files import CONFIG
    from ..envoy.binary import find_envoy
    from ..envoy.files import BOOTSTRAP
    from ..errors import InputError, RoutingError

    if (options.folder / CONFIG).is_file():
        from ..dispatcher.binary import find_haproxy
        from ..dispatcher.program import serve

        status = serve(find_haproxy(), options.folder)
        if status > 0:
            raise RoutingError(f"{options.folder}: HAProxy ended with {status}")
        return {"folder": str(options.folder), "status": status}
    bootstrap = options.folder / BOOTSTRAP
    if not bootstrap.is_file():
        text = f"{options.folder} has neither {BOOTSTRAP} nor {CONFIG}; write them with `render`"
        raise InputError(text, key="--folder")
    command = find_envoy().command(bootstrap, threads=options.threads)
    try:
        os.execv(command[0], command)  # noqa: S606  # the program of the package
    except OSError as error:
        raise RoutingError(f"{command[0]}: cannot be started ({error.strerror})") from error


def lines(result: dict[str, Any]) -> list[str]:
    """That a dispatcher has ended."""
    return [f"{result['folder']}: the dispatcher has ended"]
