"""Prometheus' text format: the few series that are wanted, of the hundreds on a page."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from prometheus_client.parser import text_string_to_metric_families

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")


def read_samples(text: str, wanted: Collection[str]) -> Iterator[tuple[str, dict[str, str], float]]:
    """Name, labels and value of the wanted series, as they are written: NaN and negative values too.

    Raises:
        ValueError: a line of a wanted series is malformed.
    """
    # Only these lines are parsed: a page of Envoy or BentoML has hundreds, and there may be hundreds of pages.
    lines = [line for line in text.splitlines() if (found := _NAME.match(line)) and found[0] in wanted]
    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        for sample in family.samples:
            yield sample.name, sample.labels, float(sample.value)
