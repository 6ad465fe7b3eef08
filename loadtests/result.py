"""A run as one JSON document: what programs read, and what the report is drawn from."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from laboratory.machine import machine, versions
from laboratory.queueing import wilson

from .findings import Run
from .generator import overload
from .histogram import Histogram
from .options import Prepared
from .tally import Cell, Tally
from .verdict import Verdict
from .watch import Watch

FORMAT = 1


def document(
    prepared: Prepared, tally: Tally, run: Run, verdict: Verdict, watch: Watch, workers: int
) -> dict[str, Any]:
    """All of it.

    Args:
        prepared: what was to be done.
        tally: of all workers.
        run: as it was judged.
        verdict: that came of it.
        watch: of the control loop.
        workers: that sent requests.
    """
    whole = tally.select()
    good = tally.select(served=lambda _, to: bool(to))
    failures = whole.count - good.count
    low, high = wilson(failures, whole.count)
    home = tally.select(served=lambda source, to: source == to).count
    fleet = prepared.deployment.fleet
    return {
        "format": FORMAT,
        "scenario": prepared.scenario.name,
        "about": prepared.scenario.about,
        "verdict": verdict.outcome.value,
        "exit_status": verdict.outcome.exit_status,
        "void": list(verdict.reasons),
        "objectives": [one.to_dict() for one in verdict.findings],
        "requests": whole.count,
        "failures": failures,
        "failed_share": _share(failures, whole.count),
        "failed_share_95": [low, high],
        "refused": whole.busy,
        "in_region_share": _share(home, good.count),
        "attempts": {
            "mean": _mean(whole.attempts),
            "p95": _quantile(whole.attempts, 0.95),
            "p99": _quantile(whole.attempts, 0.99),
            "most": max(whole.attempts, default=0),
        },
        "latency_s": _quantiles(good.latency),
        "wait_s": _quantiles(good.wait),
        "shares": _shares(tally),
        "regions": {name: _region(tally, name) for name in fleet.names},
        "statuses": dict(sorted(tally.statuses.items())),
        "problems": dict(sorted(tally.problems.items())),
        "generator": {
            "arrivals": tally.arrivals,
            "planned": len(prepared.arrivals),
            "late": tally.late,
            "late_share": _share(tally.late, whole.count),
            "latest_s": tally.most_late_s,
            "dropped": tally.dropped,
            "cpu_percent": tally.cpu_percent,
            "workers": workers,
            "kept_up": not any(overload(prepared.scenario.generator, tally)),
        },
        "control": {
            "url": prepared.deployment.control,
            "tables": run.observed.tables,
            "silent_share": run.observed.silent_share,
        },
        "roles": {role: list(prepared.roles[role]) for role in prepared.scenario.roles},
        "failures_of_regions": [one.model_dump(exclude_none=True) for one in prepared.failures],
        "seed": prepared.seed,
        "seconds": prepared.seconds,
        "second_of_the_scenario_s": prepared.timed.scale,
        "edges": dict(prepared.deployment.edges),
        "stand_ins": prepared.deployment.stand_ins,
        "fleet": {
            "regions": {
                name: {"gpus": one.gpus, "rps": fleet.capacity_rps(name)} for name, one in fleet.regions.items()
            },
            "service_time_s": fleet.service_time_s,
            "smoothing_s": fleet.smoothing_s,
        },
        "series": _series(prepared, tally),
        "tables": [[at_s, shares] for at_s, shares in watch.tables],
        "machine": machine(),
        "versions": versions("locust", "geventhttpclient"),
    }


def _series(prepared: Prepared, tally: Tally) -> list[dict[str, Any]]:
    """Bin by bin and source by source, in seconds after the start."""
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for (at, source), due in sorted(tally.due.items()):
        found[at, source] = {"at_s": round(at * tally.bin_s, 3), "source": source, "due": due}
    grouped: dict[tuple[int, str], dict[str, Cell]] = defaultdict(dict)
    for (at, source, to), cell in tally.cells.items():
        grouped[at, source][to] = cell
    for key, row in found.items():
        cells = grouped.get(key, {})
        whole = Cell()
        for cell in cells.values():
            whole.merge(cell)
        row |= {
            "served": {to: cells[to].count for to in prepared.deployment.fleet.names if to in cells},
            "failed": cells[""].count if "" in cells else 0,
            "attempts": _mean(whole.attempts),
            "latency_p50_s": whole.latency.quantile(0.5),
            "latency_p95_s": whole.latency.quantile(0.95),
        }
    return list(found.values())


def _region(tally: Tally, name: str) -> dict[str, Any]:
    sources = frozenset({name})
    whole = tally.select(sources=sources)
    good = tally.select(sources=sources, served=lambda _, to: bool(to))
    home = tally.select(sources=sources, served=lambda source, to: source == to).count
    return {
        "requests": whole.count,
        "failures": whole.count - good.count,
        "refused": whole.busy,
        "in_region_share": _share(home, good.count),
        "attempts": {"mean": _mean(whole.attempts), "p99": _quantile(whole.attempts, 0.99)},
        "latency_s": _quantiles(good.latency),
        "wait_s": _quantiles(good.wait),
    }


def _shares(tally: Tally) -> dict[str, dict[str, float]]:
    counts: dict[str, Counter[str]] = {}
    for source, to, cell in tally.between():
        if to:
            counts.setdefault(source, Counter())[to] += cell.count
    return {
        source: {to: count / row.total() for to, count in sorted(row.items())} for source, row in sorted(counts.items())
    }


def _quantiles(histogram: Histogram) -> dict[str, float]:
    return {f"p{round(100 * share)}": histogram.quantile(share) for share in (0.5, 0.95, 0.99)}


def _mean(counts: Mapping[int, int]) -> float | None:
    total = sum(counts.values())
    return sum(value * times for value, times in counts.items()) / total if total else None


def _quantile(counts: Mapping[int, int], share: float) -> int:
    wanted = share * sum(counts.values())
    for value in sorted(counts):
        wanted -= counts[value]
        if wanted <= 1e-9:
            return value
    return 0


def _share(count: int, of: int) -> float | None:
    return count / of if of else None
