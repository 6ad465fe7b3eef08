"""The routing table: for each source region, the share of its requests to each region (`table.json`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AliasChoices, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from .errors import InputError
from .files import parse_json, read_text, write_atomically
from .fleet import Fleet
from .schema import Count, Items, Number, Share, Strict, did_you_mean, validated, wrong

ROW_TOLERANCE = 1e-6
"""How far a row that is read may be from 1. Planned rows are within 1e-9; people round when they edit."""


def _time(value: object) -> object:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise _no_time() from None
    if isinstance(value, datetime) and value.tzinfo is None:
        raise _no_time()
    return value


def _no_time() -> PydanticCustomError:
    return PydanticCustomError("time", "should be a time with its zone, such as 2025-01-31T12:00:00+00:00")


class Move(Strict):
    """One step of a plan, and why it was taken.

    Attributes:
        from_region, to: the region that is relieved, and the one that takes over (`from` and `to` in files).
        source: whose users' requests they are. It is `from_region`, but for overflow that is moved on to make
            room for a source that has no other.
        rps: requests per second that are moved.
        ring: of `to`, seen from `source`.
        why: in words and numbers.
    """

    from_region: str = Field(validation_alias="from", serialization_alias="from")
    to: str
    source: str
    rps: Number
    ring: Count
    why: str


class RoutingTable(Strict):
    """Shares of each source's requests, with the moves that led there.

    Attributes:
        epoch: of the versions; it grows when a control loop starts without the table that it had published.
        version: counts publications of an epoch; 1 for a plan that stands alone.
        generated_at: when, with a time zone.
        shares: {source: {destination: share}}; each row sums to 1. Shares of 0 are left out, but for home.
        moves: from all traffic at home to these shares; those of a kind are summed, in the order of their first.
        unserved_rps: {region: requests per second of its users that stay at home above its capacity}; files of the
            last release call it `left_over_rps`.
    """

    epoch: Annotated[int, Field(ge=1)] = 1
    version: Annotated[int, Field(ge=1)] = 1
    generated_at: Annotated[datetime, BeforeValidator(_time)]
    shares: Annotated[Mapping[str, Mapping[str, Share]], Field(min_length=1)]
    moves: Annotated[tuple[Move, ...], Items] = ()
    unserved_rps: Annotated[
        Mapping[str, Number], Field(validation_alias=AliasChoices("unserved_rps", "left_over_rps"))
    ] = {}

    @model_validator(mode="after")
    def _rows_sum_to_one(self) -> Self:
        for source, row in self.shares.items():
            total = sum(row.values())
            if abs(total - 1) > ROW_TOLERANCE:
                raise wrong(f"shares.{source}", f"sums to {total:.9g} and should to 1")
        return self

    def share(self, source: str, destination: str) -> float:
        """Share of the source's requests that go there, 0 to 1."""
        return self.shares[source].get(destination, 0.0)

    def check(self, fleet: Fleet) -> None:
        """See that it is of this fleet.

        Raises:
            InputError: a region is unknown, one has no row, or a share goes where `never` forbids it.
        """
        for source, row in self.shares.items():
            for name, key in ((source, f"shares.{source}"), *((to, f"shares.{source}.{to}") for to in row)):
                if name not in fleet.regions:
                    hint = did_you_mean(name, fleet.regions)
                    raise InputError(f"{name} is none of the fleet's regions{hint}", key=key)
            for to, share in row.items():
                if share > 0 and not fleet.may(source, to):
                    text = f"is {share:g}, and never.{source} of the fleet forbids {to} for these jobs"
                    raise InputError(text, key=f"shares.{source}.{to}")
        for name in fleet.regions:
            if name not in self.shares:
                raise InputError("is missing", key=f"shares.{name}")

    def to_dict(self) -> dict[str, Any]:
        """What its file holds."""
        content = self.model_dump(by_alias=True, mode="python")
        content["generated_at"] = self.generated_at.astimezone(UTC).isoformat()
        content["moves"] = list(content["moves"])
        return content

    def to_json(self) -> str:
        """Text of its file; `from_json` gives the same table again."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, fleet: Fleet | None = None, name: str = "") -> Self:
        """The table that a file's text holds.

        Args:
            text: as of `to_json`.
            fleet: that it must be of, or None.
            name: of the file, for errors.

        Raises:
            InputError: it is no table, or not of this fleet.
        """
        content = parse_json(text, name)
        try:
            table = validated(cls, content)
            if fleet is not None:
                table.check(fleet)
        except InputError as error:
            raise error.within(name) from None
        return table

    @classmethod
    def read(cls, path: Path | str, fleet: Fleet | None = None) -> Self:
        """The table of a file; see `from_json`."""
        return cls.from_json(read_text(Path(path)), fleet, str(path))

    def write(self, path: Path | str) -> None:
        """Replace the file at once.

        Raises:
            RoutingError: it cannot be written.
        """
        write_atomically(Path(path), self.to_json())
