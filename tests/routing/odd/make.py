"""Odd histories, traces, fleet files and scenarios, as people bring them: `python tests/routing/odd/make.py FOLDER`.

Each has what a command has to say of it in one line; None: it is odd, and can be used.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from pyarrow import parquet


class Odd(NamedTuple):
    """A file, and what has to be said of it, in part; None: nothing is wrong."""

    name: str
    content: bytes
    said: str | None


START = datetime(2025, 9, 1, tzinfo=UTC)
HEAD = "time,region,requests\n"


def histories() -> Iterator[Odd]:
    """Of a fleet with the regions a, b and c."""
    hours = [(START + timedelta(hours=i)).isoformat() for i in range(48)]
    good = [f"{time},{region},{100 + i}" for i, time in enumerate(hours) for region in "abc"]

    def csv(name: str, said: str | None, rows: list[str], head: str = HEAD) -> Odd:
        return Odd(f"{name}.csv", (head + "\n".join(rows) + "\n").encode(), said)

    def with_row(name: str, said: str | None, row: str, at: int = 5) -> Odd:
        return csv(name, said, [*good[:at], row, *good[at + 1 :]])

    def of(value: str, at: int = 5) -> str:
        return ",".join([*good[at].split(",")[:2], value])

    yield csv("plain", None, good)
    yield with_row("thousands", "line 7: has 4 cells, and the header 3", of("10,060"))
    yield with_row("millions", "line 7: has 5 cells, and the header 3", of("1,010,060"))
    yield with_row("thousands-in-quotes", "line 7: requests is no number: 10,060", of('"10,060"'))
    yield with_row("thousands-with-a-point", "requests such as 10.060 may be a fraction or have", of("10.060"))
    yield with_row("thousands-with-a-space", "line 7: requests is no number: 10 060", of("10 060"))
    yield with_row("a-fraction", None, of("100.5"))
    yield with_row("a-cell-too-few", "line 7: has 2 cells, and the header 3", of("").rstrip(","))
    yield with_row("no-value", "line 7: requests is no number: ", of(""))
    yield with_row("true", "line 7: requests is no number: true", of("true"))
    yield csv(
        "column-twice",
        "has the column requests 2 times; leave one",
        [f"{row},1" for row in good],
        HEAD[:-1] + ",requests\n",
    )
    yield csv("time-twice", "has the column time 2 times", [f"{row},x" for row in good], HEAD[:-1] + ",time\n")
    yield csv("other-column-twice", None, [f"{row},x,y" for row in good], HEAD[:-1] + ",note,note\n")
    yield csv(
        "semicolons", "separates cells by semicolons", [row.replace(",", ";") for row in good], HEAD.replace(",", ";")
    )
    yield csv(
        "columns-in-another-order", None, [",".join(reversed(row.split(","))) for row in good], "requests,region,time\n"
    )
    yield csv("empty-lines", None, [line for row in good for line in (row, "")])
    yield csv("a-note-of-two-lines", None, [f'{row},"one\ntwo"' for row in good], HEAD[:-1] + ",note\n")
    notes = [f'{row},"one\ntwo"' for row in good]
    notes[5] = notes[5].replace(",105,", ",many,").replace(",101,", ",many,")
    yield csv("a-line-after-notes", "line 13: requests is no number: many", notes, HEAD[:-1] + ",note\n")
    yield Odd("with-a-mark.csv", ("\ufeff" + HEAD + "\n".join(good)).encode(), None)
    yield Odd("carriage-returns.csv", (HEAD + "\n".join(good)).replace("\n", "\r\n").encode(), None)
    yield Odd("utf-16.csv", (HEAD + "\n".join(good)).encode("utf-16"), "is no UTF-8 text")
    yield Odd(
        "latin.csv", (HEAD + "\n".join(good) + "\n").encode() + b"2025-09-03T00:00:00Z,\xe9,1\n", "is no UTF-8 text"
    )
    yield Odd("zeros.csv", bytes(4096), "has no column time")
    yield with_row(
        "year-1", "line 7: time is 0001-01-01T00:00:00+14:00, and not in the years", "0001-01-01T00:00:00+14:00,a,1"
    )
    yield with_row(
        "year-9999", "line 7: time is 9999-12-31T23:00:00-12:00, and not in the years", "9999-12-31T23:00:00-12:00,a,1"
    )
    yield with_row("no-such-day", "line 7: time is no ISO 8601 time", "2025-02-30T00:00:00Z,a,1")
    yield with_row("a-number-as-time", "line 7: time is no ISO 8601 time", "1756684800,a,1")
    near = "2025-09-01T00:00:00.001+00:00"
    text = f"line 3: {near.replace('.001', '.001000')} is 0.001 s after another time, and "
    yield csv("a-millisecond-apart", text, [f"{hours[0]},a,1", f"{near},a,1", "2025-09-15T00:00:00+00:00,a,1"])
    yield csv("a-microsecond-apart", "is 1e-06 s after another time", [*good, "2025-09-01T05:00:00.000001Z,a,1"])
    yield csv("years-apart", "is 3600 s after another time", [*good, "2098-09-01T00:00:00Z,a,1"])
    yield from parquet_histories(hours)


def parquet_histories(hours: list[str]) -> Iterator[Odd]:
    """The same as columns with types."""
    times, regions = [datetime.fromisoformat(time) for time in hours for _ in "abc"], list("abc") * len(hours)
    counts = [100 + i for i in range(len(times))]

    def columns(name: str, said: str | None, **changes: object) -> Odd:
        stamps = pa.array(times, pa.timestamp("us", tz="UTC"))
        table = {"time": stamps, "region": regions, "requests": counts} | changes
        file = io.BytesIO()
        parquet.write_table(pa.table(table), file)
        return Odd(f"{name}.parquet", file.getvalue(), said)

    yield columns("plain", None)
    yield columns("nanoseconds", None, time=pa.array(times, pa.timestamp("ns", tz="UTC")))
    yield columns("dictionary", None, region=pa.array(regions).dictionary_encode())
    yield columns("texts", None, time=[time.isoformat() for time in times], requests=[str(count) for count in counts])
    yield columns("booleans", "the column requests holds values of the type bool", requests=[True] * len(times))
    yield columns("lists", "the column requests holds values of the type list", requests=[[1]] * len(times))
    yield columns("nothing", "row 2: requests is no number: None", requests=[1, None, *counts[2:]])
    yield columns("numbers-as-times", "row 1: time is no ISO 8601 time", time=[20250901] * len(times))
    yield columns(
        "a-far-year",
        "holds values that cannot be read",
        time=pa.array([2**62] * len(times), pa.timestamp("us", tz="UTC")),
    )
    yield columns("no-zone", "row 1: 2025-09-01 00:00:00 has no time zone", time=pa.array(times, pa.timestamp("us")))
    twice = pa.table(
        [pa.array(times), pa.array(regions), pa.array(counts), pa.array(counts)],
        names=["time", "region", "requests", "requests"],
    )
    file = io.BytesIO()
    parquet.write_table(twice, file)
    yield Odd("column-twice.parquet", file.getvalue(), "has the column requests 2 times")
    yield Odd("cut.parquet", columns("x", None).content[:200], "is no Parquet that can be read")


def traces() -> Iterator[Odd]:
    """Arrivals of the same fleet."""
    head = "scheduled_at_s,region\n"
    yield Odd("plain.csv", (head + "1.5,a\n2,b\n").encode(), None)
    yield Odd("column-twice.csv", b"scheduled_at_s,region,region\n1,a,b\n", "has the column region 2 times")
    yield Odd(
        "time-twice.csv", b"scheduled_at_s,scheduled_at_s,region\n1,2,a\n", "has the column scheduled_at_s 2 times"
    )
    yield Odd("thousands.csv", (head + "1,a\n1,060,a\n").encode(), "line 3: has 3 cells, and the header 2")
    yield Odd("infinite.csv", (head + "inf,a\n").encode(), "line 2: scheduled_at_s is inf")
    yield Odd("empty.csv", b"", "has no column scheduled_at_s")


FLEET = """regions:
  a: {gpus: 10}
  b: {gpus: 10}
  c: {gpus: 10}
latency_ms: {a: {b: 20, c: 60}, b: {c: 60}}
service_time_s: 1
rings_ms: [30, 100]
thresholds: [{load: 0.75, ring: 1}, {load: 0.95, ring: 2}]
target_load: 0.75
"""


def fleets() -> Iterator[Odd]:
    """For `render`."""
    yield Odd("plain.yaml", FLEET.encode(), None)
    for name, old, new, said in (
        (
            "more-gpus-than-ports",
            "a: {gpus: 10}",
            "a: {gpus: 50000}",
            "data_plane.first_port: 50032 ports from 21000 on",
        ),
        ("most-gpus", "a: {gpus: 10}", "a: {gpus: 1000000}", "data_plane.first_port: 1000032 ports from 21000 on"),
        (
            "no-time-at-all",
            "service_time_s: 1",
            "service_time_s: 1.0e-9",
            "service_time_s: 1e-09 lets a region compute 1e+10",
        ),
        ("no", "  a: {gpus: 10}", "  no: {gpus: 10}", "line 2: the key no should be text; put it in quotes"),
        ("a-number", "  a: {gpus: 10}", "  1e3: {gpus: 10}", "line 2: the key 1e3 should be text; put it in quotes"),
        ("an-octal", "  a: {gpus: 10}", "  010: {gpus: 10}", "line 2: the key 010 should be text; put it in quotes"),
        ("a-day", "  a: {gpus: 10}", "  2025-01-31: {gpus: 10}", "line 2: the key 2025-01-31 should be text"),
        ("nothing", "  a: {gpus: 10}", "  ~: {gpus: 10}", "line 2: the key ~ should be text; put it in quotes"),
        ("in-braces", "latency_ms: {a: {b: 20", "latency_ms: {a: {yes: 20", "line 5: the key yes should be text"),
        ("quoted", "  a: {gpus: 10}", '  "a": {gpus: 10}', None),
    ):
        assert old in FLEET
        yield Odd(f"{name}.yaml", FLEET.replace(old, new).encode(), said)


SCENARIO = "name: odd\nduration_s: 60\ntable: home\narrivals: {load: 0.1}\n"


def scenarios() -> Iterator[Odd]:
    """For `simulate`, with the fleet above."""
    yield Odd("plain.yaml", SCENARIO.encode(), None)
    for name, old, new, said in (
        (
            "a-load-without-bound",
            "load: 0.1",
            "load: 1.0e+9",
            "arrivals: 1.8e+12 requests in 60 s; 100,000,000 are the most",
        ),
        ("rates-without-bound", "load: 0.1", "rps: {a: 1.0e+9}", "arrivals: 6e+10 requests in 60 s"),
        ("a-factor-without-bound", "load: 0.1", "load: 0.1, changes: [{at_s: 1, factor: 1.0e+9}]", "arrivals: "),
        (
            "all-at-once",
            "load: 0.1",
            "load: 0.1, changes: [{at_s: 1, until_s: 2, factor: 2.0e+7}]",
            "jobs would wait at once",
        ),
        (
            "a-burst-after-the-end",
            "load: 0.1",
            "bursts: [{at_s: 60, region: a, jobs: 5}]",
            "arrivals.bursts.0.at_s: 60 is not before the end (60)",
        ),
        (
            "a-burst-over-the-end",
            "load: 0.1",
            "bursts: [{at_s: 50, region: a, jobs: 5, over_s: 20}]",
            "arrivals.bursts.0.over_s: ends at 70",
        ),
        (
            "a-change-after-the-end",
            "load: 0.1",
            "load: 0.1, changes: [{at_s: 90, factor: 2}]",
            "arrivals.changes.0.at_s: 90 is not before",
        ),
        (
            "a-failure-after-the-end",
            "table: home",
            "table: home\nfailures: [{at_s: 90, region: a}]",
            "failures.0.at_s: 90 is not before the end",
        ),
        (
            "control-down-after-the-end",
            "table: home",
            "control: {down: [{at_s: 60}]}",
            "control.down.0.at_s: 60 is not before",
        ),
        ("a-failure-until-later", "table: home", "table: home\nfailures: [{at_s: 30, until_s: 90, region: a}]", None),
        (
            "a-billion-seconds",
            "duration_s: 60",
            "duration_s: 1.0e+9",
            "duration_s: should be less than or equal to 31622400",
        ),
        (
            "no-interval",
            "table: home",
            "control: {interval_s: 1.0e-6}",
            "control.interval_s: 1e-06 makes more than 1,000,000 rounds",
        ),
        (
            "no-service-time",
            "table: home",
            "service_time: {mean_s: 1.0e-9}",
            "service_time.mean_s: 1e-09 s lets a region compute 1e+10",
        ),
        (
            "no-service-time-planned",
            "table: home",
            "table: plan\nservice_time: {mean_s: 1.0e-9}",
            "service_time.mean_s: 1e-09 s",
        ),
    ):
        assert old in SCENARIO
        yield Odd(f"{name}.yaml", SCENARIO.replace(old, new).encode(), said)


KINDS = {"histories": histories, "traces": traces, "fleets": fleets, "scenarios": scenarios}

if __name__ == "__main__":
    for kind, make in KINDS.items():
        folder = Path(sys.argv[1]) / kind
        folder.mkdir(parents=True, exist_ok=True)
        for one in make():
            (folder / one.name).write_bytes(one.content)
