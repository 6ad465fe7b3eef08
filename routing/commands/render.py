"""`render`: a routing table as configuration of its proxies, here or on Kubernetes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console import tell

if TYPE_CHECKING:
    from ..fleet import Fleet
    from ..table import RoutingTable

NAME = "render"
HELP = "write a routing table as configuration of its proxies, here or on Kubernetes"

_BASE = Path("deploy/kubernetes/base")
_GONE = {"istio": "a mesh", "gateway-api": "a Gateway"}
_OPTIONS = {
    "envoy": ("seen_at", "emulate_latency", "validate"),
    "kubernetes": ("settings", "base", "validate"),
}
_ALL = dict.fromkeys(name for names in _OPTIONS.values() for name in names)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("--fleet", type=Path, required=True, metavar="YAML", help="regions, proxies, policies")
    text = "as `plan --out` writes it (default: all traffic at home, to begin with)"
    parser.add_argument("--table", type=Path, metavar="JSON", help=text)
    parser.add_argument("--target", type=_target, default="envoy", help=f"{' or '.join(_OPTIONS)} (default: envoy)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    text = "have Envoy and HAProxy check the files (envoy and kubernetes)"
    parser.add_argument("--validate", action="store_true", default=None, help=text)
    envoy = parser.add_argument_group("for Envoy")
    text = "folder where the proxies will find the files (default: where they are written)"
    envoy.add_argument("--seen-at", type=Path, metavar="DIR", help=text)
    text = "dispatchers delay requests by the round trip to where they come from, for a fleet on one machine"
    envoy.add_argument("--emulate-latency", action="store_true", default=None, help=text)
    kubernetes = parser.add_argument_group("for Kubernetes")
    kubernetes.add_argument("--settings", type=Path, metavar="YAML", help="images, clusters, scaling")
    kubernetes.add_argument("--base", type=Path, metavar="DIR", help=f"(default: {_BASE})")


def _target(text: str) -> str:
    if text in _GONE:
        raise argparse.ArgumentTypeError(
            f"{text} is no target any more: what is rendered for {_GONE[text]} cannot follow the traffic, and retries "
            "in no other region. Put it in front of the edges, which `--target kubernetes` writes"
        )
    if text not in _OPTIONS:
        raise argparse.ArgumentTypeError(f"{text} is none of {', '.join(_OPTIONS)}")
    return text


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Write the files."""
    for name in _ALL:
        if getattr(options, name) is not None and name not in _OPTIONS[options.target]:
            options.usage_error(f"--{name.replace('_', '-')} is not for --target {options.target}")
    if options.settings is None and options.target == "kubernetes":
        options.usage_error("--settings is required for --target kubernetes")

    from ..fleet import load_fleet

    fleet = load_fleet(options.fleet)
    table = _table(options, fleet)
    result = {"target": options.target, "out": str(options.out), "table_version": table.version}
    if options.target == "envoy":
        return {**result, **_envoy(options, fleet, table)}
    return {**result, **_kubernetes(options, fleet, table)}


def _table(options: argparse.Namespace, fleet: Fleet) -> RoutingTable:
    from ..table import RoutingTable

    if options.table is not None:
        return RoutingTable.read(options.table, fleet)
    from datetime import UTC, datetime

    from ..load import Load
    from ..planner import plan

    return plan(fleet, Load.of(fleet, {}), generated_at=datetime.fromtimestamp(0, UTC))


def _envoy(options: argparse.Namespace, fleet: Fleet, table: RoutingTable) -> dict[str, Any]:
    from ..proxies import Programs, write_fleet

    proxies = write_fleet(
        options.out,
        fleet,
        table,
        base=options.fleet.parent,
        seen_at=options.seen_at,
        emulate_latency=bool(options.emulate_latency),
    )
    if options.validate:
        Programs.find().check(proxies)
        tell(f"Envoy and HAProxy accept all {len(proxies)}")
    about = [
        {"region": one.region, "role": one.role, "config": str(one.config), "threads": one.threads} for one in proxies
    ]
    return {"validated": bool(options.validate), "proxies": about}


def _kubernetes(options: argparse.Namespace, fleet: Fleet, table: RoutingTable) -> dict[str, Any]:
    from ..kubernetes.overlays import write_overlays
    from ..kubernetes.settings import load_settings

    settings, folder = load_settings(options.settings), options.fleet.parent
    if options.validate:
        _try_with_programs(fleet, table, folder)
    notes = write_overlays(options.out, fleet, table, settings, base=options.base or _BASE, folder=folder)
    for note in notes:
        tell(f"note: {note}")
    about = [{"region": name, "folder": str(options.out / name)} for name in fleet.names]
    return {"validated": bool(options.validate), "overlays": about, "notes": notes}


def _try_with_programs(fleet: Fleet, table: RoutingTable, folder: Path) -> None:
    """What pods will have, but for the paths of certificates, which are not here as they are there."""
    import tempfile

    from ..proxies import Programs, write_fleet

    with tempfile.TemporaryDirectory() as scratch:
        proxies = write_fleet(Path(scratch), fleet, table, base=folder)
        Programs.find().check(proxies)
    tell(f"Envoy and HAProxy accept all {len(proxies)}")


def lines(result: dict[str, Any]) -> list[str]:
    """What was written."""
    if "overlays" in result:
        return [f"{one['region']:<16} kubectl apply -k {one['folder']}" for one in result["overlays"]]
    return [f"{one['role']:<10} {one['region']:<16} {one['config']}" for one in result["proxies"]]
