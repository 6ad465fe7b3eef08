"""What the Prometheus Operator takes, made of what Prometheus itself does: `deploy/prometheus`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import read_yaml

API = "monitoring.coreos.com/v1"
_LABEL, _PORT = "__meta_kubernetes_pod_label_app_kubernetes_io_name", "__meta_kubernetes_pod_container_port_name"
_KEYS = ("source_labels", "target_label", "regex", "replacement", "action")


def monitors(folder: Path) -> list[dict[str, Any]]:
    """Return a PodMonitor for each scrape job, and a PrometheusRule for each file of rules.

    Args:
        folder: `deploy/prometheus`.

    Raises:
        InputError: a file cannot be read, or a job has what a PodMonitor cannot have.
    """
    content = _read(folder / "prometheus.yml")
    found = [_monitor(job, content["global"], folder / "prometheus.yml") for job in content["scrape_configs"]]
    rules = sorted((folder / "rules").glob("*.yml"))
    found += [_resource("PrometheusRule", f"stillmotion-{one.stem}", {"groups": _read(one)["groups"]}) for one in rules]
    return found


def _monitor(job: Mapping[str, Any], usual: Mapping[str, Any], path: Path) -> dict[str, Any]:
    name = job["job_name"]
    if unknown := job.keys() - {"job_name", "metrics_path", "params", "kubernetes_sd_configs", "relabel_configs"}:
        raise InputError(f"{name}: {', '.join(sorted(unknown))} has no place in a PodMonitor", file=str(path))
    keeps = {one["source_labels"][0]: one["regex"] for one in job["relabel_configs"] if one.get("action") == "keep"}
    if keeps.keys() != {_LABEL, _PORT} or not re.fullmatch(r"\w+(\|\w+)*", keeps[_PORT]):
        raise InputError(f"{name}: keeps other targets than pods of a name with ports of some names", file=str(path))
    common = {"interval": usual["scrape_interval"], "scrapeTimeout": usual["scrape_timeout"]}
    common |= {"path": job["metrics_path"]} if "metrics_path" in job else {}
    common |= {"params": job["params"]} if "params" in job else {}
    common["relabelings"] = list(_relabelings(job))
    return _resource(
        "PodMonitor",
        name,
        {
            "selector": {"matchLabels": {"app.kubernetes.io/name": keeps[_LABEL]}},
            "podMetricsEndpoints": [{"port": port, **common} for port in keeps[_PORT].split("|")],
        },
    )


def _relabelings(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Give the rules that are none of the selector's, with the operator's names of keys."""
    for rule in job["relabel_configs"]:
        if rule.get("action") != "keep":
            yield {re.sub("_(.)", lambda found: found[1].upper(), key): rule[key] for key in _KEYS if key in rule}


def _resource(kind: str, name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    return {"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": dict(spec)}


def _read(path: Path) -> Any:
    content = read_yaml(path)
    if not isinstance(content, Mapping):
        raise InputError("should hold keys and values", file=str(path))
    return content
