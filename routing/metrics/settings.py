"""The section `metrics` of `fleet.yaml`: where they are taken from, and what counts as load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from ..schema import Items, Positive, RegionName, Share, Strict, did_you_mean, wrong


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        usable = parts.scheme in {"http", "https"} and parts.hostname and (parts.port is None or parts.port > 0)
        usable = usable and not parts.query and not parts.fragment
    except ValueError:
        usable = False
    if not usable:
        raise PydanticCustomError("address", "should be an address such as http://10.1.0.5:9901")
    return text.rstrip("/")


Url = Annotated[str, AfterValidator(_url)]
"""Of HTTP or HTTPS, without query; the path may be left out."""
SeriesName = Annotated[str, Field(pattern=r"^[a-zA-Z_:][a-zA-Z0-9_:]*$")]


class LoadMetric(Strict):
    """A metric of GPU servers that says how loaded they are.

    Attributes:
        series: its name on `/metrics`.
        kind: `counter`, of which the growth per second counts, or `gauge`, which counts as it is.
        limit: at which a server is full.
        idle: share of the limit that a server without requests shows.
    """

    series: SeriesName
    kind: Literal["counter", "gauge"] = "counter"
    limit: Positive = 1.0
    idle: Annotated[Share, Field(lt=1)] = 0.0


class Pages(Strict):
    """Where the machines of a region tell of themselves.

    Attributes:
        gpu_servers: one for each GPU; `/metrics` is added where there is no path.
        edges: Envoy's admin pages; `/stats/prometheus` is added where there is no path.
    """

    gpu_servers: Annotated[tuple[Url, ...], Items] = ()
    edges: Annotated[tuple[Url, ...], Items] = ()

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        found: dict[str, str] = {}
        for key, urls in (("gpu_servers", self.gpu_servers), ("edges", self.edges)):
            for i, url in enumerate(urls):
                if url in found:
                    raise wrong(f"{key}.{i}", f"{url} is {found[url]} already")
                found[url] = f"{key}.{i}"
        return self


class MetricsSettings(Strict):
    """Where metrics come from.

    Attributes:
        prometheus: one that scrapes all machines; None: they are asked themselves.
        pages: by region.
        load: the metrics that count as load, by a name of your own. The one with the highest share decides.
        time_limit_s: after which a page that has not come is late. Below the loop's interval.
        cost_memory_s: time constant with which the cost of a request forgets.
        cost_prior_requests: `service_time_s` counts in that cost as much as so many requests.
    """

    prometheus: Url | None = None
    pages: Mapping[RegionName, Pages] = {}
    load: Annotated[Mapping[str, LoadMetric], Field(min_length=1)] = {
        "gpu": LoadMetric(series="stillmotion_busy_seconds_total")
    }
    time_limit_s: Positive = 1.0
    cost_memory_s: Positive = 300.0
    cost_prior_requests: Positive = 20.0

    def check(self, gpus: Mapping[str, int]) -> None:
        """See that the pages are of these regions, and as many as they have GPUs.

        Raises:
            PydanticCustomError: with the key.
        """
        taken: dict[str, str] = {}
        for name, pages in self.pages.items():
            if name not in gpus:
                raise wrong(f"metrics.pages.{name}", f"is none of the regions{did_you_mean(name, gpus)}")
            if pages.gpu_servers and len(pages.gpu_servers) != gpus[name]:
                key = f"metrics.pages.{name}.gpu_servers"
                raise wrong(key, f"are {len(pages.gpu_servers)}, and the region has {gpus[name]} GPUs")
            for kind, urls in (("gpu_servers", pages.gpu_servers), ("edges", pages.edges)):
                for i, url in enumerate(urls):
                    key = f"metrics.pages.{name}.{kind}.{i}"
                    if url in taken:
                        raise wrong(key, f"{url} is {taken[url]} already; each machine is in one region")
                    taken[url] = key
