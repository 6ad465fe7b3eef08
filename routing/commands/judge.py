"""`judge`: is the candidate as good as the stable version? It reads counters until it knows, or its time is over.

With `--listen` it is a page that others ask again and again, as an AnalysisTemplate of Argo Rollouts does.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..rollout.counters import Source
    from ..rollout.settings import Limits
    from ..rollout.shadow import Shadow

NAME = "judge"
HELP = "compare two versions of the model that run side by side: exit status 0 pass, 1 fail, 3 cannot tell"

EXIT = {"pass": 0, "fail": 1, "cannot tell": 3}


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
    text = "serve GET /verdict?candidate=NAME there instead; counting begins when a name is first heard"
    parser.add_argument("--listen", metavar="ADDRESS", help=text)
    text = "take copies of users' requests there, and compare the clips that idle servers make of them"
    parser.add_argument("--shadow", metavar="ADDRESS", help=text)
    parser.add_argument("--every", type=float, default=5.0, dest="every_s", metavar="S", help="(default: 5)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Judge."""
    from ..errors import InputError
    from ..rollout.judging import Judge, judged, probed, serve
    from ..rollout.settings import Probe, RolloutSettings

    settings = RolloutSettings.read(options.file) if options.file else RolloutSettings()
    source, slow_s = _source(options, settings.limits)
    for name in ("for_s", "every_s"):
        if not 0 < getattr(options, name) <= 1e6:
            raise InputError(f"--{name.removesuffix('_s')}: should be above 0, and a million at most")
    probe = settings.probe or Probe()
    with _shadow(options, source, probe.limit_s) as shadow:

        def new() -> Judge:
            return Judge(source, settings.limits, slow_s, shadow.clips if shadow else None)

        if options.listen is not None:
            serve(options.listen, new)
            return {"verdict": "cannot tell", "why": "it was told to end"}
        base = options.file.parent if options.file is not None else Path()
        if options.probe and (why := probed(options.probe, probe, base)):
            return {"verdict": "fail", "why": why}
        return judged(new(), options.for_s, options.every_s)


@contextlib.contextmanager
def _shadow(options: argparse.Namespace, source: Source, limit_s: float) -> Iterator[Shadow | None]:
    """Take copies of users' requests, if it is wanted."""
    from ..errors import InputError
    from ..fleet import load_fleet
    from ..jobs import Jobs
    from ..rollout.counters import Pages
    from ..rollout.shadow import Shadow

    if options.shadow is None:
        yield None
        return
    if not isinstance(source, Pages):
        raise InputError("--shadow: wants --fleet or --pages: dispatchers, which know the idle servers")
    jobs = load_fleet(options.fleet).jobs if options.fleet is not None else Jobs()
    with Shadow(source.urls, jobs, limit_s).listening(options.shadow) as shadow:
        yield shadow


def lines(result: dict[str, Any]) -> list[str]:
    """The result for people."""
    return [f"{result['verdict']}: {result['why']}", *(one["text"] for one in result.get("findings", []))]


def exit_status(result: dict[str, Any]) -> int:
    """3 where it cannot be told; never 0."""
    return EXIT[result["verdict"]]


def _source(options: argparse.Namespace, limits: Limits) -> tuple[Source, float]:
    from ..errors import InputError
    from ..fleet import load_fleet
    from ..rollout.counters import Pages, Prometheus
    from ..rollout.settings import SLOW_JOBS

    slow_s = options.slow_s or limits.slow_s
    if options.fleet is not None:
        fleet = load_fleet(options.fleet)
        return Pages.of(fleet), slow_s or SLOW_JOBS * fleet.service_time_s
    if slow_s is None or not slow_s > 0:
        raise InputError("--slow-s: is missing; without --fleet nobody says how long a job may take")
    return (Pages(options.pages) if options.pages else Prometheus(options.prometheus, options.select)), slow_s
