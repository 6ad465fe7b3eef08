"""Marginal delay, once a job: Envoy's fault filter in front of the router, where retries do not pass again.

A filter has one delay and draws for itself whether to apply it. So that delays spread over 0 to `max_s`, and a
share of 1 delays each job once, there are `STEPS` filters, each for the requests whose id ends in its two
hexadecimal digits: Envoy draws the id, and a request has one. All draw with the same probability.
"""

from __future__ import annotations

from typing import Any

from ..fleet import DelayPolicy
from .messages import Message, extension, seconds

STEPS = 8
_DIGITS = "0123456789abcdef"
_SHARE = "stillmotion.delay.share"
_MILLION = 1_000_000


def _duration_key(step: int) -> str:
    return f"stillmotion.delay.step_{step}_ms"


def filters(paths: str) -> list[Message]:
    """The filters; without runtime values they delay nothing.

    Args:
        paths: regular expression of the paths of jobs.
    """
    return [
        extension(
            f"stillmotion.delay.{step}",
            "envoy.extensions.filters.http.fault.v3.HTTPFault",
            delay={
                # Both are replaced by the runtime values; a delay of nothing is not allowed here.
                "fixed_delay": seconds(0.001),
                "percentage": {"numerator": 0, "denominator": "MILLION"},
            },
            delay_percent_runtime=_SHARE,
            delay_duration_runtime=_duration_key(step),
            headers=[
                _matches(":path", paths),
                _matches("x-request-id", f".*[{_DIGITS[2 * step : 2 * step + 2]}]"),
            ],
        )
        for step in range(STEPS)
    ]


def runtime_values(share: float, max_s: float) -> dict[str, Any]:
    """Runtime values that delay a share of the jobs by uniform(0, max_s), in `STEPS` steps.

    Step i waits (i + 1/2) / STEPS * max_s, so that the mean is max_s / 2.
    """
    values: dict[str, Any] = {_SHARE: {"numerator": round(share * _MILLION), "denominator": "MILLION"}}
    for step in range(STEPS):
        values[_duration_key(step)] = round((step + 0.5) / STEPS * max_s * 1000)
    return values


def resting(policy: DelayPolicy) -> dict[str, Any]:
    """Runtime values while no burst is seen."""
    return runtime_values(policy.share, policy.max_s)


def _matches(name: str, regex: str) -> Message:
    return {"name": name, "string_match": {"safe_regex": {"regex": regex}}}
