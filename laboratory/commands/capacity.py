"""`capacity`: GPUs per region and their cost, from traffic of the past and a benchmark."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

NAME = "capacity"
HELP = "find how many GPUs each region needs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    text = "history: CSV or Parquet with the columns time, region and requests"
    parser.add_argument("--traffic", type=Path, required=True, metavar="FILE", help=text)
    parser.add_argument("--fleet", type=Path, required=True, metavar="YAML", help="regions, distances, thresholds")
    text = "benchmark of the model, as `python -m pipeline bench --json` prints it"
    parser.add_argument("--service-time", type=Path, required=True, metavar="JSON", help=text)
    parser.add_argument("--scenario", type=Path, metavar="YAML", help="growth, launches, goal, margin, prices")
    parser.add_argument("--no-sensitivity", action="store_true", help="the plan alone, which is quicker")
    parser.add_argument(
        "--plot", type=Path, metavar="DIR", help="draw the week, the GPUs and what they depend on there"
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Plan once."""
    from routing.fleet import load_fleet

    from ..capacity.planning import load_planning
    from ..capacity.report import plan_capacity, results

    fleet = load_fleet(options.fleet)
    planning = load_planning(options.scenario, fleet)
    plan = plan_capacity(options.traffic, fleet, options.service_time, planning, sensitivity=not options.no_sensitivity)
    if options.plot is not None:
        from ..capacity.plots import plot

        plot(plan, options.plot)
    return results(plan)


def lines(result: dict[str, Any]) -> list[str]:
    """A line a region, the sum, and what it rests on."""
    width, total = max(8, *(len(name) for name in result["regions"])), result["total"]
    head = f"{'region':<{width}}   GPUs = peak + loss + margin   peak rps            at     load  waiting"
    found = [f"{head}  in loss  waiting"]
    for name, one in result["regions"].items():
        loss, margin = one["gpus_in_service"] - one["gpus_alone"], one["gpus"] - one["gpus_in_service"]
        shares = (one["utilisation"], one["blocking"], one["load_in_loss"], one["blocking_in_loss"])
        found.append(
            f"{name:<{width}} {one['gpus']:>6} {one['gpus_alone']:>6} {loss:>6} {margin:>8}   {one['peak_rps']:>8.2f}"
            f"  {one['peak_at']}" + "".join(f" {100 * share:>6.2f} %" for share in shares)
        )
    money = f"{total['cost_per_month']:,.0f} {total['currency']} a month"
    standby = f"with a standby for each and no routing between regions, {total['gpus_with_a_standby_each']}"
    found += [
        "",
        f"{total['gpus']} GPUs in all, {money}; the fleet file has {total['gpus_now']}",
        f"for comparison: own peaks alone take {total['gpus_alone']}; {standby}",
    ]
    found += [
        f"{name} lost: the others are fullest on {one['fullest_at']}, its users {one['round_trip_ms']:.0f} ms away"
        for name, one in result["loss"].items()
    ]
    if result["forecast"]:
        from ..capacity.forecast import lines as forecast_lines

        found += ["", *forecast_lines(result["forecast"])]
    found += _sensitivity(result["sensitivity"])
    if result["repairs"]:
        found += ["", "Mended in the history:", *(f"- {text}" for text in result["repairs"])]
    return [*found, "", "Assumed:", *(f"- {text}" for text in result["assumptions"])]


def _sensitivity(found: dict[str, Any]) -> list[str]:
    lines = [""] if found["service_time"] else []
    lines += [
        f"service time {row['service_s']:.3g} s ({row['factor']:g}x): {row['gpus']} GPUs"
        for row in found["service_time"]
    ]
    lines += [
        f"{row['case']}, demand {row['load']:g}x, {row['attempts']} attempts: {100 * row['failure_share']:.2f} % "
        f"fail, {row['attempts_per_request']:.2f} attempts a request, p95 wait {row['p95_wait_s']:.2f} s"
        for row in found["retries"]
    ]
    if found["note"]:
        lines.append(found["note"])
    if (met := found["failure_goal_met"]) is not None:
        lines.append(f"The goal for failures is {'met' if met else 'NOT met'} at the demand planned for.")
    return lines
