# ruff: noqa: INP001  # a script, no package
"""The reference of all modules, from their docstrings: `make docs`.

    python scripts/make_docs.py --out build/docs

pdoc itself leaves out the modules of packages that say what their public names are (`__all__`), and names that are
imported when they are first asked for; here it is told of each.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys
import warnings
from pathlib import Path

PACKAGES = ("pipeline", "serving", "routing", "laboratory", "loadtests", "deploy.container")
# What Locust runs registers itself with it.
LEFT_OUT = "loadtests.locustfile"


def complete(name: str) -> int:
    """Import a package with all that is in it, and add its modules to its public names; how many they are."""
    module = importlib.import_module(name)
    public = list(getattr(module, "__all__", ()))
    for one in public:
        setattr(module, one, getattr(module, one))
    inside = [one.name for one in pkgutil.iter_modules(getattr(module, "__path__", ()), f"{name}.")]
    inside = [one for one in inside if one != LEFT_OUT and not one.endswith(".__main__")]
    if public and inside:
        module.__dict__["__all__"] = [*public, *(one.rpartition(".")[2] for one in inside)]
    return 1 + sum(complete(one) for one in inside)


def main() -> None:
    """Import everything and write a page for each module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/docs"))
    options = parser.parse_args()
    # Locust replaces Python's sockets when it is imported, and does not get over what is imported here before.
    os.environ["LOCUST_SKIP_MONKEY_PATCH"] = "1"
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

    import pdoc
    import pdoc.render

    from pipeline.quiet import quiet_libraries

    quiet_libraries()
    count = sum(complete(name) for name in (*PACKAGES, "service"))
    # Types that are there for type checkers alone: their names are shown as they stand.
    warnings.filterwarnings("ignore", message="Error parsing type annotation")
    pdoc.render.configure(docformat="google", show_source=False, footer_text="stillmotion")
    pdoc.pdoc(*PACKAGES, "service", f"!{LEFT_OUT}", output_directory=options.out)
    sys.stdout.write(f"{options.out / 'index.html'}: {count} modules\n")


if __name__ == "__main__":
    main()
