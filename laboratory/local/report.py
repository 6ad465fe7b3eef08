"""How a fleet on this machine is: processes, regions, table. For people and as JSON."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from routing.envoy.edge import JOBS
from routing.errors import RoutingError
from routing.metrics.observation import Page, Target
from routing.metrics.pages import page_url, read_page
from routing.metrics.proxies import COMPLETED, RETRIES, Dispatcher

from .processes import of_fleet, runs
from .records import ABOUT, STATE, WANTED, About, Component, Kind, RegionAbout, Running, read_state, read_wanted

_LIMIT_S = 20.0


def report(folder: Path) -> dict[str, Any]:
    """How the fleet of a folder is.

    Raises:
        RoutingError: none runs there.
    """
    folder = folder.resolve()
    about, state = About.read(folder), read_state(folder)
    if runs(folder) and (about is None or state is None):
        what = f"{ABOUT if about is None else STATE} is missing or damaged, if it is not just starting"
        text = f"a fleet runs there, and its {what}; `fleet down --dir {folder}` ends it"
        raise RoutingError(f"{folder}: {text}")
    if about is None or state is None:
        raise RoutingError(f"{folder}: no fleet runs there")
    if not runs(folder):
        raise RoutingError(
            f"{folder}: the fleet has crashed; `fleet down` removes what is left, `fleet up` does so too"
        )
    kinds = {one.name: (one.kind, one.region) for one in _wanted(folder)}
    parts = [_part(folder, one, *kinds[one.name]) for one in state.components if one.name in kinds]
    with httpx.Client(timeout=_LIMIT_S, trust_env=False) as client:
        loop = _json(client, f"{about.control}/status.json") if about.control else {}
        regions = {name: _region(client, name, one, loop) for name, one in about.regions.items()}
    return {
        "folder": str(folder),
        "fleet": about.fleet_file,
        "phase": state.phase,
        "servers": about.servers,
        "service_time": about.service_time,
        "model": about.model,
        "started_at": about.started_at,
        "control": about.control,
        "prometheus": about.prometheus,
        "table_version": loop.get("version"),
        "frozen": _frozen(loop) if about.control else "",
        "path": about.path,
        "regions": regions,
        "supervisor": {"pid": state.pid, "alive": of_fleet(state.pid, folder) is not None},
        "parts": parts,
        "versions": dict(about.versions),
    }


def _wanted(folder: Path) -> tuple[Component, ...]:
    try:
        return read_wanted(folder)
    except (OSError, ValueError):
        text = f"is missing or damaged; `fleet down --dir {folder}` ends the fleet"
        raise RoutingError(f"{folder / WANTED}: {text}") from None


def lines(found: Mapping[str, Any]) -> list[str]:
    """A report for people."""
    kind = found["servers"] if not found["service_time"] else f"{found['servers']}, {found['service_time']} s a job"
    table = "no control loop" if not found["control"] else f"table {found['table_version'] or '-'}"
    head = f"{found['fleet']}: {found['phase']} since {found['started_at']}; GPU servers: {kind}; {table}"
    rows = [["region", "edge", found["servers"], "load", "waiting", "demand", "served at home", "attempts", "delayed"]]
    for name, one in found["regions"].items():
        ready = f"{one['gpus_ready'] if one['gpus_ready'] is not None else '?'} of {one['gpus']} ready"
        demand = _text(one["demand_rps"], "{:.1f} rps")
        home = _text(one["shares"].get(name), "{:.1%}") if one["shares"] else "-"
        attempts, delayed = _text(one["attempts"], "{:.2f}"), _text(one["delay_share"], "{:.0%}")
        rows.append(
            [
                name,
                one["edge"],
                ready,
                _text(one["load"], "{:.0%}"),
                _text(one["waiting"], "{:.0f}"),
                demand,
                home,
                attempts,
                delayed,
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    result = [
        head,
        "",
        *("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows),
    ]
    result += ["", *_shares(found["regions"])]
    if found["frozen"]:
        result += ["", f"the table does not change: {found['frozen']}"]
    ill = [part for part in found["parts"] if part["pid"] is None or part["restarts"]]
    for part in ill:
        now = f"process {part['pid']}" if part["pid"] is not None else "does not run now"
        result.append(f"{part['name']}: started {part['restarts'] + 1} times, last ended with {part['exit']}; {now}")
    if found["control"]:
        result += ["", f"control loop: {found['control']}/"]
    if found["prometheus"]:
        result.append(f"Prometheus: {found['prometheus']}/")
    return result


def _frozen(loop: Mapping[str, Any]) -> str:
    """Why the table does not follow the traffic, or nothing."""
    return str(loop.get("failure") or loop.get("frozen") or "") if loop else "the control loop does not answer"


def _shares(regions: Mapping[str, Any]) -> Iterator[str]:
    """Where each region's requests go."""
    for name, one in regions.items():
        row = sorted(one["shares"].items(), key=lambda item: -item[1])
        if row:
            yield f"{name} to " + ", ".join(f"{to} {share:.1%}" for to, share in row if share > 0)


def _part(folder: Path, one: Running, kind: Kind, region: str) -> dict[str, Any]:
    return {
        "name": one.name,
        "kind": kind,
        "region": region,
        "pid": one.pid if of_fleet(one.pid, folder) else None,
        "restarts": max(0, one.starts - 1),
        "exit": one.exit_status,
    }


def _region(client: httpx.Client, name: str, about: RegionAbout, loop: Mapping[str, Any]) -> dict[str, Any]:
    seen: Mapping[str, Any] = loop.get("regions", {}).get(name, {})
    ready = active = waiting = None
    if about.dispatcher_admin and (dispatcher := dispatcher_now(client, name, about.dispatcher_admin)):
        ready, active, waiting = dispatcher.ready, round(dispatcher.in_service), round(dispatcher.waiting)
    jobs = attempts = None
    if edge := read(client, Target(name, "edge", about.edge_admin), about.edge_admin):
        jobs = round(edge.total(COMPLETED, envoy_cluster_name=JOBS) or 0)
        attempts = 1 + (edge.total(RETRIES, envoy_cluster_name=JOBS) or 0) / jobs if jobs else None
    return {
        "edge": about.edge,
        "gpus": len(about.gpu_servers),
        "gpus_ready": ready if about.gpu_servers else 0,
        "computing": active,
        "waiting": waiting,
        "load": seen.get("load"),
        "demand_rps": seen.get("demand_rps"),
        "capacity_rps": seen.get("capacity_rps"),
        "shares": loop.get("shares", {}).get(name, {}),
        "delay_share": seen.get("delay_share"),
        "burst": seen.get("burst", ""),
        "jobs": jobs,
        "attempts": attempts,
        "edge_admin": about.edge_admin,
        "dispatcher": about.dispatcher,
        "dispatcher_admin": about.dispatcher_admin,
        "gpu_servers": dict(about.gpu_servers),
    }


def _json(client: httpx.Client, url: str) -> dict[str, Any]:
    try:
        content = client.get(url).json()
    except (httpx.HTTPError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


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
