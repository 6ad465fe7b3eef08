"""`python -m jobs serve`: the job service. `key` and `secret` make what its settings name."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

# What takes time to import is imported where it is needed: by then Ctrl-C is one line (`_run`).

_KEY_NAME = "[A-Za-z0-9._-]{1,64}"  # as the settings want it


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    import argparse
    from pathlib import Path

    parser = argparse.ArgumentParser(prog="jobs", description="Submit a picture, come back for the video.")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="run the job service")
    serve.add_argument("--config", type=Path, help="YAML file of settings (docs/jobs.md)")
    serve.add_argument("--upstream", help="address of a server or an edge")
    serve.add_argument("--host", help="address to listen at; 127.0.0.1 unless set")
    serve.add_argument("--port", type=int, help="port; 8080 unless set, 0 for a free one")
    serve.add_argument("--data", type=Path, help="folder of database and files; jobs-data unless set")
    key = commands.add_parser("key", help="make an API key, and the lines of the settings that admit it")
    key.add_argument("name", help="of its holder")
    commands.add_parser("secret", help="make a secret that signs webhooks")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parsed = build_parser().parse_args(arguments)
    if parsed.command in ("key", "secret"):
        return _make(parsed)
    return _serve(parsed)


def _make(parsed: argparse.Namespace) -> int:
    import hashlib
    import re
    import secrets
    from base64 import b64encode

    if parsed.command == "key":
        if not re.fullmatch(_KEY_NAME, parsed.name):
            sys.stderr.write(f"jobs: name: {parsed.name[:80]!r} is not 1 to 64 letters, digits, dots, _ and -\n")
            return 1
        made = f"sk-{secrets.token_urlsafe(32)}"
        digest = hashlib.sha256(made.encode()).hexdigest()
        sys.stdout.write(f"{made}\n\nkeys:\n  - name: {parsed.name}\n    sha256: {digest}\n")
        return 0
    sys.stdout.write(f"whsec_{b64encode(secrets.token_bytes(32)).decode()}\n")
    return 0


def _serve(parsed: argparse.Namespace) -> int:
    import logging
    import os

    from .errors import JobsError

    try:
        from .app import serve
        from .settings import read_settings

        flags = {name: getattr(parsed, name) for name in ("upstream", "host", "port", "data")}
        settings = read_settings(parsed.config, os.environ, flags)
        logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
        for quiet in ("httpx", "httpcore", "uvicorn.error"):
            logging.getLogger(quiet).setLevel(logging.WARNING)
        serve(settings)
    except JobsError as error:
        sys.stderr.write(f"jobs: {error}\n")
        return 1
    except ModuleNotFoundError as error:
        sys.stderr.write(f"jobs: {error.name} is missing; pip install 'stillmotion[jobs]' brings it\n")
        return 1
    return 0


def _run() -> int:
    try:
        return main()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    finally:
        # Nothing is left that could be interrupted, and Python's own clearing up would print a traceback.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(_run())
