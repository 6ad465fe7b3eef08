"""Prints what the image installs: the extra `routing`, which is what proxies, agents and control loops need."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["project"]
for requirement in [*project["dependencies"], *project["optional-dependencies"]["routing"]]:
    sys.stdout.write(f"{requirement}\n")
