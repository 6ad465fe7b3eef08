"""Evidence of capacity: the GPUs that the expected traffic takes, beside those that the fleet has."""

from __future__ import annotations

import json
from pathlib import Path

from laboratory.capacity.planning import load_planning
from laboratory.capacity.report import plan_capacity, results
from routing.files import write_atomically
from routing.fleet import Fleet

from .evidence import Line, marked
from .settings import Capacity

AREA = "capacity"


def lines(settings: Capacity, fleet: Fleet, base: Path, out: Path) -> list[Line]:
    """Plan, and compare.

    Args:
        settings: what is expected.
        fleet: that is to be launched.
        base: folder that paths are seen from.
        out: folder for the plan.

    Raises:
        InputError: a file cannot be used.
    """
    planning = load_planning(None if settings.planning is None else base / settings.planning, fleet)
    files = base / settings.traffic, base / settings.benchmark
    plan = plan_capacity(files[0], fleet, files[1], planning, sensitivity=settings.simulated)
    found = results(plan)
    path = out / "capacity.json"
    write_atomically(path, json.dumps(found, indent=1, allow_nan=False) + "\n")
    rows = [
        Line(
            AREA,
            f"{name} has the GPUs that its traffic takes",
            marked(one["gpus_now"] >= one["gpus"]),
            f"{one['gpus_now']} for {one['gpus']} wanted: peak {one['peak_rps']:.2f} rps {one['peak_at']}",
            str(path),
        )
        for name, one in found["regions"].items()
    ]
    measured_s, said_s = plan.service_s, fleet.service_time_s
    rows.append(
        Line(
            AREA,
            f"a request takes no longer than the fleet's {said_s:g} s",
            marked(measured_s <= said_s * (1 + settings.slower)),
            f"{measured_s:.3f} s: {plan.times.text}",
            str(files[1]),
        )
    )
    met, goal = found["sensitivity"]["failure_goal_met"], planning.goal.failures
    if met is not None:
        text = "in a simulation of the busiest hour"
        rows.append(Line(AREA, f"with its retries {goal:.2%} fail at most", marked(met), text, str(path)))
    return rows
