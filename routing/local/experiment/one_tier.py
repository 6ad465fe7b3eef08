"""One tier of Envoys: each edge picks a GPU server by itself, of the region that the table says.

Nothing that this project would run: it shows what ingresses are for. Three edges that each see their own requests
alone send jobs to servers that others have made busy.
"""

from __future__ import annotations

from typing import Any

from ...data_plane import Dispatcher, Place
from ...envoy.delay import resting
from ...envoy.edge import ROUTES_KIND, edge_bootstrap, edge_endpoints, edge_routes
from ...envoy.folders import (
    BOOTSTRAP,
    ENDPOINTS,
    ROUTES,
    RUNTIME,
    Proxy,
    edge_folder,
    write_endpoints,
    write_message,
    write_resources,
    write_runtime,
)
from ...envoy.messages import extension
from ...table import RoutingTable
from ..layout import ENVOY, Layout


def one_tier(layout: Layout, table: RoutingTable) -> list[Proxy]:
    """Write edges that know the GPU servers of all regions."""
    fleet = layout.fleet
    places = {name: _each_server_an_ingress(place) for name, place in layout.places.items()}
    found = []
    for name, place in layout.places.items():
        folder = edge_folder((layout.folder / ENVOY).resolve(), name)
        write_endpoints(folder / ENDPOINTS, edge_endpoints(fleet, name, places, table))
        write_resources(folder / ROUTES, ROUTES_KIND, [edge_routes(fleet, name)])
        write_runtime(folder / RUNTIME, resting(fleet.retry.delay))
        bootstrap = edge_bootstrap(fleet, name, place, folder)
        for cluster in bootstrap["static_resources"]["clusters"]:
            _pick_servers(cluster)
        write_message(folder / BOOTSTRAP, bootstrap)
        found.append(Proxy(name, "edge", folder, 1))
    return found


def _each_server_an_ingress(place: Place) -> Place:
    alone = tuple(Dispatcher(address=server, servers=(server,), admin=server) for server in place.servers)
    return place.model_copy(update={"dispatchers": alone})


def _pick_servers(cluster: dict[str, Any]) -> None:
    """As an ingress does: HTTP/1.1, and the server with the fewest requests of all in the region that was picked."""
    options = cluster["typed_extension_protocol_options"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"]
    options["explicit_http_config"] = {"http_protocol_options": {}}
    options["common_http_protocol_options"] = {"idle_timeout": "3s"}
    for check in cluster["health_checks"]:
        check["http_health_check"].pop("codec_client_type", None)
    kind = "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest"
    policy = extension(
        "envoy.load_balancing_policies.least_request",
        kind,
        selection_method="FULL_SCAN",
        locality_lb_config={"locality_weighted_lb_config": {}},
    )
    cluster["load_balancing_policy"] = {"policies": [{"typed_extension_config": policy}]}
