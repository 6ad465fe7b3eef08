"""A line of the verdict, and what follows from all lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Mark(StrEnum):
    """What a line says."""

    GO = "go"
    NO_GO = "no-go"
    NOT_SHOWN = "not shown"


@dataclass(frozen=True)
class Line:
    """One thing that has to hold.

    Attributes:
        area: that it belongs to: model, capacity, load tests or fault drill.
        claim: what should hold, for people.
        mark: whether it does.
        found: what was measured, for people.
        evidence: file that shows it, or the command that made it.
    """

    area: str
    claim: str
    mark: Mark
    found: str
    evidence: str

    def to_dict(self) -> dict[str, str]:
        return asdict(self) | {"mark": self.mark.value}


def verdict(lines: Sequence[Line]) -> str:
    """`go` where every line is one, and there is one; else `no-go`."""
    return "go" if lines and all(line.mark is Mark.GO for line in lines) else "no-go"


def reasons(lines: Sequence[Line]) -> list[str]:
    """Why it is no go, the measured reasons before what was not shown."""
    order = (Mark.NO_GO, Mark.NOT_SHOWN)
    return [f"{line.claim}: {line.found}" for mark in order for line in lines if line.mark is mark]


def marked(holds: bool) -> Mark:
    """Of something that was measured."""
    return Mark.GO if holds else Mark.NO_GO


def text_lines(document: dict[str, Any]) -> list[str]:
    """The verdict for a terminal."""
    signs = {"go": "go       ", "no-go": "NO-GO    ", "not shown": "NOT SHOWN"}
    found, area = [], ""
    for line in document["lines"]:
        if line["area"] != area:
            area = line["area"]
            found += ["", area]
        found.append(f"  {signs[line['mark']]}  {line['claim']}: {line['found']}")
    found += ["", f"{document['name']}: {document['verdict'].upper()} after {document['seconds']:.0f} s"]
    return [*found, *(f"  because {reason}" for reason in document["reasons"]), f"  page: {document['page']}"][1:]
