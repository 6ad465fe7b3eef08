"""The last good table: what a loop that starts goes on from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, RoutingError
from ..fleet import Fleet
from ..table import RoutingTable

_MOST_KEPT = 1000


@dataclass(frozen=True)
class Saved:
    """What was found.

    Attributes:
        table: to go on from.
        text: where it is from, for people.
        sound: whether a table was found that could be used as it is, or none was there.
    """

    table: RoutingTable
    text: str
    sound: bool = True


def last_good(path: Path, fleet: Fleet, at_home: RoutingTable) -> Saved:
    """Read the table that was published last.

    A file that cannot be used is kept beside, under another name, for people to look at. One of a fleet that has
    other regions now is made to fit: its rows are traffic that works, and to take all of it home would not be.

    Args:
        path: of the table.
        fleet: that it should be of.
        at_home: the table to begin with where there is none, and for regions that are new.

    Raises:
        RoutingError: the unusable file cannot be moved away.
    """
    if not path.exists():
        return Saved(at_home, "no table was published here before; all traffic starts at home")
    try:
        table = RoutingTable.read(path)
    except InputError as error:
        kept = _set_aside(path)
        text = f"{error}; the file is kept as {kept.name}, all traffic starts at home"
        return Saved(at_home, text, sound=False)
    try:
        table.check(fleet)
    except InputError as error:
        new = RoutingTable(
            version=table.version + 1, generated_at=at_home.generated_at, shares=fitted(table, fleet, at_home)
        )
        return Saved(new, f"table {table.version} is of other regions ({error}); it was made to fit", sound=False)
    return Saved(table, f"goes on from table {table.version}")


def fitted(table: RoutingTable, fleet: Fleet, at_home: RoutingTable) -> dict[str, dict[str, float]]:
    """Rows for a fleet that has other regions: what went to a region that is no more stays at home, and a new
    region's row is that of `at_home`.
    """
    rows = {}
    for source in fleet.names:
        if source not in table.shares:
            rows[source] = dict(at_home.shares[source])
            continue
        row = {to: share for to, share in table.shares[source].items() if to in fleet.regions}
        row[source] = row.get(source, 0.0) + max(0.0, 1.0 - sum(row.values()))
        total = sum(row.values())
        rows[source] = {to: share / total for to, share in row.items()}
    return rows


def _set_aside(path: Path) -> Path:
    for number in range(1, _MOST_KEPT):
        kept = path.with_name(f"{path.name}.unusable-{number}")
        if not kept.exists():
            try:
                path.rename(kept)
            except OSError as error:
                raise RoutingError(f"{path}: cannot be used, and not be moved away ({error.strerror})") from error
            return kept
    raise RoutingError(f"{path}: cannot be used; neither can {_MOST_KEPT - 1} before it. Remove them")
