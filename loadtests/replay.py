"""Recorded traffic: jobs of edges' access logs, at their times or faster, by their regions, as large as they were."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from laboratory.arrivals import Arrival
from routing.errors import InputError
from routing.files import yaml_text
from routing.fleet import Fleet
from routing.schema import Items, Positive, Strict, did_you_mean, validated

from .timed import Timed

NO_JOBS = frozenset({*range(400, 429), *range(430, 500)})
"""Answers to what was no job: malformed, without a key, too large. 429 was demand."""


class Replay(Strict):
    """A recorded log.

    Attributes:
        logs: files of the edges' access logs, seen from the scenario's folder; `REGION=FILE` for lines that do not
            say whose edge wrote them.
        speed: so many times faster than it was.
    """

    logs: Annotated[tuple[str, ...], Items, Field(min_length=1)]
    speed: Annotated[Positive, Field(le=1000)] = 1.0

    def seen_from(self, folder: Path) -> Replay:
        """Return it with whole paths."""
        parts = [log.rpartition("=") for log in self.logs]
        return self.model_copy(update={"logs": tuple(a + b + str((folder / path).resolve()) for a, b, path in parts)})


def arrivals(replay: Replay, fleet: Fleet, seconds: float, timed: Timed) -> list[Arrival]:
    """Return the jobs of the logs in order of time; the first is at 0 s.

    Args:
        replay: files and speed.
        fleet: whose regions they are.
        seconds: of the scenario, after which there are no more.
        timed: how long these seconds take.

    Raises:
        InputError: a file has no jobs, or a line is none of such a log; with file and line.
    """
    jobs = sorted(job for log in replay.logs for job in _jobs(log, fleet))
    if not jobs:
        raise InputError(f"{', '.join(replay.logs)}: there is no job in it", key="traffic.replay.logs")
    first = jobs[0][0]
    found = [((at - first) / replay.speed, region, size) for at, region, size in jobs]
    return [Arrival(timed(at_s), region, size) for at_s, region, size in found if at_s <= seconds]


def scenario_text(logs: Sequence[str], speed: float, fleet: Fleet) -> str:
    """Return a scenario that sends what logs have, and expects what anybody would.

    Raises:
        InputError: as `arrivals`.
    """
    replay = validated(Replay, {"logs": list(logs), "speed": speed}).seen_from(Path())
    last_s = arrivals(replay, fleet, float("inf"), Timed(1.0))[-1].at_s
    return yaml_text(
        {
            "name": f"replay at {speed:g}x",
            "about": f"What {', '.join(Path(log.rpartition('=')[2]).name for log in logs)} recorded.",
            "duration_s": round(last_s + 1.0, 3),
            "traffic": {"replay": {"logs": list(replay.logs), "speed": speed}},
            "objectives": [{"kind": "failed", "at_most": 0.01}, {"kind": "wait", "quantile": 0.95, "at_most_jobs": 10}],
        }
    )


def _jobs(log: str, fleet: Fleet) -> Iterator[tuple[float, str, int]]:
    """Give time, region and bytes of each job of a file."""
    region, _, path = log.rpartition("=")
    try:
        with Path(path).open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.startswith("{"):  # what Envoy says besides has no braces
                    try:
                        yield from _job(json.loads(line), region, fleet)
                    except (InputError, ValueError, KeyError, TypeError) as error:
                        ours = isinstance(error, InputError)
                        text = str(error) if ours else f"is no line of an access log ({error!r})"
                        raise InputError(f"line {number}: {text}", file=path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", file=path) from None


def _job(line: Mapping[str, Any], region: str, fleet: Fleet) -> Iterator[tuple[float, str, int]]:
    if line["method"] != "POST" or line["path"] not in fleet.jobs.paths or int(line["status"]) in NO_JOBS:
        return
    source = region or line.get("edge")
    if not source:
        raise InputError("does not say whose edge wrote it; give the log as REGION=FILE")
    if source not in fleet.regions:
        raise InputError(f"{source} is none of the fleet's regions{did_you_mean(str(source), fleet.regions)}")
    yield datetime.fromisoformat(line["time"]).timestamp(), source, int(line["bytes_in"] or 0)
