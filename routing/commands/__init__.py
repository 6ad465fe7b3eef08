"""The commands of `python -m routing`, one module each: import it here and add it to `COMMANDS`.

Those of the laboratory are in `laboratory/commands`; the command line takes them where that package is.
"""

from __future__ import annotations

import argparse
from typing import Any, Protocol

from . import agent, control, drain, judge, plan, proxy, render
from .switches import drain_region, freeze, resume


class Command(Protocol):
    """What a command's module has."""

    NAME: str
    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add what the command takes; `--json` is there already."""

    def run(self, options: argparse.Namespace) -> dict[str, Any]:
        """Do the work and return what `--json` prints. `options.usage_error(text)` ends with status 2."""

    def lines(self, result: dict[str, Any]) -> list[str]:
        """The result for people."""


COMMANDS: tuple[Command, ...] = (
    plan,
    render,
    proxy,
    control,
    agent,
    drain_region,
    freeze,
    resume,
    drain,
    judge,
)
