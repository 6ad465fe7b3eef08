"""Prints what the image installs: the extra `jobs` and what every part needs, less what this part does not."""

import re
import sys
import tomllib
from pathlib import Path

LEFT_OUT = {"numpy"}

project = tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["project"]
for requirement in [*project["dependencies"], *project["optional-dependencies"]["jobs"]]:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    if name and name[0] not in LEFT_OUT:
        sys.stdout.write(f"{requirement}\n")
