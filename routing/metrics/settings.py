"""The section `metrics` of `fleet.yaml`: where they are taken from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from ..schema import Items, Positive, RegionName, Strict, did_you_mean, wrong


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


class PrometheusServer(Strict):
    """A Prometheus, or what answers its queries: Thanos, Mimir, a managed one.

    Files hold one secret each, are seen from the fleet file, and are read again for each question.

    Attributes:
        url: of it, without `/api`.
        token_file: of a bearer token; None: none is sent.
        username, password_file: of basic authentication; None: there is none.
        tenant: sent in the header `tenant_header`; None: none.
    """

    url: Url
    token_file: Annotated[str, Field(min_length=1)] | None = None
    username: Annotated[str, Field(min_length=1)] | None = None
    password_file: Annotated[str, Field(min_length=1)] | None = None
    tenant: Annotated[str, Field(pattern=r"^[\x21-\x7e]+$")] | None = None
    tenant_header: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")] = "X-Scope-OrgID"

    @model_validator(mode="after")
    def _one_way_in(self) -> Self:
        if (self.username is None) != (self.password_file is None):
            key = "username" if self.username is None else "password_file"
            raise wrong(key, "is missing; basic authentication takes both")
        if self.username is not None and self.token_file is not None:
            raise wrong("token_file", "and username are two ways in; give one")
        return self


def _server(value: object) -> object:
    return {"url": value} if isinstance(value, str) else value


class Pages(Strict):
    """Where the proxies of a region tell of themselves.

    Attributes:
        dispatchers: their admin addresses; `/metrics` is added where there is no path.
        edges: Envoy's admin pages; `/stats/prometheus` is added where there is no path.
    """

    dispatchers: Annotated[tuple[Url, ...], Items] = ()
    edges: Annotated[tuple[Url, ...], Items] = ()

    def each(self) -> Iterator[tuple[str, str]]:
        """Each URL with its key."""
        for key, urls in (("dispatchers", self.dispatchers), ("edges", self.edges)):
            for i, url in enumerate(urls):
                yield f"{key}.{i}", url


class MetricsSettings(Strict):
    """Where metrics come from. None are asked of GPU servers: dispatchers count their jobs.

    Attributes:
        prometheus: one that scrapes all proxies, by its URL alone or with what it asks of who queries it; None: they
            are asked themselves.
        pages: by region.
        time_limit_s: after which a page that has not come is late. Below the loop's interval.
        cost_memory_s: time constant with which the cost of a request forgets.
        cost_prior_requests: `service_time_s` counts in that cost as much as so many requests.
    """

    prometheus: Annotated[PrometheusServer, BeforeValidator(_server)] | None = None
    pages: Mapping[RegionName, Pages] = {}
    time_limit_s: Positive = 1.0
    cost_memory_s: Positive = 300.0
    cost_prior_requests: Positive = 20.0

    def check(self, gpus: Mapping[str, int]) -> None:
        """See that the pages are of these regions, and each of one proxy.

        Raises:
            PydanticCustomError: with the key.
        """
        taken: dict[str, str] = {}
        for name, pages in self.pages.items():
            if name not in gpus:
                raise wrong(f"metrics.pages.{name}", f"is none of the regions{did_you_mean(name, gpus)}")
            for where, url in pages.each():
                key = f"metrics.pages.{name}.{where}"
                if url in taken:
                    raise wrong(key, f"{url} is {taken[url]} already; each proxy is in one region")
                taken[url] = key
