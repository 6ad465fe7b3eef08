"""Builds an image of the service, starts it, asks it for animations and stops it: `python -m deploy.container`.

Exit status: 0 done, 1 failed, 2 wrong use, 130 interrupted.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.console import tell
from pipeline.errors import StillmotionError

from .build import DEFAULT_BASE, ROOT, Wanted, build, check
from .engine import BUILDERS
from .errors import ContainerError
from .trial import Container, started, try_out

# Where the image keeps the lists of what is inside.
_INVENTORY = "/usr/share/stillmotion"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do it, and return the exit status."""
    options = build_parser().parse_args(arguments)
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "1")
    try:
        result = make(options)
    except StillmotionError as error:
        tell(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        tell("interrupted")
        return 130
    sys.stdout.write(json.dumps(result, indent=2) + "\n" if options.json else "\n".join(lines(result)) + "\n")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m deploy.container", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="animator:latest", help="tag in the BentoML store (default: %(default)s)")
    parser.add_argument("--mounted", action="store_true", help="leave the model out, and mount it when it starts")
    parser.add_argument(
        "--base", default=DEFAULT_BASE, help="image to build on, with its digest (default: %(default)s)"
    )
    parser.add_argument("--tag", help="name of the image (default: that of the Bento)")
    parser.add_argument("--engine", choices=BUILDERS, help="what builds it (default: what is here, in this order)")
    parser.add_argument("--port", type=_port, default=0, help="on 127.0.0.1 while it is tried (default: a free one)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "container", help="for logs, lists and the video")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port: 1 to 65535, or 0 for a free one")
    return int(text)


def make(options: argparse.Namespace) -> dict[str, Any]:
    """Check, build, start, animate, stop; what came of it.

    Raises:
        StillmotionError: with one line of what is missing or went wrong.
    """
    out = options.out.resolve()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ContainerError(f"--out: {out} cannot be made ({error.strerror})") from error
    wanted = Wanted(options.model, options.mounted, options.base, options.tag, options.engine)
    ready = check(wanted, tell)
    began = time.monotonic()
    image = build(ready, out, tell)
    built_s = time.monotonic() - began
    engine = ready.engine
    size = int(engine.image(image, "{{.Size}}"))
    tell(f"built {image} in {built_s:.0f} s: {size / 1e9:.2f} GB")
    with started(engine, image, ready.folder if wanted.mounted else None, options.port) as container:
        _copy_inventory(container, out)
        trial = try_out(container, out, tell)
    return {
        "image": image,
        "base": wanted.base,
        "model": ready.model,
        "mounted": wanted.mounted,
        "engine": f"{engine.builder}, {engine.runner}",
        "build_s": round(built_s, 1),
        "size_mb": round(size / 1e6),
        "base_mb": round(int(engine.image(wanted.base, "{{.Size}}")) / 1e6),
        "largest_mb": _largest(out / "sizes.csv"),
        "components": len(json.loads((out / "sbom.cdx.json").read_text(encoding="utf-8"))["components"]),
        **{key: round(value, 2) if isinstance(value, float) else value for key, value in asdict(trial).items()},
        "out": str(out),
    }


def _copy_inventory(container: Container, out: Path) -> None:
    for name in ("sbom.cdx.json", "licenses.csv", "sizes.csv"):
        (out / name).unlink(missing_ok=True)
        container.engine.run("cp", f"{container.name}:{_INVENTORY}/{name}", str(out / name))


def _largest(sizes: Path, count: int = 6) -> dict[str, float]:
    with sizes.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {row["folder"]: float(row["megabytes"]) for row in rows[:count]}


def lines(result: dict[str, Any]) -> list[str]:
    """What came of it, for people."""
    place = Path(result["out"])
    with_model = "mounted" if result["mounted"] else "inside"
    largest = ", ".join(f"{name} {megabytes:.0f}" for name, megabytes in result["largest_mb"].items())
    found = [
        f"image        {result['image']} (model {result['model']} {with_model}), built in {result['build_s']:.0f} s",
        f"size         {result['size_mb']} MB, {result['base_mb']} MB of it the base; in MB: {largest}",
        f"start-up     {result['ready_s']:.1f} s from start to ready, on {result['runtime']}, as user {result['user']}",
        f"animation    {result['request_s']:.2f} s over HTTP: {place / 'clip.mp4'}",
        f"stop         {result['stop_s']:.1f} s, after the animation in flight",
        f"inside       {place / 'sbom.cdx.json'} ({result['components']} packages), {place / 'licenses.csv'}",
    ]
    if result["fallback"]:
        found.insert(3, f"             {result['fallback']}")
    return found


if __name__ == "__main__":
    sys.exit(main())
