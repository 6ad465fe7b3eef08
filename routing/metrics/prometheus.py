"""Metrics from a Prometheus that scrapes the machines: the same pages, put together from its series.

Rates are not asked of it: between readings they are made by the code that makes them for machines, with the same
care. So all that is asked is the newest reading of each series, and how old it is by Prometheus' own clock.

Each machine needs the label `region`. `instance` is its name; its series tell what it is (`scrape_config`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from time import monotonic
from typing import Any

import httpx

from ..fleet import Fleet
from . import edges, servers
from .oddities import Kind, Oddity
from .reading import Page, Reading, Sample, sound
from .targets import Machine, Tier

RANGE_S = 60
"""How far back readings are looked for. Older ones are stale by any measure, and Prometheus forgets them too."""
FUTURE_S = 1.0
"""Readings may be from so much after the query, since clocks of one machine are not read at the same time."""


class PrometheusSource:
    """Asks a Prometheus.

    Args:
        fleet: with its load metrics and time limit.
        url: of the Prometheus, without `/api`.
        transport: of httpx, for tests.
        clock: seconds of a monotonic clock.
    """

    def __init__(
        self,
        fleet: Fleet,
        url: str,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._clock = clock
        self._regions = frozenset(fleet.names)
        self._url = f"{url}/api/v1/query"
        self._limit_s = fleet.metrics.time_limit_s
        wanted = servers.series(fleet.metrics.load) | edges.SERIES
        self._query = f'{{__name__=~"{"|".join(sorted(wanted))}"}}[{RANGE_S}s]'
        self._client = httpx.AsyncClient(timeout=self._limit_s, trust_env=False, transport=transport)

    async def read(self) -> Reading:
        """One round."""
        where = f"prometheus {httpx.URL(self._url).netloc.decode()}"
        try:
            async with asyncio.timeout(self._limit_s):
                asked_at = self._clock()
                clock, readings = await asyncio.gather(self._ask("time()"), self._ask(self._query))
                at = (asked_at + self._clock()) / 2
            its_now = float(clock[0])
            return self._reading(readings, its_now, at)
        except (TimeoutError, httpx.TimeoutException):
            kind, text = Kind.LATE, f"no answer within {self._limit_s:g} s"
        except httpx.HTTPError as error:
            kind, text = Kind.FAILED, f"{type(error).__name__} {error}"
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            kind, text = Kind.UNREADABLE, f"{type(error).__name__} {error}"
        return Reading(oddities=(Oddity(kind, where, " ".join(text.split())[:200]),))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _ask(self, query: str) -> Any:
        answer = await self._client.get(self._url, params={"query": query})
        if answer.status_code != httpx.codes.OK:
            raise ValueError(f"status {answer.status_code}: {answer.text[:100]}")
        content = answer.json()
        if content["status"] != "success":
            raise ValueError(str(content.get("error", "no success")))
        return content["data"]["result"]

    def _reading(self, series: list[Any], its_now: float, at: float) -> Reading:
        oddities: list[Oddity] = []
        found: dict[Machine, list[tuple[float, Sample]]] = {}
        for machine, name, labels, stamp, value in self._each(series, oddities):
            if stamp > its_now + FUTURE_S:
                text = f"is from {stamp - its_now:.0f} s after the query; taken as not there"
                oddities.append(Oddity(Kind.FROM_THE_FUTURE, f"{machine} {name}", text))
                continue
            checked = sound(machine, name, labels, value)
            if isinstance(checked, Oddity):
                oddities.append(checked)
            else:
                found.setdefault(machine, []).append((stamp, checked))
        pages = []
        for machine, samples in sorted(found.items(), key=lambda item: item[0]):
            # A series that the last scrape did not have any more is older than the others.
            newest = max(stamp for stamp, _ in samples)
            page = tuple(sample for stamp, sample in samples if stamp == newest)
            pages.append(Page(machine, at - max(0.0, its_now - newest), page, newest))
        return Reading(tuple(pages), (), tuple(oddities))

    def _each(
        self, series: list[Any], oddities: list[Oddity]
    ) -> Iterator[tuple[Machine, str, Mapping[str, str], float, float]]:
        """Newest reading of each series, by machine."""
        # All Envoys have these series; what is counted here is what users sent, which only edges see.
        faces_users = {
            one["metric"].get("instance")
            for one in series
            if one["metric"].get("envoy_http_conn_manager_prefix") == "edge"
        }
        nowhere: set[str] = set()
        for one in series:
            labels: Mapping[str, str] = one["metric"]
            name, instance, region = labels["__name__"], labels.get("instance", "?"), labels.get("region", "")
            tier: Tier = "edge" if name in edges.SERIES else "gpu"
            if tier == "edge" and instance not in faces_users:
                continue
            if region not in self._regions:
                nowhere.add(f"{instance} with {region!r}")
                continue
            stamp, value = one["values"][-1]
            yield Machine(region, tier, instance), name, labels, float(stamp), float(value)
        text = "the label region names none of the fleet's; left out"
        oddities += [Oddity(Kind.NO_REGION, where, text) for where in sorted(nowhere)]
