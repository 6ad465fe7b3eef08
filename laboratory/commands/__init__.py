"""The laboratory's commands of `python -m routing`, one module each, as `routing.commands.Command` says."""

from __future__ import annotations

from routing.commands import Command

from . import capacity, experiment, fleet, rollout, simulate, tune

COMMANDS: tuple[Command, ...] = (fleet, rollout, experiment, simulate, capacity, tune)
