"""`render`: a routing table as configuration of Envoy, Istio or Gateway API."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..console import tell

NAME = "render"
HELP = "write a routing table as configuration of Envoy, Istio or Gateway API"

_FOR_ENVOY = ("seen_at", "emulate_latency", "validate")
_FOR_KUBERNETES = ("namespace", "port")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("--fleet", type=Path, required=True, metavar="YAML", help="regions, proxies, policies")
    parser.add_argument("--table", type=Path, required=True, metavar="JSON", help="as `plan --out` writes it")
    parser.add_argument("--target", choices=("envoy", "istio", "gateway-api"), default="envoy", help="default: envoy")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    envoy = parser.add_argument_group("for Envoy")
    text = "folder where Envoy will find the files (default: where they are written)"
    envoy.add_argument("--seen-at", type=Path, metavar="DIR", help=text)
    text = "ingresses delay requests by the round trip to where they come from, for a fleet on one machine"
    envoy.add_argument("--emulate-latency", action="store_true", default=None, help=text)
    envoy.add_argument("--validate", action="store_true", default=None, help="have Envoy check the files")
    kubernetes = parser.add_argument_group("for Istio and Gateway API")
    kubernetes.add_argument("--namespace", help="of the resources (default: stillmotion)")
    kubernetes.add_argument("--port", type=_port, help="of the Services of ingresses (default: 8080)")


def _port(text: str) -> int:
    value = int(text)
    if not 0 < value < 2**16:
        raise argparse.ArgumentTypeError(f"{value} is no port")
    return value


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Write the files."""
    others = _FOR_KUBERNETES if options.target == "envoy" else _FOR_ENVOY
    for name in others:
        if getattr(options, name) is not None:
            options.usage_error(f"--{name.replace('_', '-')} is not for --target {options.target}")

    from ..fleet import load_fleet
    from ..table import RoutingTable

    fleet = load_fleet(options.fleet)
    table = RoutingTable.read(options.table, fleet)
    result = {"target": options.target, "out": str(options.out), "table_version": table.version}
    if options.target != "envoy":
        from ..targets.manifests import Place
        from ..targets.render import write_target

        given = {name: value for name in _FOR_KUBERNETES if (value := getattr(options, name)) is not None}
        rendered = write_target(options.target, options.out, fleet, table, Place(**given))
        for note in rendered.notes:
            tell(f"note: {note}")
        return {**result, "files": [str(path) for path in rendered.files], "notes": list(rendered.notes)}

    from ..envoy.folders import write_fleet

    proxies = write_fleet(
        options.out,
        fleet,
        table,
        base=options.fleet.parent,
        seen_at=options.seen_at,
        emulate_latency=bool(options.emulate_latency),
    )
    if options.validate:
        from ..envoy.binary import find_envoy
        from ..envoy.validation import validate

        validate(find_envoy(), proxies)
        tell(f"Envoy accepts all {len(proxies)}")
    about = [
        {"region": one.region, "role": one.role, "bootstrap": str(one.bootstrap), "threads": one.threads}
        for one in proxies
    ]
    return {**result, "validated": bool(options.validate), "proxies": about}


def lines(result: dict[str, Any]) -> list[str]:
    """What was written."""
    if "files" in result:
        return list(result["files"])
    return [f"{one['role']:<8} {one['region']:<16} {one['bootstrap']}" for one in result["proxies"]]
