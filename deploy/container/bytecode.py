"""Compiles the modules that a server loads into the folder that PYTHONPYCACHEPREFIX names; the build runs it.

    cd SOURCES && python bytecode.py

A read-only root takes no byte code while the server runs, so that each start would compile everything again. What
else the packages bring, most of it models of other people, stays as it is: its byte code alone would take 143 MB.
"""

from __future__ import annotations

import importlib
import pkgutil
import py_compile
import sys
from pathlib import Path

OURS = ("pipeline", "serving")
# What `bentoml serve` runs in its two processes.
SERVERS = ("bentoml_cli.cli", "bentoml_cli.serve", "_bentoml_impl.server.serving", "_bentoml_impl.worker.service")


def load(packages: tuple[str, ...], modules: tuple[str, ...]) -> list[str]:
    """Import each module of the packages and the others; names of those that cannot be imported."""
    names = [*packages, *modules]
    for package in packages:
        folder = Path(package)
        names += [found.name for found in pkgutil.walk_packages([str(folder)], f"{package}.") if not found.ispkg]
    missing = []
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    return missing


def sources() -> list[str]:
    """Files of the loaded modules that are written in Python."""
    files = {str(getattr(module, "__file__", None)) for module in list(sys.modules.values())}
    # PyTorch's modules that are no files say that they are some.
    return sorted(file for file in files if file.endswith(".py") and Path(file).is_absolute() and Path(file).is_file())


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    absent = load(OURS, ("service", *SERVERS))
    done = sources()
    for source in done:
        # Never compared with its source, whose time an engine may change: both are parts of one image.
        py_compile.compile(source, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    sys.stderr.write(f"{len(done)} modules compiled; not there: {', '.join(absent) or 'none'}\n")
