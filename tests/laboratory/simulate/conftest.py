from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from laboratory import service_times as service
from laboratory.simulate.run import simulate
from laboratory.simulate.scenario import Experiment, Scenario
from routing.fleet import Fleet

KINDS = {
    "fixed": service.fixed,
    "exponential": service.exponential,
    "lognormal": lambda mean_s: service.lognormal(mean_s, 1.0),
}


def fleet_of(gpus, *, service_s=1.0, latency_ms=0.0, retry=None, **more) -> Fleet:
    """Regions a, b, c... with so many GPUs each, all as far from each other."""
    names = [chr(97 + i) for i in range(len(gpus))]
    return Fleet.model_validate(
        {
            "regions": {name: {"gpus": count} for name, count in zip(names, gpus, strict=True)},
            "latency_ms": {one: dict.fromkeys(names[i + 1 :], latency_ms) for i, one in enumerate(names[:-1])},
            "service_time_s": service_s,
            "rings_ms": [max(latency_ms, 1.0)],
            "thresholds": [{"load": 0.75, "ring": 1}],
            "target_load": 0.75,
            "retry": retry or {},
            **more,
        }
    )


def experiment_of(
    gpus, *, kind="fixed", service_s=1.0, latency_ms=0.0, retry=None, fleet=None, trace=(), shares=None, **scenario
) -> Experiment:
    """A small experiment, without lines unless they are asked for; settings of the scenario by name."""
    found = fleet_of(gpus, service_s=service_s, latency_ms=latency_ms, retry=retry, **(fleet or {}))
    settings = {"name": "test", "duration_s": 1000.0, "table": "home", "arrivals": {}} | scenario
    settings["proxies"] = {"queue": 0} | settings.get("proxies", {})
    experiment = Experiment(
        Scenario.model_validate(settings), found, KINDS[kind](service_s), trace=tuple(sorted(trace))
    )
    experiment.scenario.check(found)
    if shares is None:
        return experiment
    from datetime import UTC, datetime

    from routing.table import RoutingTable

    table = RoutingTable(generated_at=datetime(2025, 1, 1, tzinfo=UTC), shares=shares)
    return Experiment(experiment.scenario, found, experiment.times, table, experiment.trace)


@pytest.fixture(scope="session")
def make():
    """Makes a small experiment."""
    return experiment_of


@dataclass
class Batches:
    """Figures of a long run, in parts that are nearly independent."""

    refused: np.ndarray
    arrived: np.ndarray

    def interval(self, quantile):
        """Share that was refused, and half its confidence interval, by the ratio estimator over batches."""
        share = self.refused.sum() / self.arrived.sum()
        spread = np.std(self.refused - share * self.arrived, ddof=1) / self.arrived.mean()
        return share, quantile * spread / np.sqrt(len(self.arrived))


@pytest.fixture(scope="session")
def batches_of():
    def run(experiment, seed=0):
        series = simulate(experiment, seed).series
        warm = len(series) // 20
        return Batches(
            np.diff([float(one.failed.sum()) for one in series[warm:]]),
            np.diff([float(one.arrived.sum()) for one in series[warm:]]),
        )

    return run
