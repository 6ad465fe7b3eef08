"""Metrics from a Prometheus that scrapes the proxies: the same pages, put together from its series.

Rates are not asked of it: between readings they are made by the code that makes them for pages, with the same care.
So all that is asked is the newest reading of each series, and how old it is by Prometheus' own clock; a few series a
dispatcher and an edge, however many GPUs there are.

Each proxy needs the label `region`. `instance` is its name within the region; its series tell what it is.
`scrape_config` is for that Prometheus.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import httpx

from ..fleet import Fleet
from .observation import Kind, Page, Reading, Sample, ScrapeProblem, Target, Tier, checked
from .proxies import CANDIDATE, GPUS, SERIES
from .settings import PrometheusServer

RANGE_S = 60
"""How far back readings are looked for. Older ones are stale by any measure, and Prometheus forgets them too."""
FUTURE_S = 1.0
"""Readings may be from so much after the query, since clocks of one machine are not read at the same time."""

_ENVOYS = 'envoy_cluster_name=~"jobs|",envoy_http_conn_manager_prefix=~"edge|"'
_OWN_LABELS: Mapping[Tier, str] = {"dispatcher": f'proxy=~"{GPUS}|{CANDIDATE}|"', "edge": _ENVOYS}
"""What series of a tier have; an empty alternative is for those that have no such label."""

ENVOY_FILTER = (
    r"^cluster\.jobs\.(upstream_rq_(completed|retry|active|active_overflow|total)$|membership_|update_(rejected|success)$"
    r"|zone\..*\.upstream_rq_([0-9]+|[0-9]xx)$)"
    r"|^vhost\.edge\.route\.jobs\.upstream_rq_([0-9]+|completed|retry)$"
    r"|^http\.edge\.(downstream_(rq_(active|rx_reset|time|total)|cx_active)|fault\.delays_injected"
    r"|rq_overload_local_reply)$"
    r"|^overload\..*\.pressure$"
    r"|^server\.(uptime|live|memory_physical_size|days_until_first_cert_expiring)$"
)
"""Of Envoy's own names, those that rules and dashboards use: a page has 6 KB with it, and 140 KB without."""
_PARAMETERS: Mapping[str, dict[str, list[str]]] = {
    "edge": {"filter": [ENVOY_FILTER]},
    "dispatcher": {"scope": ["global", "frontend", "backend"]},  # no series of single GPU servers
}


class PrometheusSource:
    """Asks a Prometheus.

    Args:
        fleet: with its time limit.
        server: where it is, and how to get in.
        base: folder that its files are seen from.
        transport: of httpx, for tests.
        clock: seconds of a monotonic clock.
    """

    def __init__(
        self,
        fleet: Fleet,
        server: PrometheusServer,
        base: Path = Path(),
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._clock, self._server, self._base = clock, server, base
        self._regions = frozenset(fleet.names)
        self._url = f"{server.url}/api/v1/query"
        self._limit_s = fleet.metrics.time_limit_s
        self._queries = [
            f'{{__name__=~"{"|".join(sorted(SERIES[tier]))}",{labels}}}[{RANGE_S}s]'
            for tier, labels in _OWN_LABELS.items()
        ]
        self._client = httpx.AsyncClient(timeout=self._limit_s, trust_env=False, transport=transport)

    async def read(self) -> Reading:
        """One round."""
        where = f"prometheus {urlsplit(self._url).hostname}:{httpx.URL(self._url).port or ''}".rstrip(":")
        try:
            headers = self._headers()
            async with asyncio.timeout(self._limit_s):
                asked_at = self._clock()
                clock, *readings = await asyncio.gather(
                    *(self._ask(query, headers) for query in ("time()", *self._queries))
                )
                at = (asked_at + self._clock()) / 2
            return self._reading([one for found in readings for one in found], float(clock[0]), at)
        except (TimeoutError, httpx.TimeoutException):
            kind, text = Kind.LATE, f"no answer within {self._limit_s:g} s"
        except httpx.HTTPError as error:
            kind, text = Kind.FAILED, f"{type(error).__name__} {error}"
        except OSError as error:
            kind, text = Kind.FAILED, f"{error.filename}: {error.strerror}"
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            kind, text = Kind.UNREADABLE, f"{type(error).__name__} {error}"
        return Reading(problems=(ScrapeProblem(kind, where, " ".join(text.split())[:200]),))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def _headers(self) -> dict[str, str]:
        # Read anew each time: tokens of managed services last an hour.
        server, found = self._server, {}
        if server.token_file is not None:
            found["Authorization"] = f"Bearer {self._secret(server.token_file)}"
        if server.username is not None and server.password_file is not None:
            both = f"{server.username}:{self._secret(server.password_file)}".encode()
            found["Authorization"] = f"Basic {base64.b64encode(both).decode()}"
        if server.tenant is not None:
            found[server.tenant_header] = server.tenant
        return found

    def _secret(self, path: str) -> str:
        return (self._base / path).read_text(encoding="utf-8").strip()

    async def _ask(self, query: str, headers: Mapping[str, str]) -> Any:
        answer = await self._client.get(self._url, params={"query": query}, headers=dict(headers))
        if answer.status_code != httpx.codes.OK:
            raise ValueError(f"status {answer.status_code}: {answer.text[:100]}")
        content = answer.json()
        if content["status"] != "success":
            raise ValueError(str(content.get("error", "no success")))
        return content["data"]["result"]

    def _reading(self, series: list[Any], its_now: float, at: float) -> Reading:
        problems: list[ScrapeProblem] = []
        found: dict[Target, list[tuple[float, Sample]]] = {}
        for proxy, name, labels, stamp, value in self._each(series, problems):
            if stamp > its_now + FUTURE_S:
                text = f"is from {stamp - its_now:.0f} s after the query; taken as not there"
                problems.append(ScrapeProblem(Kind.FROM_THE_FUTURE, f"{proxy} {name}", text))
                continue
            sample = checked(proxy, name, labels, value)
            if isinstance(sample, ScrapeProblem):
                problems.append(sample)
            else:
                found.setdefault(proxy, []).append((stamp, sample))
        pages = []
        for proxy, samples in sorted(found.items(), key=lambda item: item[0]):
            # A series that the last scrape did not have any more is older than the others.
            newest = max(stamp for stamp, _ in samples)
            page = tuple(sample for stamp, sample in samples if stamp == newest)
            pages.append(Page(proxy, at - max(0.0, its_now - newest), page, newest))
        return Reading(tuple(pages), (), tuple(problems))

    def _each(
        self, series: list[Any], problems: list[ScrapeProblem]
    ) -> Iterator[tuple[Target, str, Mapping[str, str], float, float]]:
        """Newest reading of each series, by proxy."""
        # Other Envoys and HAProxies may have these series too: only ours have these labels. A name is one of a region.
        own = {
            (one["metric"].get("region"), one["metric"].get("instance"))
            for one in series
            if one["metric"].get("envoy_http_conn_manager_prefix") == "edge" or one["metric"].get("proxy") == GPUS
        }
        nowhere: set[str] = set()
        for one in series:
            labels: Mapping[str, str] = one["metric"]
            name, instance, region = labels["__name__"], labels.get("instance", "?"), labels.get("region", "")
            if (labels.get("region"), labels.get("instance")) not in own:
                continue
            if region not in self._regions:
                nowhere.add(f"{instance} with {region!r}")
                continue
            stamp, value = one["values"][-1]
            tier: Tier = "edge" if name in SERIES["edge"] else "dispatcher"
            yield Target(region, tier, instance), name, labels, float(stamp), float(value)
        text = "the label region names none of the fleet's; left out"
        problems += [ScrapeProblem(Kind.NO_REGION, where, text) for where in sorted(nowhere)]


@dataclass(frozen=True)
class MorePage:
    """A page of counters that is none of those that the control loop reads.

    Attributes:
        tier: control or agent.
        region: where it is; empty: nowhere, as a control loop.
        url: of it.
    """

    tier: str
    region: str
    url: str


def scrape_config(
    targets: Mapping[Target, str], interval_s: float = 2.0, more: Iterable[MorePage] = (), rules: Iterable[str] = ()
) -> dict[str, Any]:
    """Content of a `prometheus.yml`.

    Args:
        targets: as of `pages.targets`.
        interval_s: well below `stale_after_s`, or the table is frozen between two scrapes.
        more: further pages, for rules and dashboards.
        rules: files of rules.
    """
    jobs: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    pages = [MorePage(proxy.tier, proxy.region, url) for proxy, url in sorted(targets.items())]
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
                **({"params": _PARAMETERS[tier]} if tier in _PARAMETERS else {}),
                # A server's own label `region`, in stillmotion_model_info, must not win over where it stands.
                "honor_labels": False,
                "static_configs": static,
            }
            for number, ((tier, scheme, path), static) in enumerate(jobs.items())
        ],
    }


def _duration(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"
