"""A page about a run: the verdict, the objectives, and shares over time. One file, which needs nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .charts import COLOURS, FAILED, Chart, legend, stacked

_MOST_POINTS = 60
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .4rem; } p { margin: .3rem 0; }
.badge { display: inline-block; padding: .1rem .7rem; border-radius: 1rem; color: #fff; font-weight: 600; }
.badge.passed { background: #00704f; } .badge.failed { background: #B00020; } .badge.void { background: #6b4e00; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid #e3e7ec; vertical-align: top; }
th { font-weight: 600; } td.n, th.n { text-align: right; }
td:first-child { white-space: nowrap; } td.mark {  font-weight: 600; } tr.failed td.mark { color: #B00020; }
tr.passed td.mark { color: #00704f; } tr.not td { color: #5a6472; } .quiet { color: #5a6472; }
svg { width: 100%; height: auto; display: block; } svg text { font-size: 11px; fill: #5a6472; }
svg .grid { stroke: #0002; stroke-width: 1; } .key { margin-right: 1rem; white-space: nowrap; }
.key i { display: inline-block; width: .8rem; height: .8rem; margin-right: .35rem; vertical-align: -.05rem; }
figure { margin: .8rem 0 1.2rem; } figcaption { font-size: .9rem; } .scroll { overflow-x: auto; }
"""


def page(result: Mapping[str, Any]) -> str:
    """The page.

    Args:
        result: document of a run, as `result.document` makes it.
    """
    title = f"Load test: {result['scenario']}"
    parts = [
        f"<h1>{escape(title)} <span class='badge {result['verdict']}'>{result['verdict']}</span></h1>",
        f"<p>{escape(result['about'])}</p>",
        f"<p class='quiet'>{_facts(result)}</p>",
        *(f"<p><b>Void:</b> {escape(reason)}</p>" for reason in result["void"]),
        "<h2>Objectives</h2>",
        _objectives(result["objectives"]),
        "<h2>Regions</h2>",
        _regions(result),
        "<h2>Who answered, by region of the user</h2>",
        _over_time(result),
        "<h2>The generator</h2>",
        f"<p>{_generator(result)}</p>",
    ]
    head = f"<meta charset='utf-8'><meta name='viewport' content='width=device-width'><title>{escape(title)}</title>"
    body = "\n".join(parts)
    return (
        f"<!doctype html>\n<html lang='en'><head>{head}<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _facts(result: Mapping[str, Any]) -> str:
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
    return escape("; ".join(parts))


def _objectives(found: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr class='{one['verdict'].split()[0]}'><td class='mark'>{one['verdict']}</td>"
        f"<td>{escape(one['text'])}</td><td>{escape(one['why'])}</td></tr>"
        for one in found
    )
    head = "<tr><th></th><th>expected</th><th>found (and what it may as well have been)</th></tr>"
    return f"<div class='scroll'><table>{head}{rows}</table></div>"


def _regions(result: Mapping[str, Any]) -> str:
    names = list(result["regions"])
    titles = ["users of", "requests", "failed", "refused", *(f"by {name}" for name in names)]
    titles += ["attempts", "p50", "p95", "p99", "p95 wait"]
    rows = []
    for name, one in result["regions"].items():
        shares = result["shares"].get(name, {})
        cells = [f"{one['requests']:,}", str(one["failures"]), str(one["refused"])]
        cells += [f"{shares.get(to, 0.0):.1%}" for to in names]
        mean = one["attempts"]["mean"]
        cells.append("-" if mean is None else f"{mean:.2f}")
        cells += [f"{one['latency_s'][part]:.2f} s" for part in ("p50", "p95", "p99")]
        cells.append(f"{one['wait_s']['p95']:.2f} s")
        rows.append(f"<tr><td>{escape(name)}</td>{''.join(f'<td class=n>{cell}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th{' class=n' if i else ''}>{escape(title)}</th>" for i, title in enumerate(titles))
    return f"<div class='scroll'><table><tr>{head}</tr>{''.join(rows)}</table></div>"


def _over_time(result: Mapping[str, Any]) -> str:
    names = list(result["regions"])
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    keys = legend([*colours.items(), ("failed", FAILED)])
    parts = [f"<p>{keys}</p><p class='quiet'>Dashed: what the table keeps at home. Grey: a region is broken.</p>"]
    for name in names:
        rows = _thinned([row for row in result["series"] if row["source"] == name], result["seconds"])
        if not rows:
            continue
        parts.append(_figure(f"{name}: share of its requests", _shares(result, name, rows, colours)))
        parts.append(_figure(f"{name}: latency, p50 and p95, and requests per second", _latency(result, name, rows)))
    return "".join(parts)


def _figure(caption: str, chart: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{chart}</figure>"


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


def _generator(result: Mapping[str, Any]) -> str:
    one = result["generator"]
    late = f"{one['late']} of {result['requests']} requests left late (the latest by {one['latest_s']:.2f} s)"
    parts = [
        f"{one['arrivals']} of {one['planned']} arrivals came to be, {one['dropped']} of them dropped",
        late,
        f"{one['workers']} workers, at most {one['cpu_percent']:.0f} % of a core each",
    ]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        escape("; ".join(parts))
        + f"<br><span class='quiet'>{escape(versions)}; {escape(', '.join(result['machine'].values()))}</span>"
    )
