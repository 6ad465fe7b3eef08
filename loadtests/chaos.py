"""Failures of a scenario on Kubernetes, by Chaos Mesh (chaos-mesh.org): what `--fault-hook` calls.

A region that is lost is a PodChaos: all its GPU servers fail. One that is slow is a NetworkChaos: what its GPU servers
send is late. Nothing slows a GPU down, so that is an approximation: a job has some four packets to wait for (a
connection, the upload's windows, the answer), and a delay of `LONGEST_DELAY_S` is the most, since dispatchers take
servers that are slower to connect to for dead.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from typing import Any

from routing.errors import InputError, RoutingError
from routing.files import yaml_text

PACKETS = 4
LONGEST_DELAY_S = 0.8
_LIMIT_S = 60.0


def manifest(kind: str, region: str, *, namespace: str, seconds: float, slowness: float, service_s: float) -> Any:
    """Return the resource that makes a failure.

    Args:
        kind: loss or slow.
        region: whose GPU servers fail.
        namespace: that they are in.
        seconds: after which Chaos Mesh ends it, should nobody else do so.
        slowness: factor of the time that jobs take.
        service_s: that a job takes.
    """
    labels = {"app.kubernetes.io/name": "stillmotion", "app.kubernetes.io/component": "gpu"}
    spec: dict[str, Any] = {
        "mode": "all",
        "selector": {"namespaces": [namespace], "labelSelectors": {**labels, "stillmotion-region": region}},
        "duration": f"{max(1, round(seconds))}s",
    }
    if kind == "loss":
        spec |= {"action": "pod-failure"}
    else:
        delay_s = min(LONGEST_DELAY_S, max(0.001, (slowness - 1) * service_s / PACKETS))
        spec |= {"action": "delay", "direction": "to", "delay": {"latency": f"{delay_s * 1000:.0f}ms"}}
    return {
        "apiVersion": "chaos-mesh.org/v1alpha1",
        "kind": "PodChaos" if kind == "loss" else "NetworkChaos",
        "metadata": {"name": f"stillmotion-{kind}-{region}", "namespace": namespace},
        "spec": spec,
    }


def run(what: str, kind: str, region: str, *, namespace: str, service_s: float, kubectl: str) -> str:
    """Begin or end a failure, and return the manifest.

    Args:
        what: begin or end.
        kind, region, namespace, service_s: of `manifest`; how long and how slow is in the hook's environment.
        kubectl: command that applies and deletes, with `{region}` for the region's name; empty: nothing is done.

    Raises:
        InputError: the environment has no numbers.
        RoutingError: the command fails.
    """
    numbers = {}
    for name, usual in (("SECONDS", "60"), ("SLOWNESS", "2")):
        text = os.environ.get(f"STILLMOTION_FAULT_{name}", usual)
        try:
            numbers[name.lower()] = float(text)
        except ValueError:
            raise InputError(f"STILLMOTION_FAULT_{name}: {text} is no number") from None
    text = yaml_text(manifest(kind, region, namespace=namespace, service_s=service_s, **numbers))
    if kubectl:
        verb = ["apply"] if what == "begin" else ["delete", "--ignore-not-found"]
        command = [*shlex.split(kubectl.replace("{region}", region)), *verb, "-f", "-"]
        try:
            done = subprocess.run(  # noqa: S603  # the operator's own
                command, input=text, capture_output=True, text=True, timeout=_LIMIT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RoutingError(f"--kubectl: {shlex.join(command)}: {error}") from error
        if done.returncode:
            raise RoutingError(f"--kubectl: {shlex.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return text
