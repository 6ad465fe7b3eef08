"""What has to hold before a launch (`launch.yaml`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from routing.errors import InputError
from routing.files import read_yaml
from routing.schema import Count, Items, Positive, Share, Strict, validated

Name = Annotated[str, Field(min_length=1)]


class Model(Strict):
    """What is known of the model that will be served.

    Attributes:
        runs: folder of the pipeline's runs: the gates of the newest that packaged a model count. None, or without
            such a run, `checkpoint` is judged.
        checkpoint: folder, tag in the store or hub id; None: what would be served, the newest model of the store, and
            without one the shipped teacher.
        clips: that it is judged on.
        at_least: limits of figures of `python -m pipeline evaluate --json`, by name.
        limit_s: time to judge it.
    """

    runs: str | None = None
    checkpoint: str | None = None
    clips: Annotated[Count, Field(ge=1)] = 16
    at_least: Annotated[Mapping[str, float], Field(min_length=1)] = {
        "motion_accuracy": 0.75,
        "first_frame_psnr_db": 28.0,
    }
    limit_s: Positive = 600.0


class Capacity(Strict):
    """What traffic is expected, and how long the model computes.

    Attributes:
        traffic: history, CSV or Parquet.
        benchmark: of the model, as `python -m pipeline bench --json` prints it.
        planning: growth, launches, goal; None: the defaults.
        slower: how much longer than the fleet file says a request may take in the benchmark, as a part of it.
        simulated: whether failures in the busiest hour are simulated, which takes longer than the plan.
    """

    traffic: Name
    benchmark: Name
    planning: str | None = None
    slower: Share = 0.05
    simulated: bool = True


class Launch(Strict):
    """All of it. Paths are seen from the file's folder.

    Attributes:
        name: for people.
        fleet: that is to be launched.
        tested_on: fleet that the load tests run on, if that one is too large for this machine: the same policies.
        model, capacity: what they have to reach.
        load_tests: scenarios that have to pass.
        fault_drill: scenarios in which something dies, which have to pass too.
        service_time: of the stand-ins, as `routing fleet up` takes it; None: the fleet's.
    """

    name: Name
    fleet: Name
    tested_on: str | None = None
    model: Model = Model()
    capacity: Capacity
    load_tests: Annotated[tuple[Name, ...], Items, Field(min_length=1)]
    fault_drill: Annotated[tuple[Name, ...], Items, Field(min_length=1)]
    service_time: str | None = None


def load_launch(path: Path) -> Launch:
    """Read the file.

    Raises:
        InputError: it cannot be used; the text has the key.
    """
    try:
        return validated(Launch, read_yaml(path))
    except InputError as error:
        raise error if error.file else error.within(path) from None
