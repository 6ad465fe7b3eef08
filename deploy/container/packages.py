"""Prints what an extra of `pyproject.toml` asks for, one package a line; a stage of the image's build installs it.

    python packages.py serve

Runs in the base image's Python, before anything is installed.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def packages(project: dict[str, object], extra: str) -> list[str]:
    """Requirements of an extra; those of the project itself come first in the extra that serves.

    Raises:
        KeyError: there is no such extra.
    """
    extras = project.get("optional-dependencies", {})
    assert isinstance(extras, dict)
    own = project["dependencies"] if extra == "serve" else []
    assert isinstance(own, list)
    return [*own, *extras[extra]]


if __name__ == "__main__":
    content = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
    sys.stdout.write("\n".join(packages(content["project"], sys.argv[1])) + "\n")
