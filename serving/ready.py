"""Exits with 0 where the server in this container is ready, else with 1: the container's health check.

Run as a file, so that it imports nothing but the standard library: a check every few seconds has to be cheap.
"""

from __future__ import annotations

import os
import sys
from http.client import HTTPConnection, HTTPException

_SECONDS = 25  # a busy machine stalls for a while; less than the health check's own limit, so that it says why


def status(port: int) -> int | None:
    """Status of `/readyz` on this machine; None where nothing answers."""
    connection = HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()


def main() -> int:
    """Say how the server stands; the exit status."""
    # In the order in which the image's entry point and BentoML decide.
    port = os.environ.get("PORT") or os.environ.get("BENTOML_PORT") or "3000"
    answer = status(int(port))
    sys.stdout.write(f"/readyz on port {port}: {answer or 'no answer'}\n")
    return 0 if answer == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
