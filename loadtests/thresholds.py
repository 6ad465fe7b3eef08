"""Thresholds as k6 has them, for who has written them already: each is one of the objectives.

    thresholds:
      http_req_duration: ["p(95)<2000", "med<=900"]        # milliseconds, from when a request was due
      http_req_failed: ["rate<0.01"]
      "http_req_failed{region:us-east}": ["rate<0.02"]     # role or region of the users

A threshold is judged as its objective is: it fails when chance cannot explain what was measured.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from routing.errors import InputError
from routing.schema import did_you_mean

METRICS = ("http_req_duration", "http_req_failed")
_METRIC = re.compile(r"(?P<metric>\w+)(?:\{region:(?P<region>[\w.-]+)\})?")
_EXPRESSION = re.compile(r"\s*(?P<what>rate|med|p\((?P<percent>[0-9.]+)\))\s*<=?\s*(?P<limit>[0-9.]+)\s*")


def objectives(thresholds: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the objective of each threshold, as a scenario has it, and the key where it stands.

    Raises:
        InputError: a metric or an expression has no objective here; with the key.
    """
    for name, expressions in thresholds.items():
        found = _METRIC.fullmatch(name)
        metric = found["metric"] if found else name
        if found is None or metric not in METRICS:
            text = f"{name} is no metric with an objective here; known are {', '.join(METRICS)}, with {{region:NAME}}"
            raise InputError(f"{text}{did_you_mean(metric, METRICS)}", key="thresholds")
        about = {"regions": found["region"]} if found["region"] else {}
        for i, text in enumerate(expressions):
            key = f"thresholds.{name}.{i}"
            yield key, about | _objective(metric, text, key)


def _objective(metric: str, text: str, key: str) -> dict[str, Any]:
    found = _EXPRESSION.fullmatch(text)
    rate = metric == "http_req_failed"
    if found is None or (found["what"] == "rate") != rate:
        known = "rate<0.01" if rate else "p(95)<2000 or med<900, in milliseconds"
        raise InputError(f"{text} is no threshold that can be judged here, such as {known}", key=key)
    try:
        limit, percent = float(found["limit"]), float(found["percent"] or 50)
    except ValueError:
        raise InputError(f"{text} has no number where one should be", key=key) from None
    if rate:
        return {"kind": "failed", "at_most": limit}
    return {"kind": "latency", "quantile": percent / 100, "at_most_s": limit / 1000}
