"""What Locust runs: `locust -f loadtests/locustfile.py --headless --fleet-folder DIR --scenario steady`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from locust import events

# Locust gives the locustfile's own folder to imports, not the one above it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loadtests.loadtest import Arrivals, set_up
from loadtests.options import add_arguments

__all__ = ["Arrivals"]  # Locust looks for its users here


def _arguments(parser: Any, **_: Any) -> None:
    add_arguments(parser)


def _begin(environment: Any, web_ui: Any = None, **_: Any) -> None:
    master = set_up(environment)
    if web_ui is not None and master is not None:
        from loadtests.pages import add_pages

        add_pages(web_ui.app, master)


events.init_command_line_parser.add_listener(_arguments)
events.init.add_listener(_begin)
