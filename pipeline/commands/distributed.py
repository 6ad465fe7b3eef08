"""Processes that work on one request together, and a command that animates with them.

`torchrun --nproc-per-node 2 -m pipeline.commands.distributed --image assets/ball.png
--prompt "a red circle moves right" --out clip.mp4` animates the picture with two of them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist

from ..console import Counter, tell
from ..errors import StillmotionError, first_line
from ..writing import write_beside
from .animate import check_out, suffix_problem
from .options import add_model, existing

T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """One of the processes that work together.

    Attributes:
        rank: its number, from 0 to `world_size - 1`.
        world_size: how many there are.
        device: that it computes on; no two processes share a GPU.
    """

    rank: int
    world_size: int
    device: torch.device


@contextmanager
def init_from_environment(device: Literal["cuda", "cpu"] | None = None) -> Iterator[Process]:
    """Join the processes that torchrun started, and part from them at the end.

    Reads `RANK`, `WORLD_SIZE` and `LOCAL_RANK`, and `MASTER_ADDR` and `MASTER_PORT` for the meeting.
    On GPUs the processes talk through NCCL, on CPUs through gloo.

    Args:
        device: None takes GPUs where there are any.
    """
    rank, world_size, local_rank = (_number(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if device == "cpu" or (device is None and not torch.cuda.is_available()):
        place, backend = torch.device("cpu"), "gloo"
    else:
        gpus = torch.cuda.device_count()
        if local_rank >= gpus:
            raise StillmotionError(f"LOCAL_RANK: {local_rank}, but there are {gpus} GPUs here; a process needs its own")
        place, backend = torch.device("cuda", local_rank), "nccl"
        torch.cuda.set_device(place)
    try:
        dist.init_process_group(
            backend,
            rank=rank,
            world_size=world_size,
            timeout=timedelta(minutes=10),
            # Lets NCCL connect at once, so that what is wrong with the machine shows here.
            device_id=place if backend == "nccl" else None,
        )
    except (RuntimeError, ValueError) as error:  # torch's DistError is a RuntimeError
        reason = first_line(error)
        raise StillmotionError(f"torch.distributed: the processes cannot meet: {reason}") from error
    try:
        yield Process(rank, world_size, place)
    finally:
        dist.destroy_process_group()


def _number(name: str) -> int:
    text = os.environ.get(name)
    if text is None:
        raise StillmotionError(f"{name}: not set; start the processes with torchrun")
    if not text.isdecimal():
        raise StillmotionError(f"{name}: {text!r} is not a number")
    return int(text)


def together(work: Callable[[], T]) -> T:
    """Do what each process does by itself, and see that all of them could.

    Where one fails alone, the others would wait for it in the next exchange. Collective.
    """
    result: list[T] = []
    problem: str | None = None
    try:
        result.append(work())
    except StillmotionError as error:
        problem = str(error)
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    failed = [(rank, text) for rank, text in enumerate(problems) if text is not None]
    if failed:
        rank, text = failed[0]
        raise StillmotionError(str(text) if len(failed) == len(problems) else f"process {rank}: {text}")
    return result[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Animate one picture with all processes; rank 0 writes the file. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="torchrun --nproc-per-node N -m pipeline.commands.distributed",
        description="Animate one picture with several processes, which share frames or tokens.",
    )
    parser.add_argument("--image", type=Path, required=True, help="PNG, JPEG or WebP")
    parser.add_argument("--prompt", required=True, help="what moves and how, such as 'a red circle moves right'")
    parser.add_argument("--out", type=Path, required=True, help="file to write: .mp4, .webm, .webp or .gif")
    parser.add_argument("--seed", type=int, help="the same seed gives the same clip (default: drawn)")
    add_model(parser)
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: GPUs where there are any")
    options = parser.parse_args(arguments)
    try:
        with contextlib.redirect_stdout(sys.stderr), init_from_environment(options.device) as process:
            _animate(options, process)
    except StillmotionError as error:
        # After the meeting all processes raise the same error; one need say it.
        if os.environ.get("RANK", "0") == "0":
            tell(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    if process.rank == 0:
        sys.stdout.write(f"{options.out}\n")
    return 0


def _animate(options: argparse.Namespace, process: Process) -> None:
    from ..media import video
    from ..media.images import decode
    from ..optimise.context_parallel import share_passes
    from ..quiet import quiet_libraries
    from ..serve.request import AnimationRequest
    from ..serve.sources import open_model

    quiet_libraries()
    first = process.rank == 0

    def prepare() -> tuple[Any, Any]:
        if problem := suffix_problem(options.out):
            raise StillmotionError(problem)
        picture = decode(existing(options.image))
        if first:
            check_out(options.out, options.image)
        return picture, open_model(options.model, str(process.device))

    picture, animator = together(prepare)
    seed = [int.from_bytes(os.urandom(4)) if options.seed is None else options.seed]
    dist.broadcast_object_list(seed, src=0)
    share_passes(animator.pipe)
    request = AnimationRequest(options.prompt, seed=seed[0])
    animation = animator.animate(picture, request, on_step=Counter("step") if first else None)

    def write() -> None:
        data = video.encode(animation.clip, animation.fps, options.out.suffix.lower().removeprefix("."))
        write_beside(options.out, lambda path: path.write_bytes(data))
        tell(f"{animator.name}, seed {seed[0]}, {process.world_size} processes, {animation.compute_s:.1f} s")

    together(write if first else lambda: None)


if __name__ == "__main__":
    sys.exit(main())
