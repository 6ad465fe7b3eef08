"""Configuration of a Prometheus that scrapes a fleet, with the labels that `prometheus` and `deploy/` rely on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from .targets import Machine

ENVOY_FILTER = (
    r"^cluster\.jobs\.(upstream_rq_(completed|retry|active|active_overflow|total)$|membership_|update_(rejected|success)$"
    r"|zone\..*\.upstream_rq_([0-9]+|[0-9]xx)$)"
    r"|^vhost\.edge\.route\.jobs\.upstream_rq_([0-9]+|completed|retry)$"
    r"|^http\.(edge|ingress)\.(downstream_(rq_(active|rx_reset|time|total)|cx_active)|fault\.delays_injected"
    r"|rq_overload_local_reply)$"
    r"|^overload\..*\.pressure$"
    r"|^server\.(uptime|live|memory_physical_size|days_until_first_cert_expiring)$"
)
"""Of Envoy's own names, those that rules and dashboards use: a page has 6 KB with it, and 140 KB without."""


@dataclass(frozen=True)
class Page:
    """A page of counters that is none of the machines' which the control loop knows.

    Attributes:
        tier: ingress, control or follow.
        region: where it is; empty: nowhere, as a control loop.
        url: of it.
    """

    tier: str
    region: str
    url: str


def scrape_config(
    targets: Mapping[Machine, str], interval_s: float = 2.0, more: Iterable[Page] = (), rules: Iterable[str] = ()
) -> dict[str, Any]:
    """Content of a `prometheus.yml`.

    Args:
        targets: as of `targets.targets`.
        interval_s: well below `stale_after_s`, or the table is frozen between two scrapes.
        more: further pages, for rules and dashboards.
        rules: files of rules.
    """
    jobs: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    pages = [Page(machine.tier, machine.region, url) for machine, url in sorted(targets.items())]
    for page in [*pages, *more]:
        parts = urlsplit(page.url)
        static = jobs.setdefault((page.tier, parts.scheme, parts.path), [])
        labels = {"tier": page.tier, **({"region": page.region} if page.region else {})}
        static.append({"targets": [parts.netloc], "labels": labels})
    files = list(rules)
    return {
        "global": {
            "scrape_interval": _duration(interval_s),
            "scrape_timeout": _duration(interval_s),
            "evaluation_interval": _duration(interval_s),
        },
        **({"rule_files": files} if files else {}),
        "scrape_configs": [
            {
                "job_name": f"stillmotion-{tier}" + (f"-{number}" if number else ""),
                "scheme": scheme,
                "metrics_path": path,
                **({"params": {"filter": [ENVOY_FILTER]}} if tier in {"edge", "ingress"} else {}),
                # A server's own label `region`, in stillmotion_model_info, must not win over where it stands.
                "honor_labels": False,
                "static_configs": static,
            }
            for number, ((tier, scheme, path), static) in enumerate(jobs.items())
        ],
    }


def _duration(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"
