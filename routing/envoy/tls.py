"""Certificates: between users and edges, and between edges and dispatchers.

Envoy reads them through secret files, whose folder it watches: a renewed certificate is in use without a restart.
"""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

from ..data_plane import Certificate, MutualTls, seen_from
from .messages import Message, extension, file_source

_KIND = "envoy.extensions.transport_sockets.tls.v3"
SECRET = f"{_KIND}.Secret"
_SOCKET = "envoy.transport_sockets.tls"
# Older versions than 1.2 are not safe (RFC 8996).
_PARAMETERS = {"tls_minimum_protocol_version": "TLSv1_2"}

USERS = "users"
PEERS = "peers"
AUTHORITY = "authority"


def users_socket(own: PurePath) -> Message:
    """For an edge's listener.

    Args:
        own: file of the certificate.
    """
    context = {**_own(USERS, own), "alpn_protocols": ["h2", "http/1.1"]}
    return extension(_SOCKET, f"{_KIND}.DownstreamTlsContext", common_tls_context=context)


def calling_socket(tls: MutualTls, own: PurePath, authority: PurePath) -> Message:
    """For an edge's cluster of dispatchers."""
    return extension(
        _SOCKET,
        f"{_KIND}.UpstreamTlsContext",
        **({"sni": tls.dispatcher_name} if tls.dispatcher_name else {}),
        common_tls_context={**_own(PEERS, own), **_checked(tls.dispatcher_name, authority), "alpn_protocols": ["h2"]},
    )


def authority_secret(tls: MutualTls, base: Path) -> Message:
    """The authority that edges and dispatchers check each other by; see `certificate_secret`."""
    path = seen_from(base, tls.ca)
    validation = {"trusted_ca": {"filename": str(path)}, "watched_directory": {"path": str(path.parent)}}
    return {"name": AUTHORITY, "validation_context": validation}


def certificate_secret(name: str, tls: Certificate, base: Path) -> Message:
    """A certificate, for a secret file. Such a file holds one secret.

    Args:
        name: `USERS` or `PEERS`.
        tls: with paths as seen from `base`.
        base: folder of the fleet file.
    """
    certificate, key = seen_from(base, tls.certificate), seen_from(base, tls.key)
    return {
        "name": name,
        "tls_certificate": {
            "certificate_chain": {"filename": str(certificate)},
            "private_key": {"filename": str(key)},
            "watched_directory": {"path": str(certificate.parent)},
        },
    }


def _own(name: str, secret: PurePath) -> dict[str, Any]:
    own = {"name": name, "sds_config": file_source(secret)}
    return {"tls_params": _PARAMETERS, "tls_certificate_sds_secret_configs": [own]}


def _checked(san: str | None, secret: PurePath) -> dict[str, Any]:
    authority = {"name": AUTHORITY, "sds_config": file_source(secret)}
    if san is None:
        return {"validation_context_sds_secret_config": authority}
    names = [{"san_type": "DNS", "matcher": {"exact": san}}]
    return {
        "combined_validation_context": {
            "default_validation_context": {"match_typed_subject_alt_names": names},
            "validation_context_sds_secret_config": authority,
        }
    }
