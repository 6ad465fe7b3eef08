"""What a scenario breaks while it runs, and mends: on this machine by itself, elsewhere by the operator's command."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Protocol

from laboratory.simulate.scenario import Failure
from routing.errors import InputError, RoutingError

_LIMIT_S = 60.0
_HOOK_LIMIT_S = 60.0


class Breaker(Protocol):
    """Breaks regions, and mends them."""

    def begin(self, failure: Failure, seconds: float) -> None:
        """Let a failure begin, of which it is known how long it will last.

        Raises:
            RoutingError: it cannot be done.
        """

    def end(self, failure: Failure) -> None:
        """Let it be over."""


class StandIns:
    """By the fault switches of the stand-ins of a fleet on this machine (`laboratory.local.gpu.Faults`).

    Args:
        servers: their URLs, by region.
    """

    def __init__(self, servers: Mapping[str, Sequence[str]]) -> None:
        self._servers = servers

    def begin(self, failure: Failure, seconds: float) -> None:
        order = {"slowness": failure.slowness} if failure.slowness != 1.0 else {"down_s": seconds}
        self._order(failure.region, order)

    def end(self, failure: Failure) -> None:
        if failure.slowness != 1.0:
            self._order(failure.region, {"slowness": 1.0})

    def _order(self, region: str, order: Mapping[str, float]) -> None:
        for url in self._servers[region]:
            order_stand_in(url, order)


class Hook:
    """By a command, which is given `begin` or `end`, `loss` or `slow`, the region, and how long or how slow.

    Args:
        command: with its arguments; it runs on the machine of the master.
    """

    def __init__(self, command: str) -> None:
        self._command = shlex.split(command)
        if not self._command:
            raise InputError("--fault-hook: is empty")

    def begin(self, failure: Failure, seconds: float) -> None:
        self._run("begin", failure, seconds)

    def end(self, failure: Failure) -> None:
        self._run("end", failure, 0.0)

    def _run(self, what: str, failure: Failure, seconds: float) -> None:
        kind = "loss" if failure.slowness == 1.0 else "slow"
        about = {"STILLMOTION_FAULT_SECONDS": f"{seconds:g}", "STILLMOTION_FAULT_SLOWNESS": f"{failure.slowness:g}"}
        command = [*self._command, what, kind, failure.region]
        try:
            done = subprocess.run(  # noqa: S603  # the operator's own
                command, check=False, timeout=_HOOK_LIMIT_S, capture_output=True, text=True, env=os.environ | about
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RoutingError(f"--fault-hook: {shlex.join(command)}: {error}") from error
        if done.returncode:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it says nothing"]
            raise RoutingError(f"--fault-hook: {shlex.join(command)} ended with {done.returncode}: {last[0]}")


def order_stand_in(url: str, order: Mapping[str, object]) -> None:
    """Set faults of one stand-in.

    Raises:
        RoutingError: it does not do so.
    """
    request = urllib.request.Request(  # noqa: S310  # of a fleet on this machine
        f"{url}/standin/faults", data=json.dumps(order).encode(), method="POST"
    )
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=_LIMIT_S):
            pass
    except (OSError, ValueError) as error:
        raise RoutingError(f"{url} takes no faults ({error})") from error
