"""What followers in other places take over from a control loop (`/published.json`, `routing.follow`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from ..errors import InputError
from ..files import parse_json
from ..fleet import Fleet
from ..schema import RegionName, Share, Strict, validated
from ..table import RoutingTable


class Published(Strict):
    """A table in use, and what goes with it.

    Attributes:
        table: as published.
        delay_share: of jobs that wait before their first attempt, by source region.
        not_ready: why the table does not follow the traffic now; empty: it does.
    """

    table: RoutingTable
    delay_share: Mapping[RegionName, Share]
    not_ready: str = ""

    def to_dict(self) -> dict[str, Any]:
        """What the page holds."""
        return {
            "table": self.table.to_dict(),
            "delay_share": dict(self.delay_share),
            "not_ready": self.not_ready,
        }

    @classmethod
    def from_json(cls, text: str, fleet: Fleet) -> Self:
        """What a page says.

        Raises:
            InputError: it is something else, or of another fleet.
        """
        found = validated(cls, parse_json(text))
        found.table.check(fleet)
        for name in fleet.names:
            if name not in found.delay_share:
                raise InputError("is missing", key=f"delay_share.{name}")
        return found
