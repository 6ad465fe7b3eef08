"""The status page: one HTML document without anything from elsewhere, made anew for each look."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from ..table import Move
from .status import RegionStatus, Status

_REFRESH_S = 3
_DASH = "–"

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --good: #2a7d46; --warn: #b26a00; --bad: #b3261e; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.35rem; margin: 0 0 .25rem; } h2 { font-size: 1.05rem; margin: 1.75rem 0 .5rem; }
p { margin: .25rem 0; } .soft { opacity: .7; }
.state { border-left: .4rem solid var(--good); background: var(--soft); padding: .5rem .8rem; margin: .8rem 0; }
.state.warn { border-color: var(--warn); } .state.bad { border-color: var(--bad); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td.text { text-align: left; } td.text { white-space: normal; } thead th { font-weight: 600; }
tbody th { font-weight: 500; text-align: left; }
td.share { background: color-mix(in srgb, #3b7dd8 calc(var(--share) * 55%), transparent); }
small { opacity: .75; display: block; } meter { width: 6rem; vertical-align: middle; }
.tag { border-radius: .6rem; padding: 0 .5rem; color: #fff; background: var(--warn); font-size: .85em; }
.tag.bad { background: var(--bad); }
ul { margin: .25rem 0; padding-left: 1.2rem; } time { opacity: .7; margin-right: .5rem; }
"""


def render(status: Status) -> str:
    """The page.

    Args:
        status: as of `status.status`.
    """
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width, initial-scale=1">',
        f"<meta http-equiv=refresh content={_REFRESH_S}><title>Traffic between regions</title>",
        f"<style>{_STYLE}</style></head><body><main>",
        "<h1>Traffic between regions</h1>",
        f"<p>Table <b>{status.version}</b>, published {escape(status.generated_at[:19].replace('T', ' '))} UTC. ",
        f"<span class=soft>{status.rounds} rounds of {status.interval_s:g} s, {status.failed_rounds} failed. ",
        "The same as <a href=/status.json>JSON</a>, or <a href=/metrics>for Prometheus</a>.</span></p>",
        _state(status),
        f"<p class='state warn' role=status><b>Switched:</b> {escape(status.switches)}.</p>" if status.switches else "",
        _regions(status.regions),
        _shares(status),
        _list(
            "Why traffic is moved", (_move(move) for move in reversed(status.moves[-30:])), "All traffic is at home."
        ),
        _list(
            "Held back",
            (f"<b>{escape(source)}</b>: {escape(why)}" for source, why in status.held.items()),
            "Nothing: each row is at its target, or on its way.",
        ),
        _list("What is wrong with metrics", (_problem(one) for one in status.problems[:50]), "Nothing."),
        _list("Latest events", (_event(one) for one in status.recent), "None."),
        "</main></body></html>",
    ]
    return "".join(parts)


def _state(status: Status) -> str:
    age = status.seconds_since_last_good_round
    if status.failure:
        return f"<p class='state bad' role=status><b>The last round failed.</b> {escape(status.failure)}</p>"
    if status.frozen:
        return f"<p class='state warn' role=status><b>Frozen:</b> {escape(status.frozen)}. The last table stays.</p>"
    if status.not_ready:
        return f"<p class='state warn' role=status><b>Not ready:</b> {escape(status.not_ready)}.</p>"
    if age is None:
        return "<p class='state warn' role=status><b>Starting:</b> no round has ended yet.</p>"
    way = "" if status.step >= 1 else f" On its way: {status.step:.0%} of the rest in the last step."
    return f"<p class=state role=status><b>The table follows the traffic.</b> Last round {age:.1f} s ago.{way}</p>"


def _regions(regions: Mapping[str, RegionStatus]) -> str:
    head = "".join(
        f"<th scope=col>{text}</th>"
        for text in (
            "Region",
            "Load now",
            "Waiting",
            "Planned load",
            "Demand, rps",
            "Capacity, rps",
            "Ready GPUs",
            "One rps more",
            "Attempts",
            "Delayed jobs",
        )
    )
    rows = "".join(_region(name, region) for name, region in regions.items())
    note = "<p class=soft>Load above the threshold makes a region send its overflow to others.</p>"
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f"<h2>Regions</h2><div class=scroll>{table}</div>{note}"


def _region(name: str, region: RegionStatus) -> str:
    tags = ""
    if region.stale:
        tags += " <span class='tag bad'>not heard of</span>"
    if region.edge_gone:
        tags += " <span class='tag bad'>no edge</span>"
    if region.burst:
        tags += f" <span class=tag title='{escape(region.burst, quote=True)}'>burst</span>"
    if region.drained:
        tags += " <span class=tag>drained</span>"
    missing = f"<small>{region.gpus_missing} missing</small>" if region.gpus_missing else ""
    ready = _DASH if region.gpus_ready is None else str(region.gpus_ready)
    assumed = "" if region.capacity_measured else "<small>assumed</small>"
    cells = (
        _meter(region.load, region.threshold),
        _DASH if region.waiting is None else f"{region.waiting:.0f}",
        f"{_share(region.planned_load)}<small>threshold {_share(region.threshold)}</small>",
        f"{_number(region.demand_rps)}<small>now {_number(region.demand_now_rps)}</small>",
        f"{_number(region.capacity_rps)}{assumed}",
        f"{ready} of {region.gpus}{missing}",
        _DASH if region.load_per_rps is None else f"+{100 * region.load_per_rps:.1f} %",
        _number(region.attempts),
        _share(region.delay_share),
    )
    return f"<tr><th scope=row>{escape(name)}{tags}</th>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _shares(status: Status) -> str:
    names = list(status.shares)
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in names)
    rows = []
    for source in names:
        row, target = status.shares[source], status.targets.get(source, status.shares[source])
        cells = []
        for to in names:
            share, aim = row.get(to, 0.0), target.get(to, 0.0)
            text = f"{100 * share:.1f}" if share else _DASH
            aimed = f"<small>to {100 * aim:.1f}</small>" if abs(aim - share) >= 0.0005 else ""
            cells.append(f"<td class=share style='--share:{share:.3f}'>{text}{aimed}</td>")
        rows.append(f"<tr><th scope=row>{escape(source)}</th>{''.join(cells)}</tr>")
    table = f"<table><thead><tr><th scope=col>Users of</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    note = "<p class=soft>Below a share is what is aimed at, where that is another.</p>"
    return f"<h2>Who is served where, in percent</h2><div class=scroll>{table}</div>{note}"


def _list(title: str, items: Iterable[str], none: str) -> str:
    found = "".join(f"<li>{item}</li>" for item in items)
    return f"<h2>{title}</h2>" + (f"<ul>{found}</ul>" if found else f"<p class=soft>{none}</p>")


def _move(move: Move) -> str:
    return f"<b>{move.rps:.2f} rps {escape(move.source)} to {escape(move.to)}</b>: {escape(move.why)}"


def _problem(one: Mapping[str, str]) -> str:
    return f"<b>{escape(one['kind'])}</b> {escape(one['where'])}: {escape(one['text'])}"


def _event(one: Mapping[str, Any]) -> str:
    return f"<time>{escape(one['at'][11:19])}</time><b>{escape(one['event'])}</b> {escape(one['text'])}"


def _meter(load: float | None, threshold: float) -> str:
    if load is None:
        return _DASH
    return (
        f"<meter min=0 max=1 low={threshold:g} high=0.95 optimum=0 value={min(load, 1.0):.3f}></meter> {_share(load)}"
    )


def _share(value: float | None) -> str:
    return _DASH if value is None else f"{100 * value:.0f} %"


def _number(value: float | None) -> str:
    return _DASH if value is None else f"{value:.2f}"
