"""The files of all overlays: made in memory, and written when all of them could be made."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..dispatcher.files import texts
from ..errors import InputError, RoutingError
from ..files import write_atomically, yaml_text
from ..fleet import Fleet
from ..table import RoutingTable
from .monitors import monitors
from .patches import (
    CONTROL_PORT,
    COPIES_PORT,
    control_patches,
    dispatcher_drain_s,
    dispatcher_patches,
    dispatcher_settings,
    edge_drain_s,
    edge_files,
    edge_patches,
    judge_patches,
    key_file,
    network_patches,
    rollout_patches,
    scaling_patch,
    suffix,
    traces_policy,
)
from .settings import KubernetesSettings, check, image_parts, read_secrets

_FLEET = "fleet.yaml"
_SECRETS = "secrets"
_TRACES = "traces.yaml"
_PARTS = ("region", "edge", "edge-scaling", "dispatcher", "control", "scaling", "rollout", "judge")
_MONITORS = "monitors.yaml"


def write_overlays(
    out: Path, fleet: Fleet, table: RoutingTable, settings: KubernetesSettings, *, base: Path, folder: Path
) -> list[str]:
    """Write an overlay for each region, for `kubectl apply -k`.

    Args:
        out: folder to write to.
        fleet: with its data plane.
        table: that edges start with.
        settings: of the clusters.
        base: `deploy/kubernetes/base`.
        folder: that paths of certificates and keys are seen from: the fleet file's.

    Returns:
        Notes: what is allowed, and should be known.

    Raises:
        InputError: the settings do not fit the fleet, or a certificate, key or base is missing. Nothing is written.
        RoutingError: a file cannot be written.
    """
    notes = check(fleet, settings)
    if (shadow := fleet.data_plane.shadow) is not None:  # each region's judge takes the copies of its edges
        judge = f"judge.{settings.namespace}.svc.{settings.cluster_domain}:{COPIES_PORT}"
        plane = {"shadow": shadow.model_copy(update={"receiver": judge})}
        fleet = fleet.model_copy(update={"data_plane": fleet.data_plane.model_copy(update=plane)})
    monitored = yaml_text(*monitors(base.resolve().parents[1] / "prometheus")) if settings.prometheus_operator else ""
    secrets = read_secrets(fleet, folder)
    for part in _PARTS:
        if not (base / part / "kustomization.yaml").is_file():
            raise InputError(f"{base} has no {part}/kustomization.yaml; it is deploy/kubernetes/base", key="--base")
    files: dict[Path, str] = {out / ".gitignore": f"# Keys and certificates.\n{_SECRETS}/\n"}
    for name in fleet.names:
        region = _Region(fleet, table, settings, name, base.resolve(), out.resolve() / name)
        files |= {out / name / path: text for path, text in region.files(secrets, key_file(fleet, folder)).items()}
        if monitored:
            files[out / name / _MONITORS] = monitored
    for path, text in files.items():
        _write(path, text, secret=path.parent.name == _SECRETS)
    return notes


@dataclass(frozen=True)
class _Region:
    """The overlay of one region."""

    fleet: Fleet
    table: RoutingTable
    settings: KubernetesSettings
    name: str
    base: Path
    folder: Path

    def files(self, secrets: Mapping[str, Mapping[str, str]], keys: Mapping[str, str]) -> dict[str, str]:
        """Text of each file, by its path in the overlay."""
        edge = edge_files(self.fleet, self.name, self.table)
        found = {f"edge/{name}": text for name, text in edge.items()}
        fleet = self.fleet.model_dump(mode="json", by_alias=True, exclude_none=True)
        for name, region in self.settings.regions.items():
            if region.scaling is not None:  # the control loop is to know who was scaled down from who is lost
                fleet["regions"][name]["least"] = region.scaling.least
        found[_FLEET] = yaml_text(fleet)
        dispatchers = self.fleet.places()[self.name].dispatchers
        for name, content in secrets.items():
            found |= {f"{_SECRETS}/{name}.{file}": text for file, text in content.items()}
        found |= {f"{_SECRETS}/{name}": text for name, text in keys.items()}
        for number, dispatcher in enumerate(dispatchers, start=1):
            part = f"dispatcher-{number}"
            domain = f"{self.settings.namespace}.svc.{self.settings.cluster_domain}"
            service = f"gpu{suffix(number)}.{domain}"
            candidate = f"gpu-candidate{suffix(number)}.{domain}" if self.settings.rollouts else None
            at = dispatcher_settings(self.fleet, self.name, service, dispatcher.size, candidate)
            files = texts(self.fleet, at)
            found |= {f"{part}/{name}": text for name, text in files.items()}
            found[f"{part}/kustomization.yaml"] = yaml_text(self._dispatcher(number, sorted(files)))
        if self.fleet.data_plane.tracing is not None:
            found[_TRACES] = yaml_text(traces_policy(self.fleet.data_plane.tracing, self.settings))
        found["kustomization.yaml"] = yaml_text(self._region(sorted(edge), secrets, keys, len(dispatchers)))
        return found

    def _region(
        self, edge: list[str], secrets: Mapping[str, Mapping[str, str]], keys: Mapping[str, str], dispatchers: int
    ) -> dict[str, Any]:
        leads = self.name in self.settings.control
        parts = [self._base("region"), *(f"dispatcher-{i}" for i in range(1, dispatchers + 1)), self._base("edge")]
        parts += [self._base("control")] if leads else []
        parts += [self._base("judge")] if self.settings.rollouts and dispatchers else []
        parts += [_TRACES] if self.fleet.data_plane.tracing else []
        parts += [self._base("edge-scaling")] if self.settings.regions[self.name].most_edges else []
        parts += [_MONITORS] if self.settings.prometheus_operator else []
        patches = edge_patches(self.fleet, self.settings, self.name)
        patches += network_patches(self.fleet, self.settings, self.name)
        patches += control_patches(self.settings, self.name) if leads else []
        patches += judge_patches(self.fleet, self.name) if self.settings.rollouts and dispatchers else []
        generated: list[dict[str, Any]] = [
            {"name": "place", "literals": [f"{key}={value}" for key, value in self._place().items()]},
            {"name": "fleet", "files": [_FLEET]},
        ]
        if edge:
            generated.append({"name": "edge-files", "files": [f"edge/{name}" for name in edge]})
        if self.settings.server:
            literals = [f"{key}={value}" for key, value in self.settings.server.items()]
            generated.append({"name": "server", "literals": literals})
        images = {"stillmotion": self.settings.images.server, "stillmotion-routing": self.settings.images.routing}
        found = {
            "namespace": self.settings.namespace,
            "resources": parts,
            # Prometheus takes its label `region` from it.
            "labels": [{"pairs": {"stillmotion-region": self.name}, "includeTemplates": True}],
            "images": [{"name": name, **image_parts(image)} for name, image in images.items()],
            "configMapGenerator": generated,
            "patches": patches,
        }
        made = [_secret(name, content) for name, content in secrets.items()]
        if keys:
            made.append({"name": "edge-keys", "type": "Opaque", "files": [f"{_SECRETS}/{name}" for name in keys]})
        return _kustomization(found | ({"secretGenerator": made} if made else {}))

    def _dispatcher(self, number: int, files: list[str]) -> dict[str, Any]:
        folder, parts = self.folder / f"dispatcher-{number}", []
        parts.append(self._base("dispatcher", folder))
        patches = dispatcher_patches(self.fleet, self.settings, self.name, number)
        if self.settings.regions[self.name].scaling is not None:
            parts.append(self._base("scaling", folder))
            patches.append(scaling_patch(self.fleet, self.settings, self.name, number))
        if self.settings.rollouts:
            parts.append(self._base("rollout", folder))
            patches += rollout_patches(number, scaled=self.settings.regions[self.name].scaling is not None)
        found = {
            "resources": parts,
            # What tells the GPU servers of one dispatcher from those of another, to Services and to Prometheus.
            "labels": [{"pairs": {"stillmotion-dispatcher": str(number)}, "includeSelectors": True}],
            # Its name stays when its content changes: the dispatcher reloads by itself, and no pod is replaced.
            "configMapGenerator": [
                {"name": "dispatcher-files", "files": files, "options": {"disableNameSuffixHash": True}}
            ],
            "patches": patches,
        }
        return _kustomization(found | ({"nameSuffix": suffix(number)} if number > 1 else {}))

    def _place(self) -> dict[str, str]:
        """What pods are told of where they are."""
        plane, settings = self.fleet.data_plane, self.settings
        return {
            "REGION": self.name,
            "STILLMOTION_REGION": self.name,
            "CONTROL": ",".join(self._control(name) for name in settings.control),
            "PROMETHEUS": settings.prometheus,
            "EDGE_THREADS": str(plane.limits.edge_threads),
            "LEAVE_S": f"{settings.leave_s:g}",
            "EDGE_DRAIN_S": str(edge_drain_s(self.fleet)),
            "DISPATCHER_DRAIN_S": str(dispatcher_drain_s(self.fleet)),
            "STILLMOTION_LOG": "json",
            **({"STILLMOTION_TRACES": plane.tracing.url} if plane.tracing else {}),
        }

    def _control(self, region: str) -> str:
        at = self.settings.regions[region].control
        return f"http://control:{CONTROL_PORT}" if region == self.name or at is None else f"http://{at}"

    def _base(self, part: str, seen_from: Path | None = None) -> str:
        return os.path.relpath(self.base / part, seen_from or self.folder)


def _kustomization(content: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", **content}


def _secret(name: str, content: Mapping[str, str]) -> dict[str, Any]:
    # Its name stays when a certificate is renewed, and Envoy takes that without a restart.
    return {
        "name": name,
        "type": "kubernetes.io/tls",
        "files": [f"{file}={_SECRETS}/{name}.{file}" for file in content],
        "options": {"disableNameSuffixHash": True},
    }


def _write(path: Path, text: str, *, secret: bool) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if secret:
            path.touch(mode=0o600)  # before there is anything to read in it
            path.chmod(0o600)
    except OSError as error:
        raise RoutingError(f"{path}: cannot be written ({error.strerror})") from error
    write_atomically(path, text)
