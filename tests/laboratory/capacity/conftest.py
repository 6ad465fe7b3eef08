import json
import math
from datetime import UTC, datetime, timedelta

import pytest

from routing.fleet import Fleet

START = datetime(2025, 9, 1, tzinfo=UTC)  # a Monday


@pytest.fixture(scope="session")
def fleet():
    """Three regions 20 and 60 ms apart."""
    return Fleet.model_validate(
        {
            "regions": {"a": {"gpus": 10}, "b": {"gpus": 10}, "c": {"gpus": 10}},
            "latency_ms": {"a": {"b": 20.0, "c": 60.0}, "b": {"c": 60.0}},
            "service_time_s": 1.0,
            "rings_ms": [30.0, 100.0],
            "thresholds": [{"load": 0.75, "ring": 1}, {"load": 0.95, "ring": 2}],
            "target_load": 0.75,
        }
    )


def rows_of(days=7, rps=(20.0, 16.0, 12.0), shift_h=(0, 0, 0), step_s=3600):
    """(time, region, requests): a day curve from the value down to a third of it, by region at another hour."""
    found = []
    for i in range(round(days * 86_400 / step_s)):
        time = START + timedelta(seconds=i * step_s)
        for name, peak, shift in zip("abc", rps, shift_h, strict=True):
            curve = 2 / 3 + math.cos((time.hour - shift) * math.pi / 12) / 3
            found.append((time.isoformat(), name, round(peak * curve * step_s)))
    return found


def text_of(rows):
    return "time,region,requests\n" + "".join(f"{','.join(str(part) for part in row)}\n" for row in rows)


@pytest.fixture(scope="session")
def rows():
    return rows_of


@pytest.fixture
def history(tmp_path):
    """Writes a history of rows or text and gives its path."""

    def write(content):
        path = tmp_path / "history.csv"
        path.write_text(content if isinstance(content, str) else text_of(content))
        return path

    return write


@pytest.fixture
def bench(tmp_path):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({"model": "animator:1", "rungs": [{"name": "student", "times_s": [1.0, 1.0]}]}))
    return path
