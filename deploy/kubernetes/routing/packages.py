"""Prints what the image installs: of the extra `routing` what proxies, agents and control loops need."""

import re
import sys
import tomllib
from pathlib import Path

# Of the simulator, the optimum that plans are compared with, and plots: not for a cluster.
LEFT_OUT = {"matplotlib", "numba", "scipy"}

project = tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["project"]
for requirement in [*project["dependencies"], *project["optional-dependencies"]["routing"]]:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    if name and name[0] not in LEFT_OUT:
        sys.stdout.write(f"{requirement}\n")
