# ruff: noqa: INP001  # a script, no package
r"""Make a history of traffic, to try `python -m routing capacity` with. It is generated, and says so in its name.

    python scripts/make_traffic.py --out docs/examples/generated-traffic.csv
    python scripts/make_traffic.py --fleet docs/examples/small-fleet.yaml \
        --out docs/examples/generated-small-traffic.csv

Four weeks by the hour for the regions of a fleet: a day curve by local time, quieter weekends, growth of
2 % a week, one evening with a campaign, and Poisson noise.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from routing.console import tell
from routing.files import write_atomically
from routing.fleet import load_fleet

START = datetime(2025, 9, 1, tzinfo=UTC)  # a Monday
WEEKS = 4
PEAK_HOUR, TROUGH = 20.5, 0.3
WEEKEND = 0.85
GROWTH_A_WEEK = 1.02
# Requests per second at the peak of a weekday, by fleet and region.
PEAK_RPS = {
    "fleet": {"us-east": 42.0, "us-west": 24.0, "eu-west": 36.0, "ap-south": 20.0, "ap-east": 12.0},
    "small-fleet": {"us-east": 1.8, "us-west": 1.2, "eu-west": 1.5},
}
CAMPAIGN = ("eu-west", datetime(2025, 9, 17, 17, tzinfo=UTC), 3, 1.6)  # region, start, hours, factor


def mean_rps(fleet: str, region: str, longitude: float, time: datetime) -> float:
    """Requests per second, before noise."""
    local = time + timedelta(hours=longitude / 15)
    hour = local.hour + local.minute / 60
    curve = TROUGH + (1 - TROUGH) * ((1 + math.cos((hour - PEAK_HOUR) * math.pi / 12)) / 2) ** 1.5
    rps = PEAK_RPS[fleet][region] * curve * GROWTH_A_WEEK ** ((time - START).days // 7)
    if local.weekday() >= 5:
        rps *= WEEKEND
    where, start, hours, factor = CAMPAIGN
    if region == where and start <= time < start + timedelta(hours=hours):
        rps *= factor
    return rps


def main() -> None:
    """Write the history."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fleet", type=Path, default=Path("docs/examples/fleet.yaml"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    fleet, generator = load_fleet(options.fleet), np.random.default_rng(options.seed)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("time", "region", "requests"))
    for hour in range(WEEKS * 168):
        time = START + timedelta(hours=hour)
        for name, region in fleet.regions.items():
            mean = 3600 * mean_rps(options.fleet.stem, name, region.longitude or 0.0, time)
            rows.writerow((time.isoformat(), name, int(generator.poisson(mean))))
    write_atomically(options.out, text.getvalue())
    tell(f"written: {options.out}, {WEEKS} weeks of {len(fleet.names)} regions")


if __name__ == "__main__":
    main()
