"""The command line: `python -m loadtests <command>`.

Exit status: 0 passed, 1 an objective was missed or something failed, 2 wrong use, 3 void, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from routing.commands import judge
from routing.console import put, tell
from routing.errors import RoutingError

from .scenario import LAUNCH, load_scenario, names


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status."""
    options = build_parser().parse_args(arguments)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            result = options.run(options)
    except RoutingError as error:
        tell(f"error: {error}")
        return error.exit_status
    except KeyboardInterrupt:
        tell("interrupted")
        return 130
    written = put([json.dumps(result, indent=2, allow_nan=False)] if options.json else options.lines(result))
    return int(result.get("exit_status", 0)) or written


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(prog="python -m loadtests", description="Load tests of a fleet on this machine.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, text: str, run: Any, lines: Any) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("--json", action="store_true", help="print one JSON document on stdout")
        added.set_defaults(run=run, lines=lines)
        return added

    one = command("run", "start a fleet for each scenario, test it with Locust, and judge it", _run, _run_lines)
    _add_run(one)
    one = command("plant", "break a fleet that runs on this machine, so that a test should fail", _plant, _plant_lines)
    one.add_argument("name", metavar="FAULT", help="without a fleet to plant it in: `list`")
    one.add_argument("--folder", type=Path, metavar="DIR", help="of the fleet (`routing fleet up --dir`)")
    one.add_argument("--region", metavar="NAME", help="of faults of one region (default: the most central)")
    text = "begin or end a failure on Kubernetes by Chaos Mesh: the command of --fault-hook"
    one = command("chaos", text, _chaos, lambda result: [result["manifest"].rstrip()])
    one.add_argument("what", choices=("begin", "end"))
    one.add_argument("kind", choices=("loss", "slow"))
    one.add_argument("region", metavar="REGION")
    one.add_argument("--namespace", default="stillmotion", metavar="NAME", help="(default: stillmotion)")
    text = "that a job takes, of which a delay is worked out (default: 2.5)"
    one.add_argument("--service-time-s", type=float, default=2.5, metavar="S", help=text)
    text = "such as 'kubectl --context {region}'; left out: the manifest is printed, and nothing is done"
    one.add_argument("--kubectl", default="", metavar="COMMAND", help=text)
    text = "one verdict, go or no-go, with its evidence: model, capacity, load tests, fault drill"
    _add_launch(command("launch", text, _launch, _launch_lines))
    judge.add_arguments(command(judge.NAME, judge.HELP, _judge, judge.lines))
    command("scenarios", "list the scenarios of the package", _scenarios, _scenarios_lines)
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fleet", type=Path, required=True, metavar="YAML", help="regions, GPUs, policies")
    text = f"names or files (default: {' '.join(LAUNCH)})"
    parser.add_argument("--scenarios", nargs="+", default=list(LAUNCH), metavar="NAME", help=text)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for verdicts, reports and logs")
    text = "access logs of edges, whose jobs are sent again, instead of scenarios; REGION=FILE for older ones"
    parser.add_argument("--replay", nargs="+", default=[], metavar="LOG", help=text)
    parser.add_argument("--speed", type=float, default=1.0, metavar="X", help="of the replay (default: 1)")
    parser.add_argument("--plant", metavar="FAULT", help="break each fleet, so that the test should fail")
    parser.add_argument("--region", metavar="NAME", help="of the fault (default: the most central)")
    parser.add_argument("--compress", type=float, default=1.0, metavar="X", help="so many times faster (default: 1)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the arrivals (default: the scenario's)")
    parser.add_argument("--image", metavar="FILE", help="picture that is sent (default: a small PNG)")
    parser.add_argument("--prompt", metavar="TEXT", help="that is sent")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="workers of Locust (default: 1)")
    parser.add_argument("--service-time", metavar="TIMES", help="of the stand-ins, as `routing fleet up` takes it")
    parser.add_argument("--port-base", type=int, metavar="N", help="first port of the fleets")


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from .plant import known

    try:
        from .drill import Drill, run
    except ModuleNotFoundError as error:
        raise RoutingError(f"{error.name} is not installed: pip install 'stillmotion[loadtests]'") from error
    if options.plant is not None:
        known(options.plant)
    return run(
        Drill(
            fleet=options.fleet,
            scenarios=_replay(options) if options.replay else tuple(dict.fromkeys(options.scenarios)),
            out=options.out,
            plant=options.plant,
            region=options.region,
            compress=options.compress,
            seed=options.seed,
            image=options.image,
            prompt=options.prompt,
            processes=options.processes,
            service_time=options.service_time,
            port_base=options.port_base,
        )
    )


def _replay(options: argparse.Namespace) -> tuple[str, ...]:
    """Write the scenario that sends what logs have, and return its file."""
    from routing.files import write_atomically
    from routing.fleet import load_fleet

    from .replay import scenario_text

    text = scenario_text(options.replay, options.speed, load_fleet(options.fleet))
    options.out.mkdir(parents=True, exist_ok=True)
    file: Path = options.out / "replay.yaml"
    write_atomically(file, text)
    return (str(file),)


def _run_lines(result: dict[str, Any]) -> list[str]:
    rows = [
        f"{'scenario':<16} {'verdict':<8} {'requests':>8} {'failed':>7} {'at home':>8} {'p95 wait':>9} {'tries':>6}"
    ]
    for name, one in result["scenarios"].items():
        if one.get("requests"):
            wait = f"{one['wait_s']['p95']:.2f} s"
            failed, home = f"{one['failed_share']:.1%}", f"{one['in_region_share'] or 0:.1%}"
            tries = one["attempts"]["mean"]
            figures = f"{one['requests']:>8} {failed:>7} {home:>8} {wait:>9} {tries or 0:>6.2f}"
        else:
            figures = ""
        rows.append(f"{name:<16} {one['verdict']:<8} {figures}".rstrip())
    return [*rows, f"{result['verdict']} in {result['seconds']:.0f} s"]


def _add_launch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--file", type=Path, required=True, metavar="YAML", help="what has to hold (launch.yaml)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the page and the evidence")
    parser.add_argument("--run", type=Path, metavar="DIR", dest="of_run", help="run folder of the pipeline")
    text = "drill.json of an earlier `run`, instead of testing now"
    parser.add_argument("--drill", type=Path, metavar="JSON", help=text)
    parser.add_argument("--plant", metavar="FAULT", help="break each fleet, so that the verdict should be no-go")
    parser.add_argument("--port-base", type=int, metavar="N", help="first port of the fleets")


def _launch(options: argparse.Namespace) -> dict[str, Any]:
    from .launch.run import Check, check
    from .plant import known

    if options.plant is not None:
        known(options.plant)
    return check(
        Check(
            file=options.file,
            out=options.out,
            run=options.of_run,
            drill=options.drill,
            plant=options.plant,
            port_base=options.port_base,
        )
    )


def _launch_lines(result: dict[str, Any]) -> list[str]:
    from .launch.evidence import text_lines

    return text_lines(result)


def _plant(options: argparse.Namespace) -> dict[str, Any]:
    from .plant import FAULTS, plant

    if options.name == "list":
        return {"faults": {name: (one.__doc__ or "").strip() for name, one in FAULTS.items()}}
    if options.folder is None:
        tell("error: --folder of the fleet is missing")
        return {"exit_status": 2, "planted": ""}
    return {"planted": plant(options.name, options.folder, options.region)}


def _plant_lines(result: dict[str, Any]) -> list[str]:
    if "faults" in result:
        return [f"{name:<22} {text}" for name, text in result["faults"].items()]
    return [result["planted"]] if result["planted"] else []


def _chaos(options: argparse.Namespace) -> dict[str, Any]:
    from .chaos import run

    about = {"namespace": options.namespace, "service_s": options.service_time_s, "kubectl": options.kubectl}
    return {"manifest": run(options.what, options.kind, options.region, **about)}


def _judge(options: argparse.Namespace) -> dict[str, Any]:
    result = judge.run(options)
    return result | {"exit_status": judge.exit_status(result)}


def _scenarios(_options: argparse.Namespace) -> dict[str, Any]:
    found = {name: load_scenario(name) for name in names()}
    return {"scenarios": {name: {"about": one.about, "duration_s": one.duration_s} for name, one in found.items()}}


def _scenarios_lines(result: dict[str, Any]) -> list[str]:
    return [f"{name:<14} {one['duration_s']:>5g} s  {one['about']}" for name, one in result["scenarios"].items()]
