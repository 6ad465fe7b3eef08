"""A page about a run: the verdict, the objectives, and shares over time. One file, which needs nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from routing.page import rendered

from .charts import COLOURS, FAILED, Chart, legend, stacked

_MOST_POINTS = 60


def page(result: Mapping[str, Any]) -> str:
    """Return the page of a run's document, as `result.document` makes it."""
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(result["regions"])}
    return rendered(
        Path(__file__).parent / "report.html.j2",
        result=result,
        facts=_facts(result),
        keys=legend([*colours.items(), ("failed", FAILED)]),
        charts=_over_time(result, colours),
    )


def _facts(result: Mapping[str, Any]) -> list[str]:
    fleet = result["fleet"]
    gpus = sum(one["gpus"] for one in fleet["regions"].values())
    what = "stand-ins for GPUs" if result["stand_ins"] else "GPUs"
    parts = [
        f"{result['requests']:,} requests in {result['seconds']:.0f} s",
        f"{len(fleet['regions'])} regions, {gpus} {what}",
        f"a job takes {fleet['service_time_s']:g} s",
        f"seed {result['seed']}",
    ]
    parts += [f"{role}: {', '.join(names) or 'nobody'}" for role, names in result["roles"].items()]
    tables = result["control"]["tables"]
    parts.append("no control loop was asked" if tables is None else f"{tables} tables published")
    return parts


def _over_time(result: Mapping[str, Any], colours: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Give each chart with its caption."""
    for name in colours:
        rows = _thinned([row for row in result["series"] if row["source"] == name], result["seconds"])
        if rows:
            yield f"{name}: share of its requests", _shares(result, name, rows, colours)
            yield f"{name}: latency, p50 and p95, and requests per second", _latency(result, name, rows)


def _shares(result: Mapping[str, Any], name: str, rows: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> str:
    chart = Chart(result["seconds"], 1.0, "%", f"shares of the requests of {name} over time")
    order = [name, *(other for other in colours if other != name), "failed"]
    shares = []
    for row in rows:
        counts = Counter(row["served"])
        counts["failed"] += row["failed"]
        total = counts.total()
        shares.append((row["at_s"], {key: count / total for key, count in counts.items()} if total else {}))
    for key, low, high in stacked(shares, order):
        chart.band(low, high, colours.get(key, FAILED))
    _spans(chart, result)
    chart.steps([(max(0.0, at), table.get(name, {}).get(name, 0.0)) for at, table in result["tables"]], "#000", "5 4")
    return chart.svg()


def _latency(result: Mapping[str, Any], name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    top = 1.15 * max([row["latency_p95_s"] for row in rows] + [result["fleet"]["service_time_s"]])
    chart = Chart(result["seconds"], top, "s", f"latency of the requests of {name} over time")
    _spans(chart, result)
    most = max([row["rps"] for row in rows] + [1e-9])
    chart.line([(row["at_s"], row["rps"] / most * top) for row in rows], "#b9c2cc")
    chart.line([(row["at_s"], row["latency_p50_s"]) for row in rows], "#0072B2")
    chart.line([(row["at_s"], row["latency_p95_s"]) for row in rows], "#D55E00")
    keys = legend([("p50", "#0072B2"), ("p95", "#D55E00"), (f"requests per second, at most {most:.1f}", "#b9c2cc")])
    return chart.svg() + keys


def _spans(chart: Chart, result: Mapping[str, Any]) -> None:
    scale = result["second_of_the_scenario_s"]
    for one in result["failures_of_regions"]:
        end = one["until_s"] * scale if "until_s" in one else result["seconds"]
        what = "slow" if one["slowness"] != 1.0 else "lost"
        chart.span(one["at_s"] * scale, end, f"{one['region']} is {what}")


def _thinned(rows: Sequence[Mapping[str, Any]], seconds: float) -> list[dict[str, Any]]:
    """Bins put together, so that a chart has few of them, with enough requests each to mean something."""
    if not rows:
        return []
    width = seconds / _MOST_POINTS
    found: dict[int, dict[str, Any]] = {}
    for row in rows:
        at = min(_MOST_POINTS - 1, int(row["at_s"] / width))
        one = found.setdefault(
            at,
            {"at_s": (at + 0.5) * width, "served": Counter(), "failed": 0, "due": 0, "p50": 0.0, "p95": 0.0, "ok": 0},
        )
        count = sum(row["served"].values())
        one["served"].update(row["served"])
        one["failed"] += row["failed"]
        one["due"] += row["due"]
        # The mean of medians, and the worst of the tails: what is drawn is a sketch, the tables have the figures.
        one["p50"] += row["latency_p50_s"] * count
        one["p95"] = max(one["p95"], row["latency_p95_s"])
        one["ok"] += count
    for one in found.values():
        one["rps"] = one["due"] / width
        one["latency_p50_s"] = one["p50"] / one["ok"] if one["ok"] else 0.0
        one["latency_p95_s"] = one["p95"]
    return [found[at] for at in sorted(found)]
