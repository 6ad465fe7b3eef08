"""Why a move is made, in words and numbers."""

from __future__ import annotations

from .iterative import Step
from .problem import Problem


def reason(problem: Problem, step: Step) -> str:
    """One line for people: how hot the region is, what that unlocks, and why it is this destination."""
    names, latency_ms, ring = problem.names, problem.latency_ms, problem.ring
    to, cause = names[step.to], names[step.cause]
    away = f"{latency_ms[step.source, step.to]:.0f} ms, ring {ring[step.source, step.to]}"
    if step.source != step.cause or step.origin != step.source:
        here = names[step.origin]
        return (
            f"makes room in {here} for {cause}, to which that is the shortest way: overflow of {names[step.source]} "
            f"goes on from {here} ({latency_ms[step.source, step.origin]:.0f} ms) to {to} ({away})"
        )
    if step.through:
        return f"{_heat(problem, step)}; {to} ({away}) is full, and overflow of others moves on from it"
    return f"{_heat(problem, step)}; {to} ({away}) is the nearest with room, {step.room_rps:.2f} rps below its target"


def _heat(problem: Problem, step: Step) -> str:
    share, ring = problem.thresholds[step.level]
    name, capacity = problem.names[step.cause], problem.capacity[step.cause]
    rings = f"rings up to {ring}" if ring > 1 else "ring 1"
    if not capacity:
        return f"{name} has no capacity, which unlocks {rings}"
    heat = f"{100 * step.load_rps / capacity:.1f} %"
    return f"{name} is at {heat} of its capacity, above {100 * share:g} %, which unlocks {rings}"
