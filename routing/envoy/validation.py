"""Envoy's own check of what was written, before a proxy reads it.

`envoy --mode validate` looks at a bootstrap, and not at the files that it points to. So these are put into a
copy of it first: endpoints, routes, live values, certificates, keys.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml

from ..errors import RoutingError
from ..files import read_text
from ..yaml_text import yaml_text
from .binary import Envoy
from .folders import AUTHORITY, BOOTSTRAP, ENDPOINTS, KEYS, PEERS, ROUTES, RUNTIME, TLS
from .messages import Message

_LIMIT_S = 300.0


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
                command, capture_output=True, text=True, timeout=_LIMIT_S, check=False
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
