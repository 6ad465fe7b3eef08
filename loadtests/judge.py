"""`judge`: is the candidate as good as the stable version? It reads counters until it knows, or its time is over."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from routing.console import tell
from routing.errors import InputError, RoutingError
from routing.fleet import load_fleet
from routing.rollout.counters import Growth, Pages, Prometheus, Source
from routing.rollout.judge import Judgement, judge
from routing.rollout.probe import ProbeError, ask, look, wrong_with
from routing.rollout.settings import Limits, Probe, RolloutSettings

EXIT = {"pass": 0, "fail": 1, "cannot tell": 3}
_SLOW_JOBS = 1.25


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--fleet", type=Path, metavar="YAML", help="whose dispatchers count, where the file has them")
    where.add_argument("--pages", nargs="+", metavar="URL", help="admin addresses of dispatchers, which have /jobs")
    where.add_argument("--prometheus", metavar="URL", help="one that scrapes /jobs of the dispatchers")
    parser.add_argument("--select", default="", metavar="LABELS", help='of a Prometheus, such as region="us-east"')
    text = "settings of a rollout, whose limits and probe count (default: those of docs/rollout.md)"
    parser.add_argument("--file", type=Path, metavar="YAML", help=text)
    text = "a job that takes a server longer is slow (default: 1.25 x service_time_s of the fleet)"
    parser.add_argument("--slow-s", type=float, metavar="S", help=text)
    text = "dispatcher, with the path that takes jobs, by which clips of both versions are compared first"
    parser.add_argument("--probe", metavar="URL", help=text)
    text = "time after which it cannot tell (default: 600)"
    parser.add_argument("--for", type=float, default=600.0, dest="for_s", metavar="S", help=text)
    parser.add_argument("--every", type=float, default=5.0, dest="every_s", metavar="S", help="(default: 5)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Judge."""
    settings = RolloutSettings.read(options.file) if options.file else RolloutSettings()
    source, slow_s = _source(options, settings.limits)
    for name in ("for_s", "every_s"):
        if not 0 < getattr(options, name) <= 1e6:
            raise InputError(f"--{name.removesuffix('_s')}: should be above 0, and a million at most")
    if options.probe and (why := _compared(options.probe, settings.probe or Probe(), options.file)):
        return {"verdict": "fail", "why": why, "exit_status": EXIT["fail"]}
    return _judged(source, settings.limits, slow_s, options.for_s, options.every_s)


def lines(result: dict[str, Any]) -> list[str]:
    """The result for people."""
    return [f"{result['verdict']}: {result['why']}", *(one["text"] for one in result.get("findings", []))]


def _source(options: argparse.Namespace, limits: Limits) -> tuple[Source, float]:
    slow_s = options.slow_s or limits.slow_s
    if options.fleet is not None:
        fleet = load_fleet(options.fleet)
        return Pages.of(fleet), slow_s or _SLOW_JOBS * fleet.service_time_s
    if slow_s is None or not slow_s > 0:
        raise InputError("--slow-s: is missing; without --fleet nobody says how long a job may take")
    return (Pages(options.pages) if options.pages else Prometheus(options.prometheus, options.select)), slow_s


def _compared(url: str, probe: Probe, file: Path | None) -> str:
    """Return what is wrong with the candidate's clip; empty: nothing, or there is none to compare it with."""
    base = file.parent if file is not None else Path()
    try:
        stable = look(ask(url, probe, base, "stable"))
    except ProbeError as error:
        tell(f"clips are not compared: of the stable version there is {error}")
        return ""
    try:
        return wrong_with(stable, look(ask(url, probe, base, "candidate")))
    except ProbeError as error:
        return f"a probe of the candidate has {error}"


def _judged(source: Source, limits: Limits, slow_s: float, for_s: float, every_s: float) -> dict[str, Any]:
    growth, began = Growth(), time.monotonic()
    found: Judgement | None = None
    problem = ""
    while True:
        try:
            growth.take(source.read())
            found, problem = judge(growth.tally("stable"), growth.tally("candidate"), limits, slow_s), ""
        except RoutingError as error:  # perhaps only now
            problem = str(error)
        left_s = began + for_s - time.monotonic()
        if (found is not None and found.verdict != "cannot tell") or left_s <= 0:
            break
        time.sleep(min(every_s, left_s))
    result = found.to_dict() if found is not None else {"verdict": "cannot tell", "why": problem}
    if problem and result["verdict"] == "cannot tell":
        result["why"] = problem
    return result | {"exit_status": EXIT[result["verdict"]], "seconds": round(time.monotonic() - began, 1)}
