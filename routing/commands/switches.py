"""`drain-region`, `freeze` and `resume`: the switches of operators, by the control loops' own pages."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_LIMIT_S = 10.0


@dataclass
class Switch:
    """One command.

    Attributes:
        NAME: of it, and of the switch.
        HELP: of it.
        region: whether a region is named.
    """

    NAME: str
    HELP: str
    region: Literal["never", "may be", "must be"]

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add what the command takes."""
        if self.region != "never":
            parser.add_argument("region", nargs=None if self.region == "must be" else "?", help="of the fleet")
        text = "control loops to tell, all of them (default: http://127.0.0.1:9900)"
        parser.add_argument("--control", default="http://127.0.0.1:9900", metavar="URL[,URL]", help=text)
        text = "file with the token that the loops were started with (default: STILLMOTION_CONTROL_TOKEN has it)"
        parser.add_argument("--token-file", type=Path, metavar="FILE", help=text)

    def run(self, options: argparse.Namespace) -> dict[str, Any]:
        """Tell the loops; how their switches are now."""
        import httpx

        from ..control.service import read_token
        from ..errors import RoutingError

        token = read_token(options.token_file)
        if token is None:
            options.usage_error("give --token-file, or the token in STILLMOTION_CONTROL_TOKEN")
        region = getattr(options, "region", None)
        path = f"/switches/{self.NAME}" + (f"/{region}" if region else "")
        found: dict[str, str] = {}
        for url in filter(None, (part.strip().rstrip("/") for part in options.control.split(","))):
            try:
                headers = {"Authorization": f"Bearer {token}"}
                answer = httpx.post(f"{url}{path}", headers=headers, timeout=_LIMIT_S, trust_env=False)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                text = f"{url} does not answer ({str(error) or type(error).__name__})"
                raise RoutingError(f"{text}; told before it: {', '.join(found) or 'none'}") from None
            if answer.status_code != httpx.codes.OK:
                raise RoutingError(f"{url}: {answer.text.strip()[:300]}")
            found[url] = answer.text.strip()
        return {"switches": found}

    def lines(self, result: dict[str, Any]) -> list[str]:
        """How the switches of each loop are."""
        return [f"{url}: {text}" for url, text in result["switches"].items()]


drain_region = Switch("drain-region", "let a region get no more jobs, as far as others can take them", "must be")
freeze = Switch("freeze", "keep the routing table as it is", "never")
resume = Switch("resume", "end a region's drain; without a region, all drains and the freeze", "may be")
