"""What lets a training run be interrupted: checkpoints that are never lost, and signals that wait for an update."""

from __future__ import annotations

import json
import pickle
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ..errors import StillmotionError, first_line
from ..writing import write_beside

_SETTINGS = "settings.json"
_LOSSES = "losses.csv"
# What torch, safetensors and the system raise of a full disk; the first two have no kind of their own for it.
_NOT_WRITTEN = (OSError, RuntimeError, SafetensorError)
_NOT_READ = (*_NOT_WRITTEN, ValueError, KeyError, EOFError, pickle.UnpicklingError)


def write_losses(folder: Path, losses: list[float]) -> None:
    """Write the loss of each update to `losses.csv` in a folder."""
    rows = [("update", "loss"), *enumerate(losses, start=1)]
    write_beside(folder / _LOSSES, lambda path: path.write_text("".join(f"{k},{loss}\n" for k, loss in rows)))


def read_losses(folder: Path) -> list[float]:
    """Return what `write_losses` wrote; nothing where there is no such file."""
    path = folder / _LOSSES
    lines = path.read_text(encoding="utf-8").splitlines()[1:] if path.is_file() else []
    return [float(line.split(",")[1]) for line in lines]


class DistillationError(StillmotionError):
    """Training cannot go on; the text says at which update, and what is kept."""


@dataclass
class Progress:
    """What a checkpoint holds beside weights: the number of updates done, and the loss of each."""

    updates: int = 0
    losses: list[float] = field(default_factory=list)

    def add(self, loss: float) -> None:
        self.updates += 1
        self.losses.append(loss)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "losses": self.losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates, self.losses = state["updates"], list(state["losses"])


class Averaged(EMAModel):  # type: ignore[misc]  # diffusers is untyped
    """Exponential moving average of weights. FSDP spreads it over the processes; in a checkpoint it is whole.

    Args:
        decay: the most; it rises to it as (1 + n) / (10 + n).
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.shadow_params: list[Tensor]
        super().__init__(parameters, decay=decay, min_decay=0.0, foreach=True)

    def whole(self) -> Iterator[Tensor]:
        """Averaged weights in the order of the parameters. All processes have to ask."""
        for shadow in self.shadow_params:
            yield whole(shadow)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "shadow_params": list(self.whole())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        mine = self.shadow_params
        super().load_state_dict(state)
        self.shadow_params = [_laid_out_as(m, loaded) for m, loaded in zip(mine, self.shadow_params, strict=True)]


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that FSDP may have spread over processes; all of them have to ask."""
    if isinstance(tensor, DTensor):
        full: Tensor = tensor.full_tensor()
        return full
    return tensor


def _laid_out_as(like: Tensor, tensor: Tensor) -> Tensor:
    tensor = tensor.to(like.device)
    return distribute_tensor(tensor, like.device_mesh, like.placements) if isinstance(like, DTensor) else tensor


class CheckpointFolder:
    """One checkpoint, in `folder/checkpoint`; a new one is whole before the last one goes.

    Args:
        run: what has to be the same when a run goes on; values that JSON has.

    Attributes:
        saved: update of the checkpoint that is there; 0 for none.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, run: dict[str, Any]) -> None:
        self.accelerator, self.folder = accelerator, folder
        self.run = json.loads(json.dumps(run))
        self.saved = 0

    @property
    def path(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def kept(self) -> str:
        """What there is to go on from, in words."""
        kept = f"the checkpoint of update {self.saved}" if self.saved else "no checkpoint"
        return f"{kept} is kept in {self.folder}"

    def save(self, updates: int) -> None:
        """Write a checkpoint beside the last one, and put it in its place once it is whole.

        Raises:
            DistillationError: it cannot be written, for example since the disk is full.
        """
        partial, old = self.folder / "checkpoint.partial", self.folder / "checkpoint.old"
        main = self.accelerator.is_main_process

        def clear() -> None:
            if main:
                shutil.rmtree(partial, ignore_errors=True)

        def write() -> None:
            partial.mkdir(parents=True, exist_ok=True)
            self.accelerator.save_state(str(partial))
            if main:
                (partial / _SETTINGS).write_text(json.dumps(self.run, indent=2) + "\n", encoding="utf-8")

        def replace() -> None:
            if not main:
                return
            shutil.rmtree(old, ignore_errors=True)
            if self.path.exists():
                self.path.rename(old)
            partial.rename(self.path)
            shutil.rmtree(old, ignore_errors=True)

        clear()
        self.accelerator.wait_for_everyone()
        try:
            self._together(write)
            self._on_all(partial / _SETTINGS)
            self._together(replace)
        except DistillationError as error:
            clear()
            raise DistillationError(
                f"{self.folder}: the checkpoint of update {updates} cannot be written ({error}); {self.kept}"
            ) from error
        self.saved = updates

    def load(self, **options: Any) -> bool:
        """Go back to the checkpoint; whether there is one.

        Args:
            options: of `load_state_dict` of the network.

        Raises:
            DistillationError: it cannot be read, or was made with other settings.
        """
        old = self.folder / "checkpoint.old"
        if self.accelerator.is_main_process and old.exists() and not self.path.exists():
            old.rename(self.path)  # killed between two renames
        self.accelerator.wait_for_everyone()
        if not self._on_all(self.path):
            return False
        try:
            self._check(json.loads((self.path / _SETTINGS).read_text(encoding="utf-8")))
            self.accelerator.load_state(str(self.path), **options)
        except _NOT_READ as error:
            raise DistillationError(
                f"{self.path}: cannot be read ({_reason(error)}); remove it to begin again"
            ) from error
        self.accelerator.step = 0  # of accumulation, which a checkpoint is never in the middle of
        return True

    def _check(self, made: dict[str, Any]) -> None:
        for name in sorted(self.run.keys() | made.keys()):
            before, now = made.get(name), self.run.get(name)
            if before != now:
                raise DistillationError(
                    f"{self.path}: was made with other settings ({name}: {before}, now {now}); use them again, or "
                    "another folder"
                )

    def _together(self, action: Callable[[], None]) -> None:
        """Act on all processes, and fail on all where one fails: none may wait for one that has given up."""
        failed: Exception | None = None
        try:
            action()
        except _NOT_WRITTEN as error:
            failed = error
        if self._count(failed is not None):
            if failed is None:
                raise DistillationError("on another process")
            doubt = "" if isinstance(failed, OSError) else "is the disk full? "
            raise DistillationError(doubt + _reason(failed)) from failed

    def _on_all(self, path: Path) -> bool:
        """Return whether there is such a path, which all processes have to agree on."""
        processes, seeing = self.accelerator.num_processes, self._count(path.exists())
        if seeing not in (0, processes):
            raise DistillationError(
                f"{path}: {seeing} of {processes} processes see it; machines that train together need a shared folder"
            )
        return bool(seeing)

    def _count(self, flag: bool) -> int:  # its one argument
        """Return on how many processes a flag is set. All have to ask."""
        mine = torch.tensor(float(flag), device=self.accelerator.device)
        return int(self.accelerator.reduce(mine, reduction="sum"))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or first_line(error)


class Interrupts:
    """Notes in `asked` an interrupt (Ctrl-C) or a request to end (SIGTERM) inside a `with` block, and raises nothing.

    An update that is broken off leaves some weights old and some new. The second request no longer
    waits: it raises `KeyboardInterrupt` at once. Outside the main thread signals cannot be caught, and
    nothing is changed.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.getsignal(number)
                # None is a handler that is not Python's, and cannot be put back; one that ignores is meant.
                if before not in (None, signal.SIG_IGN):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
