"""Columns of a table that people bring, as CSV or Parquet: read by pyarrow, and refused where a cell would be lost.

A value that occurs in many rows is looked at once: a history of a million rows has far fewer times and regions.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from routing.errors import InputError, RoutingError
from routing.schema import did_you_mean

Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        values: distinct values, in the order in which they first occur; text, of a CSV.
        codes: (rows,), which of them each row has.
    """

    values: list[Any]
    codes: NDArray[np.int64]


@dataclass(frozen=True)
class Columns:
    """Some columns of a file.

    Attributes:
        path: of the file.
        columns: by name.
    """

    path: Path
    columns: dict[str, Column]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())).codes)

    def parsed(self, name: str, parse: Callable[[Any], Parsed]) -> tuple[list[Parsed], NDArray[np.int64]]:
        """Parse each distinct value of a column once.

        Returns:
            What `parse` made of the distinct values, and (rows,) which of them each row has.

        Raises:
            InputError: of `parse`, with the first row that has the value.
        """
        column, found = self.columns[name], []
        for code, value in enumerate(column.values):
            try:
                found.append(parse(value))
            except InputError as error:
                row = int(np.argmax(column.codes == code))
                raise InputError(f"{self.where(row)}: {error.message}") from None
        return found, column.codes

    def where(self, row: int) -> str:
        """`line 9` of a CSV or `row 7` of a Parquet file, for people; rows are counted from 0 here."""
        if _is_parquet(self.path):
            return f"row {row + 1}"
        # Counted again, since only an error needs it: cells may hold line breaks, and empty lines are no rows.
        line = next(islice(_lines(self.path), row + 1, None), None)
        return f"line {line[0]}" if line else f"row {row + 1}"


def read_columns(path: Path, names: Sequence[str], what: str) -> Columns:
    """Read some columns of a file; others may be there and are not looked at.

    Args:
        path: of a CSV (UTF-8, with a header, cells separated by commas) or a Parquet file (`.parquet`).
        names: of the columns.
        what: the file is, for errors: `a history has time, region and requests`.

    Raises:
        InputError: a column is missing or there twice, a row has more or fewer cells than the header, or the file
            cannot be read.
        RoutingError: pyarrow is not installed.
    """
    if not path.is_file():
        raise InputError("no such file" if not path.exists() else "is no file")
    try:
        import pyarrow as pa  # noqa: F401  # only whether it is there
    except ModuleNotFoundError as error:
        raise RoutingError("tables need pyarrow: pip install 'stillmotion[laboratory]'") from error
    table = _parquet(path, names, what) if _is_parquet(path) else _csv(path, names, what)
    return Columns(path, {name: _column(table.column(name)) for name in names})


def _column(arrow: Any) -> Column:
    import pyarrow as pa

    if pa.types.is_dictionary(arrow.type):  # as the file has it, perhaps with values that no row has
        arrow = arrow.cast(arrow.type.value_type)
    if pa.types.is_timestamp(arrow.type):  # Python has no nanoseconds
        arrow = arrow.cast(pa.timestamp("us", tz=arrow.type.tz), safe=False)
    # As one array before it is encoded: to bring the dictionaries of many into one takes ten times as long.
    one = arrow.combine_chunks()
    if isinstance(one, pa.ChunkedArray):
        raise InputError("has a column with more than 2 GiB of text")
    encoded = one.dictionary_encode("encode")
    try:
        values = list(encoded.dictionary.to_pylist())
    except (ValueError, OverflowError, LookupError) as error:  # Python has no such year or time zone
        raise InputError(f"holds values that cannot be read: {error}") from None
    return Column(values, np.asarray(encoded.indices, dtype=np.int64))


def _is_parquet(path: Path) -> bool:
    return path.suffix == ".parquet"


def _check_header(header: Sequence[str], names: Sequence[str], what: str) -> None:
    for name in names:
        if name not in header:
            if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
                raise InputError("separates cells by semicolons or tabs; write commas")
            hint = did_you_mean(name, header) if header else ""
            raise InputError(f"has no column {name}{hint}; {what}")
        if list(header).count(name) > 1:
            raise InputError(f"has the column {name} {list(header).count(name)} times; leave one")


def _csv(path: Path, names: Sequence[str], what: str) -> Any:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    _, header = next(_lines(path), (1, []))
    _check_header(header, names, what)
    try:
        return arrow_csv.read_csv(
            path,
            read_options=arrow_csv.ReadOptions(use_threads=False),  # distinct values stay in the order of the rows
            parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=list(names), column_types=dict.fromkeys(names, pa.string())
            ),
        )
    except pa.ArrowInvalid as error:
        raise _malformed(path, len(header), " ".join(str(error).split())) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}") from None


def _malformed(path: Path, width: int, why: str) -> InputError:
    """What is wrong with a CSV that pyarrow does not take."""
    if "invalid UTF8" in why:
        return InputError("is no UTF-8 text")
    for line, cells in _lines(path):
        if len(cells) != width:
            text = f"line {line}: has {len(cells)} cells, and the header {width}"
            return InputError(f"{text}; numbers need no thousands separators, and text with commas needs quotes")
    return InputError(f"is no CSV that can be read: {why[:200]}")


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(last line, cells) of each row, the header included, without empty lines."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            for cells in rows:
                if cells:
                    yield rows.line_num, cells
    except UnicodeDecodeError as error:
        raise InputError(f"is no UTF-8 text (byte {error.start})") from None
    except (OSError, csv.Error) as error:
        raise InputError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _parquet(path: Path, names: Sequence[str], what: str) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            _check_header(file.schema_arrow.names, names, what)
            table = file.read(columns=list(names))
            for name in names:
                _check_type(name, table.schema.field(name).type)
            return table
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"is no Parquet that can be read: {' '.join(str(error).split())[:200]}") from None


def _check_type(name: str, kind: Any) -> None:
    """Refuse types that Python would take for numbers or text, and that are none."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_boolean(kind) or types.is_nested(kind) or types.is_binary(kind):
        raise InputError(f"the column {name} holds values of the type {kind}")
