"""Envoy's messages as plain dictionaries: the few shapes that occur again and again.

What Envoy reads is YAML or JSON of its protocol buffers. Builders here and beside return such dictionaries;
Envoy itself checks them (`validation`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

from ..data_plane import host_and_port

Message = dict[str, Any]
"""One message of Envoy's API."""

_TYPES = "type.googleapis.com/"


def typed(kind: str, **fields: Any) -> Message:
    """A message that says its own type, for fields that take several."""
    return {"@type": _TYPES + kind, **fields}


def extension(name: str, kind: str, **fields: Any) -> Message:
    """A filter, predicate, policy or the like, with its configuration."""
    return {"name": name, "typed_config": typed(kind, **fields)}


def seconds(value: float) -> str:
    """A duration."""
    return f"{value:.9f}".rstrip("0").rstrip(".") + "s"


def socket_address(address: str) -> Message:
    """An `Address` of the fleet."""
    host, port = host_and_port(address)
    return {"socket_address": {"address": host, "port_value": port}}


def header(key: str, value: str) -> Message:
    """A header to add. It replaces what the other side may have sent under this name."""
    return {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def file_source(path: PurePath) -> Message:
    """Configuration that Envoy reads from a file, again each time something is renamed in its folder.

    The folder is watched, not the file: Kubernetes replaces a mounted file by a link one level above it.
    """
    watched = {"path": str(path.parent)}
    return {"path_config_source": {"path": str(path), "watched_directory": watched}, "resource_api_version": "V3"}


def discovery(kind: str, resources: Iterable[Message], version: str) -> Message:
    """Content of a file that a `file_source` points at."""
    return {"version_info": version, "resources": [typed(kind, **resource) for resource in resources]}
