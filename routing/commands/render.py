"""`render`: a routing table as configuration of Envoy, Istio or Gateway API."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

NAME = "render"
HELP = "write a routing table as configuration of Envoy, Istio or Gateway API"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("--fleet", type=Path, required=True, metavar="YAML", help="regions, proxies, policies")
    parser.add_argument("--table", type=Path, required=True, metavar="JSON", help="as `plan` writes it")
    parser.add_argument("--target", choices=("envoy", "istio", "gateway-api"), default="envoy", help="default: envoy")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    envoy = parser.add_argument_group("for Envoy")
    text = "folder where Envoy will find the files (default: where they are written)"
    envoy.add_argument("--seen-at", type=Path, metavar="DIR", help=text)
    text = "ingresses delay requests by the round trip to where they come from, for a fleet on one machine"
    envoy.add_argument("--emulate-latency", action="store_true", help=text)
    envoy.add_argument("--validate", action="store_true", help="have Envoy check the files")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Write the files."""
    from ..fleet import load_fleet
    from ..table import RoutingTable

    fleet = load_fleet(options.fleet)
    table = RoutingTable.read(options.table, fleet)
    if options.target != "envoy":
        for name in ("seen_at", "emulate_latency", "validate"):
            if getattr(options, name):
                options.usage_error(f"--{name.replace('_', '-')} is for --target envoy")
        raise NotImplementedError
    from ..envoy.folders import write_fleet

    proxies = write_fleet(
        options.out,
        fleet,
        table,
        base=options.fleet.parent,
        seen_at=options.seen_at,
        emulate_latency=options.emulate_latency,
    )
    if options.validate:
        from ..envoy.binary import find_envoy
        from ..envoy.validation import validate

        validate(find_envoy(), proxies)
    return {
        "target": options.target,
        "out": str(options.out),
        "validated": options.validate,
        "proxies": [
            {"region": one.region, "role": one.role, "bootstrap": str(one.bootstrap), "threads": one.threads}
            for one in proxies
        ],
    }


def lines(result: dict[str, Any]) -> list[str]:
    """What was written."""
    return [f"{one['role']:<8} {one['region']:<16} {one['bootstrap']}" for one in result["proxies"]]
