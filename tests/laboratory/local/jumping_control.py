"""The control loop on a clock that jumps: `STILLMOTION_JUMPS` names a file with the seconds that it is off."""

import asyncio
import os
import sys
from datetime import timedelta
from pathlib import Path

from routing.cli import build_parser
from routing.control.loop import wall_clock
from routing.control.service import Options, serve
from routing.fleet import load_fleet

OFF = Path(os.environ["STILLMOTION_JUMPS"])


def jumping():
    return wall_clock() + timedelta(seconds=float(OFF.read_text() or 0))


if __name__ == "__main__":
    given = build_parser().parse_args(["control", *sys.argv[1:]])
    options = Options(
        base=given.fleet.parent,
        out=given.out,
        envoy=given.envoy,
        interval_s=given.interval,
        prometheus=None,
        listen=given.listen,
        token_file=None,
        once=False,
        standby=False,
    )
    asyncio.run(serve(load_fleet(given.fleet), options, jumping))
