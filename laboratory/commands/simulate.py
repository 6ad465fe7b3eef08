"""`simulate`: what a fleet does with a scenario, event by event."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from routing.console import png

NAME = "simulate"
HELP = "run a scenario on a simulated fleet"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("--scenario", type=Path, required=True, metavar="YAML", help="arrivals, failures, delays")
    parser.add_argument("--fleet", type=Path, metavar="YAML", help="instead of the fleet that the scenario names")
    text = "arrivals instead of the scenario's: a CSV with the columns scheduled_at_s and region"
    parser.add_argument("--arrivals", type=Path, metavar="CSV", help=text)
    parser.add_argument("--seed", type=int, metavar="N", help="instead of the scenario's")
    parser.add_argument("--plot", type=png, metavar="PNG", help="draw demand, load, shares, failures and waits there")
    text = "also find the highest demand at which 0.1 % fail at most, and 95 % wait for a job's time at most"
    parser.add_argument("--highest", action="store_true", help=text)
    text = "write the arrivals there, as --arrivals and load tests read them"
    parser.add_argument("--trace", type=Path, metavar="CSV", help=text)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run it once."""
    from ..simulate.scenario import load_experiment

    if options.seed is not None and options.seed < 0:
        options.usage_error("--seed: should be 0 or more")
    experiment = load_experiment(options.scenario, fleet=options.fleet, trace=options.arrivals)
    from ..simulate.results import results
    from ..simulate.run import simulate

    outcome = simulate(experiment, options.seed)
    found = results(outcome)
    if options.trace is not None:
        from ..arrivals import write_trace
        from ..simulate.build import arrivals

        write_trace(arrivals(experiment, outcome.seed), options.trace)
    if options.highest:
        from ..simulate.highest import Goal, highest_load

        found["highest"] = highest_load(experiment, Goal(), options.seed)
    if options.plot is not None:
        from ..simulate.results import plot

        plot(found, options.plot)
    return found


def lines(result: dict[str, Any]) -> list[str]:
    """The figures that count, and a line a region."""
    waits = ", ".join(f"{name} {_seconds(time)}" for name, time in result["wait_s"].items())
    hours, price = result["gpu_hours"], result["price"]
    rings = ", ".join(f"ring {ring} {100 * share:.2f} %" for ring, share in result["rings"].items())
    found = [
        f"{result['name']}, seed {result['seed']}: {result['requests']:,} requests; {result['service_time']}",
        f"failures     {_percent(result['failure_share'])}: {result['refused']:,} refused, {result['lost']:,} lost",
        f"attempts     {_number(result['attempts_per_request'])} a request, p99 {result['attempts_p99']}",
        f"in region    {_percent(result['in_region_share'])} ({rings})",
        f"wait         {waits}",
        f"utilisation  {_percent(result['utilisation'])}; {result['tables']} new tables",
        f"GPU-hours    {hours['total']:,.1f}, {_percent(hours['of_fixed'])} of a fixed fleet's",
        *([f"price        {price['total']:,.0f}, {_percent(price['of_fixed'])} of a fixed fleet's"] if price else []),
        f"events       {result['events']:,}, {result['events_per_s'] or 0:,} a second",
        "",
    ]
    if (highest := result.get("highest")) is not None:
        text = "at none: not even at hardly any demand"
        if highest["factor"] is not None:
            busy = f"the GPUs busy {_percent(highest['utilisation'])}"
            text = f"{highest['factor']:.2f} times this demand, {busy}, p95 wait {_seconds(highest['p95_wait_s'])}"
        found.append(f"objectives hold up to {text}")
    width = max(8, *(len(name) for name in result["regions"]))
    found.append(f"{'region':<{width}}   requests   refused  attempts  at home  utilisation  p95 wait")
    for name, one in result["regions"].items():
        found.append(
            f"{name:<{width}} {one['requests']:>10,} {_percent(_share(one)):>9} "
            f"{_number(one['attempts_per_request']):>9} {_percent(one['in_region_share']):>8} "
            f"{_percent(one['utilisation']):>12} {_seconds(one['wait_s']['p95']):>9}"
        )
    return found


def _share(region: dict[str, Any]) -> float | None:
    return region["refused"] / region["requests"] if region["requests"] else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f} s"
