"""Configuration of a Prometheus that scrapes a fleet, with the labels that `prometheus` relies on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from . import edges
from .targets import Machine


def scrape_config(targets: Mapping[Machine, str], interval_s: float = 2.0) -> dict[str, Any]:
    """Content of a `prometheus.yml`.

    Args:
        targets: as of `targets.targets`.
        interval_s: well below `stale_after_s`, or the table is frozen between two scrapes.
    """
    jobs: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for machine, url in sorted(targets.items()):
        parts = urlsplit(url)
        static = jobs.setdefault((machine.tier, parts.scheme, parts.path), [])
        static.append({"targets": [parts.netloc], "labels": {"region": machine.region}})
    return {
        "global": {"scrape_interval": _duration(interval_s), "scrape_timeout": _duration(interval_s)},
        "scrape_configs": [
            {
                "job_name": f"stillmotion-{tier}" + (f"-{number}" if number else ""),
                "scheme": scheme,
                "metrics_path": path,
                **({"params": {"filter": [edges.FILTER]}} if tier == "edge" else {}),
                # A server's own label `region`, in stillmotion_model_info, must not win over where it stands.
                "honor_labels": False,
                "static_configs": static,
            }
            for number, ((tier, scheme, path), static) in enumerate(jobs.items())
        ],
    }


def _duration(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"
