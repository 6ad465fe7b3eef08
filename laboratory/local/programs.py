"""The programs of a fleet on one machine, with the commands that start them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from routing.data_plane import host_and_port
from routing.errors import RoutingError
from routing.files import write_atomically, yaml_text
from routing.metrics.pages import targets
from routing.metrics.prometheus import MorePage, scrape_config
from routing.proxies import Programs, Proxy
from routing.rollout.counters import PATH as JOBS_PATH

from .layout import CONTROL, FLEET, LEDGERS, PROXIES, Layout
from .records import Component

Servers = Literal["standin", "bentoml"]
MOST_PROCESSES = 32
"""Stand-ins up to this number have a process each, which can be killed as a real server can; of more, those of a region
share one. A process takes 20 MB."""

_GPU, _DISPATCHER, _EDGE, _CONTROL = range(4)  # stages: each is checked by the next, and is there when it first looks
_PYTHON = (sys.executable, "-m")
_RULES = Path(__file__).resolve().parents[2] / "deploy" / "prometheus" / "rules"


@dataclass(frozen=True)
class StandIns:
    """How stand-ins are started.

    Attributes:
        service_time: as text; see `laboratory.service_times`.
        seed: of the times.
        ledgers: whether they note each computation.
        alone: whether each has a process of its own; None: up to `MOST_PROCESSES` of them.
    """

    service_time: str
    seed: int = 0
    ledgers: bool = False
    alone: bool | None = None


def stand_ins(layout: Layout, options: StandIns) -> Iterator[Component]:
    """Stand-ins for GPU servers."""
    more = ["--service-time", options.service_time, "--seed", str(options.seed), "--ready", layout.fleet.jobs.ready]
    more += [part for path in layout.fleet.jobs.paths for part in ("--path", path)]
    if options.ledgers:
        more += ["--ledger", str(layout.folder / LEDGERS)]
    count = sum(len(place.servers) for place in layout.places.values())
    alone = count <= MOST_PROCESSES if options.alone is None else options.alone
    for region, place in layout.places.items():
        named = [(layout.gpu_name(region, i), server) for i, server in enumerate(place.servers, start=1)]
        groups = [[one] for one in named] if alone else [named] * bool(named)
        for group in groups:
            served = [part for gpu, address in group for part in ("--serve", f"{gpu}={address}")]
            yield Component(
                name=f"gpu-{group[0][0]}" if alone else f"gpus-{region}",
                kind="gpu",
                region=region,
                stage=_GPU,
                command=(*_PYTHON, "laboratory.local.standin", "--region", region, *served, *more),
                ports=tuple(_port(address) for _, address in group),
            )


def bentoml_servers(layout: Layout, model: str | None) -> Iterator[Component]:
    """Real servers, one a GPU, each with a home of its own: in a shared one they mix up their metrics.

    Raises:
        RoutingError: BentoML or the service is not installed.
    """
    found = importlib.util.find_spec("service")
    if found is None or found.origin is None or importlib.util.find_spec("bentoml") is None:
        raise RoutingError("the service is not installed here: pip install 'stillmotion[serve]', or --servers standin")
    store = Path(os.environ.get("BENTOML_HOME") or Path.home() / "bentoml")
    count = sum(len(place.servers) for place in layout.places.values())
    gpus = len([path for path in Path("/dev").glob("nvidia[0-9]*") if path.name.removeprefix("nvidia").isdigit()])
    number = 0
    for region, place in layout.places.items():
        for i, server in enumerate(place.servers, start=1):
            name = layout.gpu_name(region, i)
            home = layout.folder / "homes" / name
            _make_home(home, store)
            environment = {"BENTOML_HOME": str(home), "STILLMOTION_REGION": region, "BENTOML_DO_NOT_TRACK": "true"}
            if model is not None:
                environment["STILLMOTION_MODEL"] = model
            if gpus:
                environment["CUDA_VISIBLE_DEVICES"] = str(number % gpus)
            elif "OMP_NUM_THREADS" not in os.environ:
                environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // count))
            number += 1
            port = _port(server)
            yield Component(
                name=f"gpu-{name}",
                kind="gpu",
                region=region,
                stage=_GPU,
                command=(
                    *_PYTHON,
                    "bentoml",
                    "serve",
                    "service:Stillmotion",
                    "--host",
                    "127.0.0.1",
                    "--port",
                    str(port),
                ),
                ports=(port,),
                environment=environment,
                folder=str(Path(found.origin).parent),
                ready_s=600.0,
                stop_s=15.0,
            )


def proxies(layout: Layout, installed: Programs, found: list[Proxy]) -> Iterator[Component]:
    """Edges and dispatchers."""
    for proxy in found:
        place, edge = layout.places[proxy.region], proxy.role == "edge"
        addresses = (place.edge, place.admin) if edge else (place.dispatchers[0].address, place.dispatchers[0].admin)
        yield Component(
            name=f"{proxy.role}-{proxy.region}",
            kind=proxy.role,
            region=proxy.region,
            stage=_EDGE if edge else _DISPATCHER,
            command=tuple(installed.command(proxy)),
            ports=tuple(_port(address) for address in addresses),
        )


def control_loop(layout: Layout, interval_s: float, program: tuple[str, ...] = ()) -> Component:
    """The control loop, which publishes to the edges; `program` takes its arguments instead."""
    folder = layout.folder
    command = (
        *(program or (*_PYTHON, "routing", "control")),
        *("--fleet", str(folder / FLEET), "--out", str(folder / CONTROL)),
        *("--envoy", str(folder / PROXIES), "--listen", layout.control, "--interval", f"{interval_s:g}"),
    )
    return Component(
        name="control", kind="control", region="", stage=_CONTROL, command=command, ports=(_port(layout.control),)
    )


def prometheus(layout: Layout) -> Component | None:
    """A Prometheus for people to look at, where one is installed; the control loop asks the machines itself."""
    program = shutil.which("prometheus")
    if program is None:
        return None
    config = layout.folder / "prometheus.yml"
    more = [MorePage("control", "", f"http://{layout.control}/metrics")]
    # What became of the jobs of each version of the model: `routing judge` compares them.
    more += [
        MorePage("dispatcher", region, f"http://{one.admin}{JOBS_PATH}")
        for region, place in layout.places.items()
        for one in place.dispatchers
    ]
    # Where there is a repository around this package, the rules that operators take are tried here as well.
    rules = [str(path) for path in sorted(_RULES.glob("*.yml"))]
    write_atomically(config, yaml_text(scrape_config(targets(layout.fleet), more=more, rules=rules)))
    command = (
        program,
        f"--config.file={config}",
        f"--storage.tsdb.path={layout.folder / 'prometheus'}",
        "--storage.tsdb.retention.time=6h",
        f"--web.listen-address={layout.prometheus}",
        "--log.level=warn",
    )
    ports = (_port(layout.prometheus),)
    return Component(name="prometheus", kind="prometheus", region="", stage=_CONTROL, command=command, ports=ports)


def _make_home(home: Path, store: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    for name in ("models", "bentos"):
        link = home / name
        if not link.exists() and (store / name).is_dir():
            link.unlink(missing_ok=True)
            link.symlink_to(store / name)


def _port(address: str) -> int:
    return host_and_port(address)[1]
