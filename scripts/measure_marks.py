# ruff: noqa: INP001  # a script, no package
"""Measures what marking a clip costs, beside encoding it: `python scripts/measure_marks.py CHAIN.pem KEY.pem`."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.media.formats import FORMATS
from pipeline.media.video import encode
from serving.marks import make_marker
from serving.settings import Settings

_REPEATS = 20


def main() -> None:
    """Print a row for each format: what encoding, labels alone and labels with a manifest take."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("certificate", type=Path)
    parser.add_argument("key", type=Path)
    parser.add_argument("--side", type=int, default=512, help="pixels of a square clip")
    parser.add_argument("--frames", type=int, default=49)
    given = parser.parse_args()
    signing = make_marker(Settings(c2pa_certificate=given.certificate, c2pa_key=given.key))
    alone = make_marker(Settings())
    grid = np.indices((given.side, given.side)).sum(0)
    clip = np.stack([np.stack([grid + 3 * k, grid - 2 * k, grid // 2], -1) % 256 for k in range(given.frames)])
    clip = clip.astype(np.uint8)
    for name in FORMATS:
        began = time.perf_counter()
        data = encode(clip, 16, name)
        encoding = 1000 * (time.perf_counter() - began)
        label = _median_ms(lambda data=data, name=name: alone.mark(data, name, "m"))  # type: ignore[misc]
        both = _median_ms(lambda data=data, name=name: signing.mark(data, name, "m"))  # type: ignore[misc]
        added = len(signing.mark(data, name, "m")) - len(data)
        times = f"{encoding:.0f} ms | {label:.1f} ms | {both:.1f} ms"
        sys.stdout.write(f"| {name} | {len(data) / 2**20:.1f} MiB | {times} | {added} |\n")


def _median_ms(work: Callable[[], object]) -> float:
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


if __name__ == "__main__":
    main()
