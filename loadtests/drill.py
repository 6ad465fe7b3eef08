"""A whole load test on this machine: a fleet for each scenario, Locust at its edges, and verdicts in one document."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laboratory.local.launch import Options, running
from routing.console import tell
from routing.errors import InputError
from routing.files import read_json, write_atomically
from routing.fleet import Fleet, load_fleet
from routing.schema import did_you_mean

from .form import PROMPT, make_form
from .options import see_that_it_fits
from .plant import plant
from .scenario import load_scenario
from .timed import Timed
from .verdict import Outcome

MOST_PROCESSES = 64
LOCUSTFILE = Path(__file__).parent / "locustfile.py"
_GRACE_S = 300.0  # beyond the requests themselves: start, the last answers, the verdict
_KEPT = "series", "tables", "machine", "versions", "edges"


@dataclass(frozen=True)
class Drill:
    """What is to be run.

    Attributes:
        fleet: file of the fleet.
        scenarios: names or files.
        out: folder for what comes of it.
        plant: fault to break each fleet with; None: none.
        region: of the fault; None: the most central.
        compress, seed, image, prompt: as Locust is given them.
        processes: workers; 1: one process does all.
        service_time: of the stand-ins, as `routing fleet up` takes it.
        port_base: first port of the fleets.
        html: whether Locust writes its own page too.
        tries: of a scenario whose run is void because the generator did not keep up, which says nothing of the fleet.
    """

    fleet: Path
    scenarios: tuple[str, ...]
    out: Path
    plant: str | None = None
    region: str | None = None
    compress: float = 1.0
    seed: int | None = None
    image: str | None = None
    prompt: str | None = None
    processes: int = 1
    service_time: str | None = None
    port_base: int | None = None
    html: bool = True
    tries: int = 2


def run(drill: Drill) -> dict[str, Any]:
    """Run it; each scenario has a fleet of its own, so that none begins with what another left.

    Returns:
        The document that is also in `<out>/drill.json`.

    Raises:
        InputError: a file or a name cannot be used; nothing is started.
        RoutingError: a fleet does not start.
    """
    fleet = load_fleet(drill.fleet)
    read = {name: load_scenario(name) for name in drill.scenarios}
    timed = {name: Timed.of(scenario.for_smoothing_s, fleet, drill.compress) for name, scenario in read.items()}
    for name, scenario in read.items():
        try:
            see_that_it_fits(scenario, fleet, timed[name])
        except InputError as error:
            raise error if error.file else error.within(name) from None
    _check(drill, fleet)
    labels = _labels(drill.scenarios)
    with contextlib.suppress(FileExistsError):
        drill.out.mkdir(parents=True)
    if not drill.out.is_dir():
        raise InputError(f"--out: {drill.out} is no folder")
    began, found = time.monotonic(), {}
    for name, scenario in read.items():
        seconds = timed[name](scenario.duration_s)
        tell(f"{labels[name]}: {seconds:.0f} s")
        for number in range(1, drill.tries + 1):
            found[labels[name]] = {**_one(drill, fleet, name, labels[name], seconds), "tries": number}
            if found[labels[name]].get("generator", {}).get("kept_up", True):
                break
    outcome = _overall([one["verdict"] for one in found.values()])
    result = {
        "verdict": outcome.value,
        "exit_status": outcome.exit_status,
        "fleet": str(drill.fleet),
        "planted": drill.plant,
        "seconds": round(time.monotonic() - began, 1),
        "scenarios": found,
    }
    write_atomically(drill.out / "drill.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    return result


def _check(drill: Drill, fleet: Fleet) -> None:
    """See that all arguments can be used, before a fleet starts."""
    if not 1 <= drill.processes <= MOST_PROCESSES:
        raise InputError(f"--processes: {drill.processes} is not from 1 to {MOST_PROCESSES}")
    if drill.seed is not None and drill.seed < 0:
        raise InputError(f"--seed: {drill.seed} is below 0")
    if drill.region is not None and drill.region not in fleet.regions:
        raise InputError(f"--region: {drill.region} is none of the fleet's{did_you_mean(drill.region, fleet.regions)}")
    make_form(None if drill.image is None else Path(drill.image), PROMPT if drill.prompt is None else drill.prompt)


def _one(drill: Drill, fleet: Fleet, name: str, label: str, seconds: float) -> dict[str, Any]:
    folder = drill.out / label
    folder.mkdir(exist_ok=True)
    home = folder / "fleet"
    shutil.rmtree(home, ignore_errors=True)  # the table of an earlier one would be gone on from
    options = Options(prometheus="no", port_base=drill.port_base, service_time=drill.service_time)
    began = time.monotonic()
    with running(fleet, drill.fleet, home, options):
        if drill.plant is not None:
            tell(f"planted: {plant(drill.plant, home, drill.region)}")
        status = _locust(_command(drill, name, folder, home), folder / "locust.log", seconds + _GRACE_S)
    verdict = folder / "verdict.json"
    content: Any = read_json(verdict) if verdict.is_file() else {}
    if not content or content["exit_status"] != status:
        # Whatever it says, a run that ended in another way than its verdict has none.
        how = "has not ended" if status is None else f"ended with {status}"
        why = f"locust {how}: {_last_line(folder / 'locust.log')}"
        content |= {"verdict": Outcome.VOID.value, "exit_status": Outcome.VOID.exit_status}
        content["void"] = [*content.get("void", []), why]
    if content["verdict"] == Outcome.PASSED.value:
        shutil.rmtree(home, ignore_errors=True)
    for line in _lines(content):
        tell(f"  {line}")
    kept = {key: value for key, value in content.items() if key not in _KEPT}
    return {**kept, "folder": str(folder), "took_s": round(time.monotonic() - began, 1)}


def _command(drill: Drill, name: str, folder: Path, home: Path) -> list[str]:
    path = str(Path(name).resolve()) if Path(name).is_file() else name
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"]
    command += ["--fleet-folder", str(home), "--scenario", path, "--compress", f"{drill.compress:g}"]
    for old in ("verdict.json", "report.html", "locust.html"):
        (folder / old).unlink(missing_ok=True)
    command += ["--verdict", str(folder / "verdict.json"), "--report", str(folder / "report.html")]
    command += ["--html", str(folder / "locust.html")] if drill.html else []
    command += ["--seed", str(drill.seed)] if drill.seed is not None else []
    command += ["--image", str(Path(drill.image).resolve())] if drill.image is not None else []
    command += ["--prompt", drill.prompt] if drill.prompt is not None else []
    command += ["--processes", str(drill.processes)] if drill.processes > 1 else []
    return command


def _locust(command: Sequence[str], log: Path, limit_s: float) -> int | None:
    """Run Locust to its end; its exit status, or None when it did not come to one."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603  # the command is ours
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, start_new_session=True
        )
        try:
            return process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30.0)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # workers of its own
            process.wait()


def _labels(scenarios: Sequence[str]) -> dict[str, str]:
    """Names of folders, each its own."""
    found: dict[str, str] = {}
    for name in scenarios:
        stem = Path(name).stem
        taken = sum(1 for one in found.values() if one == stem or one.startswith(f"{stem}-again"))
        found[name] = f"{stem}-again-{taken}" if taken else stem
    return found


def _overall(verdicts: Sequence[str]) -> Outcome:
    for worst in (Outcome.FAILED, Outcome.VOID):
        if worst.value in verdicts:
            return worst
    return Outcome.PASSED


def _last_line(path: Path) -> str:
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "it says nothing")


def _lines(content: dict[str, Any]) -> list[str]:
    found = [
        f"FAILED {one['text']}: {one['why']}" for one in content.get("objectives", ()) if one["verdict"] == "failed"
    ]
    found += [f"void: {why}" for why in content.get("void", ())]
    return [*found, content["verdict"]]
