"""Looks at the control loop while a test runs: whether it answers, and which tables it publishes."""

from __future__ import annotations

import json
from typing import Any

from .deployment import ask
from .findings import Observed

# A loop that has been stopped for good has to be seen within a short run.
_LIMIT_S = 10.0


class Watch:
    """What the control loop's status page says over time.

    Args:
        url: of the control loop; empty: nobody is asked.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._asked = self._silent = 0
        self._first: int | None = None
        self._last: int | None = None
        self._rows: list[tuple[float, dict[str, dict[str, float]]]] = []

    def look(self, at_s: float) -> None:
        """Ask once.

        Args:
            at_s: seconds after the start, for the record.
        """
        if not self._url:
            return
        status, text = ask(f"{self._url}/status.json", limit_s=_LIMIT_S)
        self._asked += 1
        try:
            content: dict[str, Any] = json.loads(text) if status == 200 else {}
            version, shares = int(content["version"]), dict(content["shares"])
        except (ValueError, KeyError, TypeError):
            self._silent += 1
            return
        if self._first is None:
            self._first = version
        if version != self._last or not self._rows:
            self._rows.append((round(at_s, 2), shares))
        self._last = version

    def observed(self) -> Observed:
        """What objectives are judged by."""
        if not self._asked:
            return Observed()
        tables = 0 if self._first is None or self._last is None else self._last - self._first
        return Observed(tables, self._silent / self._asked)

    @property
    def tables(self) -> list[tuple[float, dict[str, dict[str, float]]]]:
        """(seconds after the start, shares) of each table that was seen, the first one included."""
        return self._rows
