"""Rows: what agents beside edges take from a control loop (`/rows/REGION`), made once when it changes."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Self

from pydantic import Field

from ..errors import InputError
from ..files import parse_json
from ..fleet import Fleet
from ..schema import Items, RegionName, Share, Strict, validated
from ..table import ROW_TOLERANCE, RoutingTable

LONGEST_WAIT_S = 30.0
"""A poll that waits for a change is answered by then. Agents wait less, since a loop that is silent may be dead."""


class Row(Strict):
    """One region's row of the table in use, and what goes with it.

    Attributes:
        region: whose users' jobs it is for.
        epoch, version: of the table. The later is the one with the higher epoch, and of one epoch the higher version:
            a loop that starts without its table takes a higher epoch, so that none goes back.
        shares: {destination: share}; they sum to 1.
        delay_share: share of the jobs that wait before their first attempt.
        drained: regions that neither first attempts nor retries may go to.
        warming: whether the loop has just started, and knows too little to be followed.
        not_ready: why the table does not follow the traffic now; empty: it does.
    """

    region: RegionName
    epoch: Annotated[int, Field(ge=1)]
    version: Annotated[int, Field(ge=1)]
    shares: Mapping[RegionName, Share]
    delay_share: Share = 0.0
    drained: Annotated[tuple[RegionName, ...], Items] = ()
    warming: bool = False
    not_ready: str = ""

    @property
    def order(self) -> tuple[int, int]:
        """Later rows have the higher one."""
        return self.epoch, self.version

    def to_json(self) -> str:
        """Text of it; `from_json` gives the same row again."""
        return json.dumps(self.model_dump(mode="json"), separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str, fleet: Fleet, region: str) -> Self:
        """Read a row.

        Raises:
            InputError: it is something else, of another region or fleet, or against its law.
        """
        row = validated(cls, parse_json(text))
        if row.region != region:
            raise InputError(f"is {row.region}, and should be {region}", key="region")
        if abs(sum(row.shares.values()) - 1) > ROW_TOLERANCE:
            raise InputError(f"sum to {sum(row.shares.values()):.9g} and should to 1", key="shares")
        for to, share in row.shares.items():
            if to not in fleet.regions:
                raise InputError(f"{to} is none of the fleet's regions", key=f"shares.{to}")
            if share > 0 and not fleet.may(region, to):
                raise InputError(f"is {share:g}, and never.{region} of the fleet forbids it", key=f"shares.{to}")
        return row


@dataclass
class Rows:
    """The rows of all regions, each as the answer that agents get, and the polls that wait for another.

    An answer has a tag, which its agent gives back to wait for the next. Tags of two starts of a loop differ.
    """

    _start: str = field(default_factory=lambda: secrets.token_hex(4))
    _number: int = 0
    _known: dict[str, Row] = field(default_factory=dict)
    _answers: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    _changed: dict[str, asyncio.Event] = field(default_factory=dict)

    def update(
        self,
        table: RoutingTable,
        delays: Mapping[str, float],
        drained: frozenset[str] = frozenset(),
        *,
        warming: bool = False,
        not_ready: str = "",
    ) -> None:
        """Take what holds from now on; polls end whose row is another now. A row keeps the version it began with."""
        for region, shares in table.shares.items():
            before = self._known.get(region)
            row = Row(
                region=region,
                epoch=table.epoch,
                version=table.version,
                shares=dict(shares),
                delay_share=delays.get(region, 0.0),
                drained=tuple(sorted(drained)),
                warming=warming,
                not_ready=not_ready[:500],
            )
            if before is not None and before.epoch == row.epoch and before.shares == row.shares:
                row = row.model_copy(update={"version": before.version})
            if row == before:
                continue
            self._number += 1
            self._known[region] = row
            self._answers[region] = (f"{self._start}-{self._number}", row.to_json().encode())
            if region in self._changed:
                self._changed.pop(region).set()

    async def wait(self, region: str, after: str, seconds: float) -> tuple[str, bytes] | None:
        """Return tag and content of a region's row as soon as the tag is another; None: it is still the same.

        Raises:
            KeyError: there is no such region.
        """
        if self._answers[region][0] == after and seconds > 0:
            changed = self._changed.setdefault(region, asyncio.Event())
            try:
                async with asyncio.timeout(min(seconds, LONGEST_WAIT_S)):
                    await changed.wait()
            except TimeoutError:
                return None
        tag, content = self._answers[region]
        return None if tag == after else (tag, content)
