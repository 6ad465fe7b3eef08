"""How things are, as one value: what `/status.json` gives, the page shows and Prometheus scrapes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from ..fleet import Fleet
from ..table import Move
from .journal import Journal
from .loop import Snapshot
from .state import RegionState, Shares
from .switches import Switches


@dataclass(frozen=True)
class RegionStatus:
    """One region. None: not known.

    Attributes:
        demand_rps, demand_now_rps: jobs per second of its users, smoothed and in the last round.
        assigned_rps: jobs per second that the table sends to it.
        capacity_rps: jobs per second that it can compute; `capacity_measured` is False while that is the fleet
            file's.
        planned_load: `assigned_rps` as a share of its capacity.
        threshold: share above which it sends overflow away.
        load: share of its ready GPU servers that computes.
        waiting: jobs in its dispatchers' queues.
        gpus, gpus_ready, gpus_missing: of the fleet file, that are ready, and the difference; where servers come and
            go (`least`), the difference to the least.
        cost_s, load_per_rps: seconds of a GPU server that a request takes; load that one more per second costs.
        attempts: of a job of its users.
        delay_share: of its users' jobs that wait before their first attempt.
        burst: why they do, or nothing.
        stale: whether nothing was heard of its demand for too long.
        edge_gone: whether nobody listens at its edges.
        drained: whether an operator wants it to get no jobs.
    """

    demand_rps: float | None
    demand_now_rps: float | None
    assigned_rps: float
    capacity_rps: float
    capacity_measured: bool
    planned_load: float | None
    threshold: float
    load: float | None
    waiting: float | None
    gpus: int
    gpus_ready: int | None
    gpus_missing: int | None
    cost_s: float | None
    load_per_rps: float | None
    attempts: float | None
    delay_share: float
    burst: str
    stale: bool
    edge_gone: bool
    drained: bool


@dataclass(frozen=True)
class Status:
    """The loop and its table.

    Attributes:
        epoch, version, generated_at: of the table.
        rounds, failed_rounds, tables: how many there were.
        interval_s: of the loop.
        seconds_since_last_good_round: None before the first.
        failure: of the last round, or nothing.
        frozen: why the table is, or nothing.
        switches: of operators, in words, or nothing.
        not_ready: why the table does not follow the traffic now, or nothing.
        regions: by name.
        shares, targets: as published, and as aimed at.
        held: {source: why its row does not go to its target}.
        step: part of the way that was gone in the last round.
        rps: {source: {destination: jobs per second answered with a result}}.
        moves: of the table.
        unserved_rps: of the table.
        problems: what is wrong with metrics.
        recent: the newest events, newest first.
    """

    epoch: int
    version: int
    generated_at: str
    rounds: int
    failed_rounds: int
    tables: int
    interval_s: float
    seconds_since_last_good_round: float | None
    failure: str
    frozen: str
    switches: str
    not_ready: str
    regions: Mapping[str, RegionStatus]
    shares: Shares
    targets: Shares
    held: Mapping[str, str]
    step: float
    rps: Mapping[str, Mapping[str, float]]
    moves: tuple[Move, ...]
    unserved_rps: Mapping[str, float]
    problems: tuple[Mapping[str, str], ...]
    recent: tuple[Mapping[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {"moves": [move.model_dump(by_alias=True) for move in self.moves]}


def status(
    fleet: Fleet,
    snapshot: Snapshot,
    journal: Journal,
    now: float,
    interval_s: float,
    switches: Switches | None = None,
) -> Status:
    """How things are.

    Args:
        fleet: whose traffic it is.
        snapshot: of the loop.
        journal: its newest events.
        now: monotonic seconds.
        interval_s: of the loop.
        switches: of operators.
    """
    drained = switches.state.drained if switches is not None else ()
    assigned = _assigned_rps(fleet, snapshot)
    decision, observation, table = snapshot.decision, snapshot.observation, snapshot.table
    return Status(
        epoch=table.epoch,
        version=table.version,
        generated_at=table.generated_at.isoformat(),
        rounds=snapshot.rounds,
        failed_rounds=snapshot.failed,
        tables=snapshot.tables,
        interval_s=interval_s,
        seconds_since_last_good_round=None if snapshot.well_at is None else round(now - snapshot.well_at, 3),
        failure=snapshot.failure,
        frozen=decision.frozen if decision else "",
        switches=switches.text if switches is not None else "",
        not_ready=snapshot.not_ready,
        regions={
            name: _region(fleet, name, known, snapshot, assigned[name], name in drained)
            for name, known in snapshot.state.regions.items()
        },
        shares={source: dict(row) for source, row in table.shares.items()},
        targets={source: dict(row) for source, row in decision.targets.items()} if decision else {},
        held={source: held.text for source, held in decision.held.items()} if decision else {},
        step=decision.step if decision else 1.0,
        rps={source: dict(row) for source, row in observation.rps.items()} if observation else {},
        moves=table.moves,
        unserved_rps=dict(table.unserved_rps),
        problems=tuple(journal.problems),
        recent=tuple(journal.recent),
    )


def _assigned_rps(fleet: Fleet, snapshot: Snapshot) -> dict[str, float]:
    """Jobs per second that the published table sends to each region, of the demand as it is believed now."""
    found = dict.fromkeys(fleet.names, 0.0)
    for source, row in snapshot.table.shares.items():
        if (demand := snapshot.state.regions[source].demand) is not None:
            for to, share in row.items():
                found[to] += share * demand.value
    return found


def _region(
    fleet: Fleet, name: str, known: RegionState, snapshot: Snapshot, assigned_rps: float, drained: bool
) -> RegionStatus:
    seen, decision = known.seen, snapshot.decision
    capacity = known.capacity.value if known.capacity else fleet.capacity_rps(name)
    attempts = None
    if seen.demand_rps and seen.retries_rps is not None:
        attempts = 1.0 + seen.retries_rps / seen.demand_rps
    return RegionStatus(
        demand_rps=known.demand.value if known.demand else None,
        demand_now_rps=seen.demand_rps,
        assigned_rps=assigned_rps,
        capacity_rps=capacity,
        capacity_measured=known.capacity is not None,
        planned_load=assigned_rps / capacity if capacity > 0 else None,
        threshold=fleet.thresholds[0].load,
        load=seen.load,
        waiting=seen.waiting,
        gpus=fleet.regions[name].gpus,
        gpus_ready=seen.gpus_ready,
        gpus_missing=seen.gpus_missing,
        cost_s=seen.cost_s,
        load_per_rps=seen.load_per_rps,
        attempts=attempts,
        delay_share=decision.delays[name] if decision else fleet.retry.delay.share,
        burst=known.burst.why if known.burst.since is not None else "",
        stale=name in decision.stale if decision else False,
        edge_gone=seen.edge_gone,
        drained=drained,
    )


_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_OF_REGION = {
    "demand_rps": "Jobs per second that users of a region send, smoothed",
    "assigned_rps": "Jobs per second that the table sends to a region",
    "capacity_rps": "Jobs per second that a region can compute",
    "planned_load": "What the table sends to a region, as a share of its capacity",
    "load": "Share of a region's ready GPU servers that computes",
    "waiting": "Jobs in the queues of a region's dispatchers",
    "gpus": "GPU servers of a region by the fleet file",
    "gpus_ready": "GPU servers that a region's dispatchers find ready, busy or not",
    "gpus_missing": "GPU servers of the fleet file that are not ready",
    "cost_s": "Seconds of a GPU server that one request takes",
    "load_per_rps": "Load that one more request per second costs a region",
    "attempts": "Attempts a job of a region's users",
    "delay_share": "Share of jobs that wait before their first attempt",
    "stale": "1 while nothing is heard of a region's demand",
    "burst": "1 while a burst is seen",
    "drained": "1 while an operator wants a region to get no jobs",
}
"""Of a region's status, those that are series, by name; `stale` is `region_stale`."""

Values = Mapping[tuple[str, ...], float | None]
"""By values of the labels."""


class Exported(Collector):
    """The series of one loop. Made once."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._status: Status | None = None
        self._age_s = float("inf")
        self._rounds = Counter("stillmotion_routing_rounds", "Rounds of the loop", ["outcome"], registry=self.registry)
        self._tables = Counter("stillmotion_routing_tables", "Tables that were published", registry=self.registry)
        self._problems = Counter(
            "stillmotion_routing_scrape_problems",
            "Proxies times rounds in which a metric was missing, late or absurd",
            ["kind"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "stillmotion_routing_round_seconds", "Time of one round", buckets=_BUCKETS, registry=self.registry
        )
        for outcome in ("ok", "failed"):
            self._rounds.labels(outcome)
        self.registry.register(self)

    def update(self, status: Status, took_s: float, problems: Iterable[str]) -> None:
        """After a round.

        Args:
            status: after it.
            took_s: the round's time.
            problems: kind of each that was seen in it.
        """
        failed_before, tables_before = (
            (0, 0) if self._status is None else (self._status.failed_rounds, self._status.tables)
        )
        self._status = status
        failed = status.failed_rounds > failed_before
        self._rounds.labels("failed" if failed else "ok").inc()
        self._tables.inc(status.tables - tables_before)
        self._seconds.observe(took_s)
        if not failed:  # otherwise they are those of the round before
            for kind in problems:
                self._problems.labels(kind).inc()

    def page(self, age_s: float | None) -> bytes:
        """The text that Prometheus scrapes.

        Args:
            age_s: seconds since the last round that succeeded; None: there was none.
        """
        self._age_s = float("inf") if age_s is None else age_s
        return generate_latest(self.registry)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Give the gauges, as prometheus_client asks for them. What is not known is not there."""
        yield _gauge("last_good_round_age_seconds", "Time since the last round that succeeded", {(): self._age_s})
        if (now := self._status) is None:
            return
        yield _gauge("frozen", "1 while the table is frozen", {(): bool(now.frozen)})
        yield _gauge("not_ready", "1 while the table does not follow the traffic", {(): bool(now.not_ready)})
        yield _gauge("table_version", "Version of the published table", {(): now.version})
        for name, text in _OF_REGION.items():
            found: Values = {(region,): getattr(one, name) for region, one in now.regions.items()}
            if name == "burst":
                found = {labels: bool(why) for labels, why in found.items()}
            yield _gauge("region_stale" if name == "stale" else name, text, found, "region")
        text = "Jobs per second above capacity that find no other region"
        yield _gauge("unserved_rps", text, {(one,): rps for one, rps in now.unserved_rps.items()}, "region")
        for name, text, rows in (
            ("share", "Share of a source's requests that a destination gets", now.shares),
            ("served_rps", "Jobs per second that were answered with a result", now.rps),
        ):
            cells: Values = {(source, to): value for source, row in rows.items() for to, value in row.items()}
            yield _gauge(name, text, cells, "source", "destination")


def _gauge(name: str, text: str, values: Values, *labels: str) -> GaugeMetricFamily:
    found = GaugeMetricFamily(f"stillmotion_routing_{name}", text, labels=labels)
    for names, value in values.items():
        if value is not None:
            found.add_metric(names, float(value))
    return found
