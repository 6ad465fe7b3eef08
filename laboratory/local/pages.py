"""What a proxy's page says now, as the control loop reads it."""

from __future__ import annotations

import math
import time

import httpx

from routing.metrics.pages import page_url, read_page
from routing.metrics.proxies import Dispatcher
from routing.metrics.reading import Page, Target


def read(client: httpx.Client, proxy: Target, address: str) -> Page | None:
    """Return a proxy's page, or None where it cannot be had.

    Args:
        client: that asks.
        proxy: whose page it is.
        address: of the page, with scheme and port.
    """
    try:
        return read_page(proxy, time.monotonic(), client.get(page_url(proxy, address)).text, [])
    except (httpx.HTTPError, ValueError):
        return None


def dispatcher_now(client: httpx.Client, region: str, address: str) -> Dispatcher | None:
    """Return a dispatcher's ready servers, jobs in service and queue, or None where its page cannot be had."""
    found = Dispatcher(Target(region, "dispatcher", address))
    page = read(client, found.proxy, address)
    if page is not None:
        found.take(page, math.inf, [])
    return found if found.heard_at is not None else None
