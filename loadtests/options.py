"""Arguments of the load test, as Locust takes them, and what is made of them before a run."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laboratory.arrivals import Arrival, merged, schedule
from laboratory.simulate.scenario import Failure
from routing.errors import InputError
from routing.fleet import Fleet
from routing.retries import job_timeout_s

from .demand import demand, recorded
from .deployment import KEY_HEADER, Deployment, deployment_by_file, local_deployment
from .faults import Breaker, Hook, StandIns
from .form import PROMPT, Form, make_form
from .objectives import Objective
from .roles import Roles, regions, resolve
from .scenario import Scenario, load_scenario
from .timed import Timed

KEY = "STILLMOTION_API_KEY"
_MOST_BINS = 400


def add_arguments(parser: Any) -> None:
    """Add them to Locust's parser; those that are of use there are shown in its web page."""
    text = "of the package, or a YAML file (default: steady)"
    parser.add_argument("--scenario", default="steady", metavar="NAME", help=text)
    parser.add_argument("--compress", type=float, default=1.0, metavar="X", help="so many times faster (default: 1)")
    parser.add_argument("--seed", type=int, default=-1, metavar="N", help="of the arrivals (default: the scenario's)")

    def more(name: str, **about: Any) -> None:
        parser.add_argument(name, include_in_web_ui=False, **about)

    more("--fleet", default="", metavar="YAML", help="fleet file of the deployment")
    more("--edge", action="append", default=[], metavar="REGION=URL", help="edge of a region; for each of the fleet")
    more("--control", default="", metavar="URL", help="pages of its control loop, to see whether it publishes tables")
    more("--fleet-folder", default="", metavar="DIR", help="instead of these: a fleet of `routing fleet up`")
    more("--role", action="append", default=[], metavar="ROLE=REGION", help="choose the region of a role yourself")
    more("--image", default="", metavar="FILE", help="picture that is sent (default: a small PNG)")
    more("--prompt", default=PROMPT, metavar="TEXT", help="that is sent")
    more("--fault-hook", default="", metavar="COMMAND", help="breaks and mends regions; see docs/loadtests.md")
    text = "somebody breaks and mends regions by hand when the test says so"
    more("--faults-by-hand", action="store_true", default=False, help=text)
    more("--verdict", default="", metavar="FILE", help="for the verdict, as JSON")
    more("--report", default="", metavar="FILE", help="for a page about the run, HTML in one file")
    more("--arrivals", default="", metavar="FILE", help="for the arrivals, as `routing simulate` reads them")


@dataclass(frozen=True)
class Prepared:
    """A run before it begins.

    Attributes:
        scenario: as its file has it.
        deployment: that is tested.
        roles, timed: of the scenario, for this fleet.
        objectives: of the scenario.
        failures: of the scenario, in its own seconds, one for each region.
        arrivals: all of them, in order of time.
        seed: that they were drawn with.
        form, headers: of each request.
        breaker: lets failures begin and end; None: a person does.
        bin_s: width of the bins of the tally.
        timeout_s: for an answer.
    """

    scenario: Scenario
    deployment: Deployment
    roles: Roles
    timed: Timed
    objectives: tuple[Objective, ...]
    failures: tuple[Failure, ...]
    arrivals: tuple[Arrival, ...]
    seed: int
    form: Form
    headers: Mapping[str, str]
    breaker: Breaker | None
    bin_s: float
    timeout_s: float

    @property
    def seconds(self) -> float:
        """For which requests are sent."""
        return self.timed(self.scenario.duration_s)


def prepare(options: argparse.Namespace) -> Prepared:
    """Read all files, and draw the arrivals.

    Raises:
        InputError: something cannot be used as it is.
    """
    for name in ("verdict", "report", "arrivals"):
        path = getattr(options, name)
        if path and not Path(path).parent.is_dir():
            raise InputError(f"--{name} {path}: there is no folder {Path(path).parent}")
    scenario = load_scenario(options.scenario)
    deployment = _deployment(options)
    fleet = deployment.fleet
    timed = Timed.of(scenario.for_smoothing_s, fleet, options.compress)
    roles = resolve(scenario.roles, fleet, _pairs(options.role))
    objectives, failures = _for_roles(scenario, roles)
    seed = scenario.seed if options.seed < 0 else options.seed
    arrivals = schedule(*demand(scenario, fleet, roles, timed), seed, spaced=scenario.traffic.spacing == "even")
    arrivals = merged(arrivals, recorded(scenario, fleet, timed))
    if not arrivals:
        raise InputError(f"{options.scenario}: there is no demand in it, so that there would be nothing to send")
    key = os.environ.get(KEY, "")
    return Prepared(
        scenario=scenario,
        deployment=deployment,
        roles=roles,
        timed=timed,
        objectives=objectives,
        failures=failures,
        arrivals=tuple(arrivals),
        seed=seed,
        form=make_form(Path(options.image) if options.image else None, options.prompt),
        headers={KEY_HEADER: key} if key else {},
        breaker=_breaker(options, deployment) if failures else None,
        # Whole bins in each second of the scenario, so that windows in seconds cut none.
        bin_s=timed(max(1, round(scenario.duration_s / _MOST_BINS))),
        # Beyond what an edge may take by itself there is no answer to come.
        timeout_s=scenario.generator.timeout_s or job_timeout_s(fleet) + 10,
    )


def see_that_it_fits(scenario: Scenario, fleet: Fleet, timed: Timed) -> None:
    """See that a scenario can be run on a fleet.

    Raises:
        InputError: it names regions that are not there, or has more requests than can be sent.
    """
    roles = resolve(scenario.roles, fleet)
    _for_roles(scenario, roles)
    demand(scenario, fleet, roles, timed)
    recorded(scenario, fleet, timed)


def _for_roles(scenario: Scenario, roles: Roles) -> tuple[tuple[Objective, ...], tuple[Failure, ...]]:
    """Objectives, and a failure for each region that has one."""
    keyed = list(scenario.keyed_objectives())
    for key, one in keyed:
        regions(roles, one.regions, f"{key}.regions")
    failures = tuple(
        one.model_copy(update={"region": region})
        for i, one in enumerate(scenario.failures)
        for region in regions(roles, one.region, f"failures.{i}.region")
    )
    return tuple(one for _, one in keyed), failures


def _deployment(options: argparse.Namespace) -> Deployment:
    if options.fleet_folder:
        if options.fleet or options.edge:
            raise InputError("give --fleet-folder, or --fleet with --edge, not both")
        return local_deployment(Path(options.fleet_folder))
    if not options.fleet:
        raise InputError(
            "which fleet? Give --fleet-folder of one on this machine, or --fleet YAML with --edge REGION=URL"
        )
    return deployment_by_file(Path(options.fleet), options.edge, options.control)


def _breaker(options: argparse.Namespace, deployment: Deployment) -> Breaker | None:
    if options.fault_hook:
        return Hook(options.fault_hook)
    if options.faults_by_hand:
        return None
    if deployment.gpu_servers:
        return StandIns(deployment.gpu_servers)
    raise InputError(
        f"{options.scenario} lets regions fail, which this can only do to stand-ins on this machine: "
        "give --fault-hook COMMAND, or do it yourself when told to, with --faults-by-hand"
    )


def _pairs(texts: list[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        role, equals, region = text.partition("=")
        if not equals:
            raise InputError(f"--role {text}: should be ROLE=REGION")
        found[role] = region
    return found
