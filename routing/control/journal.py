"""What was decided, and why: one JSON object a line, when something changes and not each round."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from ..console import tell
from ..metrics.observation import ScrapeProblem
from ..table import RoutingTable
from .state import ControlState, Decision

NAME = "decisions.jsonl"
LARGEST = 16 * 2**20
"""Bytes of the file; it then becomes `decisions.jsonl.1`, in place of the one before. Some 50,000 events."""
CHANGES_SHOWN = 12
"""Changes that a line for people has; programs get all."""
SHOWN = 50
"""Events that the status page has."""


class Journal:
    """Keeps events.

    Args:
        path: file that they are added to; None: none.
        wall: the time of day, with its zone.
        say: takes a line for people; by default stderr has it.
    """

    def __init__(self, path: Path | None, wall: Callable[[], datetime], say: Callable[[str], None] = tell) -> None:
        self._path, self._wall, self._say = path, wall, say
        self._broken = False
        self._frozen = ""
        self._held: dict[str, str] = {}
        self._bursts: dict[str, str] = {}
        self._wrong: dict[tuple[str, str], str] = {}
        self.recent: deque[dict[str, Any]] = deque(maxlen=SHOWN)

    def note(self, event: str, text: str, **more: Any) -> None:
        """Keep one event.

        Args:
            event: what kind it is.
            text: one line for people.
            more: what programs may want to know.
        """
        entry = {"at": self._wall().isoformat(timespec="milliseconds"), "event": event, "text": text, **more}
        self.recent.appendleft(entry)
        self._say(f"{event}: {text}")
        if self._path is None:
            return
        try:
            if self._path.exists() and self._path.stat().st_size > LARGEST:
                self._path.replace(self._path.with_name(f"{NAME}.1"))
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry, separators=(",", ":")) + "\n")
            self._broken = False
        except OSError as error:
            if not self._broken:  # traffic matters more than its log, and one line says so
                self._say(f"{self._path}: cannot be written ({error.strerror}); decisions are not logged")
            self._broken = True

    def table(self, table: RoutingTable, decision: Decision, state: ControlState) -> None:
        """A new table was published."""
        why: dict[str, list[str]] = {}
        for change in decision.changes:
            if change.source not in why:
                moves = [move.why for move in table.moves if move.source == change.source]
                why[change.source] = moves[:3] or ["comes home: there is room for it"]
        shown = decision.changes[:CHANGES_SHOWN]
        changed = ", ".join(f"{c.source} to {c.to} {c.before:.3f} > {c.after:.3f}" for c in shown)
        if more := len(decision.changes) - len(shown):
            changed += f" and {more} others"
        self.note(
            "table",
            f"{table.version}: {changed}",
            version=table.version,
            changes=[{"source": c.source, "to": c.to, "before": c.before, "after": c.after} for c in decision.changes],
            why=why,
            step=decision.step,
            held={source: held.text for source, held in decision.held.items()},
            demand_rps={n: known.demand.value if known.demand else None for n, known in state.regions.items()},
            capacity_rps={n: known.capacity.value if known.capacity else None for n, known in state.regions.items()},
        )

    def round(self, state: ControlState, decision: Decision, problems: tuple[ScrapeProblem, ...]) -> None:
        """What else is new in a round: freezes, what is held back, bursts, and what is wrong with metrics."""
        self._problems_of(problems)  # first, since they may be why the rest is so
        if decision.frozen != self._frozen:
            if not decision.frozen or not self._frozen:
                self.note("frozen" if decision.frozen else "thawed", decision.frozen or "metrics are back")
            self._frozen = decision.frozen
        held: dict[str, str] = {source: one.kind for source, one in decision.held.items()}
        for source, kind in held.items():
            if self._held.get(source) != kind:
                self.note("held", f"{source}: {decision.held[source].text}", source=source, kind=kind)
        self._held = held
        bursts = {name: one.burst.why for name, one in state.regions.items() if one.burst.since is not None}
        for name in bursts.keys() - self._bursts.keys():
            share = decision.delays[name]
            self.note("burst", f"{name}: {bursts[name]}; {share:.0%} of its jobs wait", region=name, delay_share=share)
        for name in self._bursts.keys() - bursts.keys():
            share = decision.delays[name]
            self.note("burst_over", f"{name}: {share:.0%} of its jobs wait", region=name, delay_share=share)
        self._bursts = bursts

    def _problems_of(self, problems: tuple[ScrapeProblem, ...]) -> None:
        found = {(str(one.kind), one.where): one.text for one in problems}
        for (kind, where), text in found.items():
            if (kind, where) not in self._wrong:
                self.note("metrics", f"{kind} {where}: {text}", kind=kind, where=where)
        for kind, where in self._wrong.keys() - found.keys():
            self.note("metrics_well", f"{kind} {where} is over", kind=kind, where=where)
        self._wrong = found

    @property
    def problems(self) -> list[Mapping[str, str]]:
        """What is wrong with metrics now."""
        return [{"kind": kind, "where": where, "text": text} for (kind, where), text in sorted(self._wrong.items())]
