"""Evidence of traffic: load tests and fault drills on a fleet, each scenario with its objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from routing.errors import InputError
from routing.files import read_json
from routing.fleet import Fleet

from .evidence import Line, Mark, marked


def lines(area: str, scenarios: Sequence[str], drill: Mapping[str, Any], fleet: Fleet) -> list[Line]:
    """What a drill says of some scenarios.

    Args:
        area: of the verdict.
        scenarios: that have to pass.
        drill: document of `python -m loadtests run`.
        fleet: that it should have been run on.
    """
    found = []
    for name in scenarios:
        one = drill["scenarios"].get(Path(name).stem)
        if one is None:
            found.append(Line(area, name, Mark.NOT_SHOWN, "was not run", "the drill"))
        else:
            found += _of(area, Path(name).stem, one, fleet, planted=drill.get("planted"))
    return found


def read_drill(path: Path) -> dict[str, Any]:
    """The document of an earlier drill.

    Raises:
        InputError: it is none.
    """
    content: Any = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("scenarios"), dict):
        raise InputError("is not what `python -m loadtests run --json` writes", file=str(path))
    return content


def _of(area: str, name: str, one: Mapping[str, Any], fleet: Fleet, planted: str | None) -> list[Line]:
    evidence = str(Path(one.get("folder", ".")) / "report.html")
    if one["verdict"] == "void":
        return [Line(area, name, Mark.NOT_SHOWN, f"void: {'; '.join(one['void'])}", evidence)]
    if not _same(one.get("fleet", {}), fleet):
        return [Line(area, name, Mark.NOT_SHOWN, "was run on another fleet than this", evidence)]
    rows = [
        Line(area, f"{name}: {finding['text']}", marked(finding["verdict"] == "passed"), finding["why"], evidence)
        for finding in one["objectives"]
        if finding["verdict"] != "not judged"
    ]
    if planted:
        rows.append(Line(area, name, Mark.NO_GO, f"the fleet was broken on purpose: {planted}", evidence))
    return rows or [Line(area, name, Mark.NOT_SHOWN, "no objective could be judged", evidence)]


def _same(tested: Mapping[str, Any], fleet: Fleet) -> bool:
    gpus = {region: one["gpus"] for region, one in tested.get("regions", {}).items()}
    return gpus == {name: region.gpus for name, region in fleet.regions.items()}
