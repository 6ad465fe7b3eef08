"""A rate limit for each API key, counted by each edge for itself."""

from __future__ import annotations

from math import ceil
from typing import Any

from ..jobs import RateLimit
from .keys import CLIENT_HEADER
from .messages import Message, extension, header, seconds, typed

_FILTER = "envoy.filters.http.local_ratelimit"
_KIND = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
_CLIENT = "client"
_MOST = 1_000_000  # of what is no client's: keys are asked for before


def limit_filter() -> Message:
    """Return the filter, for the chain of an edge; after the keys, which say who the client is."""
    return extension(_FILTER, _KIND, stat_prefix="clients")


def client_descriptors() -> list[Message]:
    """Return what the route of jobs counts by (`rate_limits`): the client."""
    return [{"actions": [{"request_headers": {"header_name": CLIENT_HEADER, "descriptor_key": _CLIENT}}]}]


def job_limits(limit: RateLimit) -> Message:
    """Return the filter's configuration for the route of jobs: a token bucket for each client."""
    buckets: list[dict[str, Any]] = [_bucket(limit, limit.clients[name], name) for name in limit.clients]
    configured = typed(
        _KIND,
        stat_prefix="clients",
        filter_enabled={"default_value": {"numerator": 100}},
        filter_enforced={"default_value": {"numerator": 100}},
        token_bucket={"max_tokens": _MOST, "tokens_per_fill": _MOST, "fill_interval": seconds(1)},
        always_consume_default_token_bucket=False,
        descriptors=[*buckets, _bucket(limit, limit.rps, None)],
        response_headers_to_add=[header("retry-after", str(max(1, ceil(1 / limit.rps))))],
    )
    return {_FILTER: configured}


def _bucket(limit: RateLimit, rps: float, client: str | None) -> dict[str, Any]:
    """Return the bucket of one client, or that which each of the others has."""
    size = max(1, round(limit.burst * rps / limit.rps))
    # Envoy fills in whole tokens: one at a time, or some each 50 ms, which is as often as it takes.
    tokens = max(1, ceil(rps * 0.05))
    entry = {"key": _CLIENT} if client is None else {"key": _CLIENT, "value": client}
    bucket = {"max_tokens": max(size, tokens), "tokens_per_fill": tokens, "fill_interval": seconds(tokens / rps)}
    return {"entries": [entry], "token_bucket": bucket}
