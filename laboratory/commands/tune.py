"""`tune`: a policy that meets a goal, searched for on the simulator."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from routing.console import png, tell

NAME = "tune"
HELP = "find thresholds, backoff, attempts and delay that meet a goal; exits with 1 where none does"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    text = "what fleets have to get through; the goal has to be met in each"
    parser.add_argument("--scenario", type=Path, required=True, nargs="+", metavar="YAML", help=text)
    parser.add_argument(
        "--goal", type=Path, required=True, metavar="YAML", help="limits, weights, length of the search"
    )
    parser.add_argument("--fleet", type=Path, metavar="YAML", help="instead of the fleet that the scenarios name")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the search (default: 0)")
    text = "run the scenarios with the policy that was found on a real fleet of this machine too, in real time"
    parser.add_argument("--confirm", action="store_true", help=text)
    parser.add_argument("--plot", type=png, metavar="PNG", help="draw what was tried there")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Search once."""
    from routing.errors import InputError

    from ..simulate.scenario import load_experiment
    from ..tune.goal import load_goal
    from ..tune.report import results
    from ..tune.search import Trial, tune

    if options.seed < 0:
        options.usage_error("--seed: should be 0 or more")
    goal = load_goal(options.goal)
    experiments = [load_experiment(path, fleet=options.fleet) for path in options.scenario]
    names = [one.scenario.name for one in experiments]
    for path, one in zip(options.scenario, experiments, strict=True):
        if one.fleet != experiments[0].fleet:
            raise InputError(f"is of another fleet than {options.scenario[0]}; one policy is for one", file=str(path))
        if names.count(one.scenario.name) > 1:
            raise InputError("has the name of another scenario; give each its own", key="name", file=str(path))

    def progress(count: int, best: Trial) -> None:
        tell(f"{count} policies tried; the best {'meets the goal' if best.met else 'misses it'}: {best.score:.4g}")

    if options.confirm:
        from ..tune.report import can_be_confirmed, confirmed

        can_be_confirmed(options.scenario, experiments, options.seed)
    tuned = tune(experiments, goal, options.seed, progress=progress)
    found = results(tuned, experiments[0].fleet)
    if options.confirm:
        found |= confirmed(experiments, tuned)
    if options.plot is not None:
        from ..tune.report import plot

        plot(found, options.plot)
    return found


def exit_status(result: dict[str, Any]) -> int:
    """0 where the goal is met, 1 where it is not."""
    return 0 if result["goal_met"] else 1


def lines(result: dict[str, Any]) -> list[str]:
    """Before and after, and the part of the fleet file to use."""
    best, before = result["best"], result["before"]
    names = max(8, *(len(name) for name in best["figures"]))
    found = [
        f"{len(result['trials'])} policies tried; the goal is {'met' if result['goal_met'] else 'NOT met'}",
        "",
        f"{'scenario':<{names}}  policy  failures  attempts   p99  at home  mean wait  p95 wait",
    ]
    for name in best["figures"]:
        for label, trial in (("before", before), ("best", best)):
            one = trial["figures"][name]
            found.append(
                f"{name:<{names}}  {label:<6} {100 * one['failure_share']:>7.3f} % {one['attempts_per_request']:>8.3f} "
                f"{one['attempts_p99']:>5.0f} {100 * one['in_region_share']:>6.1f} % {one['mean_wait_s']:>8.3f} s "
                f"{one['p95_wait_s']:>7.3f} s"
            )
    for name, misses in best["missed"].items():
        found.append(
            f"{name}: the best misses " + ", ".join(f"{limit} by {100 * by:.1f} %" for limit, by in misses.items())
        )
    for name, one in result.get("real", {}).items():
        found += ["", f"{name}, on a real fleet: the limits are {'met' if one['met'] else 'NOT met'}"]
        found += [
            f"  {row['name']:<21} simulated {row['simulated']:>8.3f}  measured {row['measured']:>8.3f}"
            + ("" if row["agrees"] else "  (not the same)")
            for row in one["figures"]
        ]
    text = "with other seeds it is met too" if result["goal_met"] else "see `confirmed` in --json for other seeds"
    return [*found, "", text, "", "# for fleet.yaml", *result["fleet_yaml"].splitlines()]
