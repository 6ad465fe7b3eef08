"""API keys: who may use an edge.

The filter's configuration is a file of its own, readable by its owner only: keys stay out of the bootstrap, and
are added and taken away while Envoy runs.
"""

from __future__ import annotations

from pathlib import Path, PurePath

from ..errors import InputError
from ..files import read_yaml
from .messages import Message, file_source, typed

_KIND = "envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuth"
EXTENSION_CONFIG = "envoy.config.core.v3.TypedExtensionConfig"
FILTER = "stillmotion.api_keys"
HEADER = "X-API-Key"
CLIENT_HEADER = "x-stillmotion-client"
SHORTEST = 16  # characters; about 80 bits when drawn from letters and digits


def key_filter(path: PurePath) -> Message:
    """The filter, for the chain of an edge.

    Without its file it lets nobody in: a default would open the edge when the file is lost.
    """
    discovery = {"config_source": file_source(path), "type_urls": [f"type.googleapis.com/{_KIND}"]}
    return {"name": FILTER, "config_discovery": discovery}


def key_config(keys: dict[str, str]) -> Message:
    """What the filter's file holds.

    Args:
        keys: by client name. The GPU servers see the name in `CLIENT_HEADER`, and never the key.
    """
    return {
        "name": FILTER,
        "typed_config": typed(
            _KIND,
            credentials=[{"key": key, "client": client} for client, key in keys.items()],
            key_sources=[{"header": HEADER}, {"header": "Authorization"}],
            forwarding={"header": CLIENT_HEADER, "hide_credentials": True},
        ),
    }


def read_keys(path: Path) -> dict[str, str]:
    """Keys by client name, from a YAML file.

    Raises:
        InputError: it cannot be read, has none, or one is no text, too short or there twice. No text of an
            error holds a key.
    """
    content = read_yaml(path)
    if not isinstance(content, dict) or not content:
        raise InputError("should hold a key for each client, `client name: key`", file=str(path))
    keys: dict[str, str] = {}
    for client, key in content.items():
        name = str(client)
        if not isinstance(client, str) or not isinstance(key, str):
            raise InputError("client and key should be text; put them in quotes", key=name, file=str(path))
        if len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
            text = f"the key should have at least {SHORTEST} characters, without spaces"
            raise InputError(text, key=name, file=str(path))
        if key in keys.values():
            raise InputError("another client has the same key", key=name, file=str(path))
        keys[name] = key
    return keys
