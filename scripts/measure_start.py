# ruff: noqa: INP001  # a script, no package
"""Start to ready of a real server, by runtime: eager, compiled at start, compiled ahead of time.

    PYTHONPATH=. python scripts/measure_start.py --starts 3 --out benchmarks/cpu/start.json

Each runtime gets a package of its own in the model store, which is taken out again. To start what a container starts,
run it with the packages of serving/requirements.txt alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline.commands.demo import serving
from pipeline.console import tell
from pipeline.machine import machine, versions
from pipeline.optimise.runtimes import Runtime
from pipeline.packaging.package import package
from pipeline.quiet import quiet_libraries
from pipeline.serve.sources import open_checkpoint


def measure(checkpoint: str | None, runtime: Runtime, starts: int, ready_s: float) -> dict[str, Any]:
    """Package a checkpoint, start servers of it one after the other, and stop each."""
    import bentoml

    began = time.perf_counter()
    packaged = package(open_checkpoint(checkpoint), {}, runtime)
    built = time.perf_counter()
    tell(f"{runtime}: packaged after {built - began:.0f} s")
    try:
        ready = [start(packaged.tag, ready_s) for _ in range(starts)]
    finally:
        bentoml.models.delete(packaged.tag)
    tell(f"{runtime}: ready after {', '.join(f'{one:.1f} s' for one in ready)}")
    return {
        "runtime": runtime,
        "package_s": round(built - began, 1),
        "starts_s": [round(one, 2) for one in ready],
        "start_to_ready_s": round(statistics.median(ready), 2),
    }


def start(tag: str, ready_s: float) -> float:
    """Seconds from the start of a server to its being ready."""
    with tempfile.TemporaryDirectory() as folder:
        # An empty cache: a server that starts for the first time, as every new container does.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        started = time.perf_counter()
        with serving(tag, 0, Path(folder) / "server.log", ready_s):
            return time.perf_counter() - started


def main() -> None:
    """Measure each runtime and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="folder or hub id (default: the shipped teacher)")
    parser.add_argument("--runtimes", nargs="+", default=["eager", "torchscript", "aot", "compile"])
    parser.add_argument("--starts", type=int, default=1, metavar="N", help="of each runtime; the median counts (1)")
    parser.add_argument("--ready", type=float, default=1800, metavar="SECONDS", help="longest wait (default: 1800)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    quiet_libraries()
    rows = [measure(options.checkpoint, runtime, options.starts, options.ready) for runtime in options.runtimes]
    result = {
        "command": "python " + " ".join(sys.argv),
        "machine": machine(),
        "versions": versions(),
        "servers": rows,
    }
    text = json.dumps(result, indent=2) + "\n"
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
