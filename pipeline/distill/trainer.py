"""The training loop of distillation, on accelerate: one process on a laptop, DDP or FSDP on many GPUs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..console import Counter, tell
from ..model.prompts import TextEncoding
from ..train.checkpoint import end_of
from ..train.settings import learning_rate
from .algorithm import Grid, Trajectory
from .checkpoint import Averaged, CheckpointFolder, DistillationError, Interrupts, Progress, whole
from .data import Examples, Source, read
from .encoded import EncodedSource, encode_once
from .folders import CaptionedSource
from .memory import SharedBase, additions_alone, checkpoint_blocks, merge_lora
from .objective import Objective
from .passes import Networks, networks_of, seeded
from .processes import accelerator_for, is_sharded, on_any
from .settings import DistillSettings
from .student import build_student, check_guidance_range, shares_base, student_network, teacher_digest, teacher_grid

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline

__all__ = ["DistillSettings", "DistillationError", "Distiller", "Listener"]

Listener = Callable[[int, int, float], None]
"""Called with (updates done, updates in all, loss) after each update."""

Sampler = Callable[["ImageAnimationPipeline", int], object]
"""Called with the student of the moment and its updates."""

_FREE_TO_CHANGE = frozenset({"workers", "checkpoint_every", "sample_every", "gradient_checkpointing"})
"""Settings that decide nothing of what is learned: a run may go on with others."""


class Distiller:
    """Trains a student of a teacher.

    Args:
        teacher: its own steps and guidance scales are distilled.
        source: examples; each process of a group takes other numbers of it.
        folder: for checkpoints.
        accelerator: None makes one.
        encoded: for captions and pictures that are encoded once; None: within `folder`. Students of one teacher and the
            same data may share it.

    Attributes:
        trained: the parameters that are.

    Raises:
        NotSplittable: the teacher's steps cannot be divided into the student's.
        ValueError: a setting does not fit; the text begins with its name.
    """

    def __init__(
        self,
        teacher: ImageAnimationPipeline,
        source: Source,
        settings: DistillSettings,
        folder: Path,
        accelerator: Accelerator | None = None,
        encoded: Path | None = None,
    ) -> None:
        if settings.trajectory is Trajectory.FORWARD and not source.has_clips:
            raise ValueError("trajectory: 'forward' needs clips, and there are pictures alone; use 'backward'")
        if teacher.family.last_image(teacher.parts) == "always" and not source.has_clips:
            raise ValueError("data: this teacher is given the picture that a clip ends with, and there are no clips")
        check_guidance_range(teacher, settings.guidance_range)
        grid = teacher_grid(teacher, settings.student_steps, settings.noise_correction, settings.teacher_steps)
        self.settings, self.source = settings, source
        self.accelerator = accelerator or accelerator_for(settings, networks=len(networks_of(teacher)))
        self.accelerator.gradient_accumulation_steps = settings.accumulate
        self._sharded = is_sharded(self.accelerator, settings)
        self.teacher: ImageAnimationPipeline = teacher.to(self.accelerator.device)
        # Processes that gather the teacher's weights together call it as often as each other.
        together = self._sharded and shares_base(settings)
        self.grid: Grid = replace(grid.to(self.accelerator.device), in_step=together)
        # Dropout would be noise, on a target that has none.
        for component in teacher.components.values():
            if isinstance(component, nn.Module):
                component.eval()
        self._digest = teacher_digest(teacher)[:16]  # before FSDP may spread it
        self._shared: SharedBase | None = None
        if shares_base(settings):
            with seeded(settings.seed, self.accelerator.device):
                self._shared = SharedBase(networks_of(teacher), settings.lora_rank)
            self.accelerator.register_save_state_pre_hook(additions_alone)
            network = Networks(teacher, self._shared.networks)
        else:
            network = student_network(teacher, settings)
        if self._sharded:
            network.called = self._called_on_any
        parts = network.networks.values() if settings.gradient_checkpointing else ()
        self._changes = [checkpoint_blocks(one) for one in parts]
        with nullcontext() if self._shared is None else self._shared.attached():
            self._prepare(network)
        self.objective = Objective(
            teacher, self.student, self.grid, settings, self.accelerator, self._shared, sharded=self._sharded
        )
        self.progress = Progress()
        self.accelerator.register_for_checkpointing(self.progress, self.averaged)
        self.checkpoints = CheckpointFolder(self.accelerator, folder, self._run())
        self._encoded_folder = encoded or folder / "encoded"
        self._encoded: EncodedSource | None = None
        self._text_encoding: TextEncoding | None = None  # the teacher's own, where another one is in its place
        self._losses: list[float] = []  # of the update that is being made

    def _prepare(self, network: nn.Module) -> None:
        settings = self.settings
        optimizer = torch.optim.AdamW(
            [p for p in network.parameters() if p.requires_grad],
            lr=settings.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=settings.weight_decay,
        )
        # The student is called as `prepare` gives it, without gradients too: under FSDP that call is what
        # gathers the weights, and DDP does nothing where no gradient is recorded.
        self.student, self.optimizer = self.accelerator.prepare(network, optimizer)
        named = [(n, p) for n, p in self.accelerator.unwrap_model(self.student).named_parameters() if p.requires_grad]
        self._names, self.trained = [name for name, _ in named], [parameter for _, parameter in named]
        self.averaged = Averaged(self.trained, settings.ema_decay)

    @property
    def updates(self) -> int:
        """Number of updates done so far."""
        return self.progress.updates

    @property
    def losses(self) -> list[float]:
        """Loss of each update: the mean over its batches, on all processes."""
        return self.progress.losses

    def train(
        self, on_update: Listener | None = None, minutes: float | None = None, on_sample: Sampler | None = None
    ) -> ImageAnimationPipeline:
        """Train to the end, or for `minutes`, from the checkpoint in the folder where there is one.

        Args:
            on_sample: given the student of the moment every `sample_every` updates, in the main process.

        Raises:
            DistillationError: loss or gradient are not finite, or a checkpoint cannot be written or read;
                the last one is kept.
            KeyboardInterrupt: after an interrupt or SIGTERM; the update is finished and saved before.
        """
        self.resume()
        self._encode()
        ends = end_of(minutes)
        with Interrupts() as interrupts:
            for number, examples in self._batches():
                if not self.update(examples, number):
                    continue
                if on_update is not None:
                    on_update(self.updates, self.settings.updates, self.losses[-1])
                self._sample(on_sample)
                # Clocks and signals differ, and all processes have to do the same.
                interrupted, late = on_any(self.accelerator, interrupts.asked, time.monotonic() >= ends)
                if interrupted or late or self.updates % self.settings.checkpoint_every == 0:
                    self.save()
                if interrupted:
                    raise KeyboardInterrupt
                if late:
                    break
        if self.checkpoints.saved != self.updates:
            self.save()
        return self.finished()

    def update(self, examples: Examples, number: int) -> bool:
        """Learn from one batch; whether the weights have changed (with `accumulate`, not every time).

        Raises:
            DistillationError: loss or gradient are not finite; the weights are left as they were.
        """
        accelerator, s = self.accelerator, self.settings
        with self.objective.attached(), accelerator.accumulate(self.student):
            loss = self.loss(examples, number)
            mean = accelerator.reduce(loss.detach(), reduction="mean")
            self._losses.append(self._finite(mean, "loss"))
            accelerator.backward(loss)
            if not accelerator.sync_gradients:
                return False
            norm = accelerator.clip_grad_norm_(self.student.parameters(), 1.0)
            if accelerator.scaler is None:  # which leaves such an update out, and scales less
                self._finite(whole(norm), "gradient")
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.updates, s.updates, s.learning_rate, s.warmup, end=0.01)
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.averaged.step(self.trained)
        self.progress.add(sum(self._losses) / len(self._losses))
        self._losses.clear()
        return True

    def loss(self, examples: Examples, number: int) -> Tensor:
        """Return loss of a batch; its random numbers depend on the seed and `number` alone."""
        return self.objective.loss(examples, number)

    def save(self) -> None:
        """Write a checkpoint; the last one stays until the new one is whole.

        Raises:
            DistillationError: it cannot be written.
        """
        with self.objective.attached():
            self.checkpoints.save(self.updates)

    def resume(self) -> bool:
        """Go back to the last whole checkpoint, where there is one.

        Raises:
            DistillationError: it cannot be read, or was made with other settings.
        """
        with self.objective.attached():
            # A network that is the teacher's too is not in the checkpoint, but for its additions.
            found = self.checkpoints.load(**({} if self._shared is None or self._sharded else {"strict": False}))
            self.student.zero_grad()  # what is left of an update that was broken off
        self.checkpoints.saved = self.updates if found else 0
        self._losses.clear()
        self.accelerator.step = 0
        return found

    def finished(self) -> ImageAnimationPipeline:
        """Return the student with the averaged weights. All processes have to ask."""
        averaged = dict(zip(self._names, self.averaged.whole(), strict=True))
        if self._shared is not None:
            networks = self._shared.merged(averaged)
        else:
            network = student_network(self.teacher, self.settings)
            parameters = dict(network.named_parameters())
            with torch.no_grad():
                for name, value in averaged.items():
                    parameters[name].copy_(value)
            networks = dict(network.requires_grad_(requires_grad=False).eval().networks.items())
            if self.settings.lora_rank:
                networks = {name: merge_lora(one) for name, one in networks.items()}
        return build_student(self.teacher, networks, self.grid, self.settings.guidance_range)

    def close(self) -> None:
        """Let go of what accelerate holds on to, and leave the teacher as it was."""
        self.accelerator.free_memory()
        for change in self._changes:
            change.undo()
        self._changes.clear()
        if self._text_encoding is not None:
            self.teacher.text_encoding = self._text_encoding
            self.teacher.to(self.accelerator.device)

    def _encode(self) -> None:
        """Encode captions and pictures of a folder, where that is wanted and there is something left to learn."""
        source, s, family = self.source, self.settings, self.teacher.family
        if not (s.encode_once and family.takes_prompt and isinstance(source, CaptionedSource)):
            return
        if self.updates >= s.updates or self._encoded is not None:
            return
        config, own, world = self.teacher.config, self.checkpoints.run, self.accelerator.num_processes
        left = range(self.updates * s.accumulate * world, s.updates * s.accumulate * world)
        self._encoded = EncodedSource(source, self._encoded_folder, left, latents=s.trajectory is Trajectory.FORWARD)
        encode_once(
            self.teacher,
            self._encoded,
            [own["teacher"], config.num_frames, config.fps, *self.teacher.default_size, family.negative_prompt],
            rank=self.accelerator.process_index,
            processes=world,
            together=self.accelerator.wait_for_everyone,
            on_progress=Counter("encoded: file"),
        )
        if self.accelerator.is_main_process:
            guided = len(self.objective.guidance.branches) > 1
            tell(self._encoded.saving(len(left) * source.batch, texts_each=2 if guided else 1))
        # It is needed again for samples, and when the student is saved; each prompt then waits for two moves.
        if self.teacher.text_encoding.placement == "resident":
            self._text_encoding = self.teacher.text_encoding
            self.teacher.text_encoding = TextEncoding("offload", remembered=64)
            self.teacher.text_encoder.to("cpu")

    def _batches(self) -> Iterator[tuple[int, Examples]]:
        """Batches that are left of the run, by number: these are dealt to the processes in turn."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        first, last = (n * self.settings.accumulate for n in (self.updates, self.settings.updates))
        numbers = [number * world + rank for number in range(first, last)]
        return read(self._encoded or self.source, numbers, self.settings.workers)

    def _sample(self, on_sample: Sampler | None) -> None:
        every = self.settings.sample_every
        if not every or self.updates % every:
            return
        student = self.finished()  # of which each process has a part
        if on_sample is not None and self.accelerator.is_main_process:
            on_sample(student, self.updates)

    def _finite(self, value: Tensor, name: str) -> float:
        number = float(value)
        if not math.isfinite(number):
            raise DistillationError(f"the {name} is {number} at update {self.updates + 1}; {self.checkpoints.kept}")
        return number

    def _called_on_any(self, names: set[str]) -> set[str]:
        """Return names of the networks that any process calls: FSDP's processes gather their weights together."""
        every = sorted(networks_of(self.teacher))
        flags = on_any(self.accelerator, *(name in names for name in every))
        return {name for name, flag in zip(every, flags, strict=True) if flag}

    def _run(self) -> dict[str, Any]:
        """Return what decides what is learned."""
        return {
            **{name: value for name, value in asdict(self.settings).items() if name not in _FREE_TO_CHANGE},
            "trajectory": self.settings.trajectory.value,
            "processes": self.accelerator.num_processes,
            "batch": getattr(self.source, "batch", None),
            "data": getattr(self.source, "name", type(self.source).__name__),
            "teacher": f"{type(self.teacher.network).__name__} {self._digest}",
            "teacher_steps": self.grid.teacher_steps,
            "guidance_scale": self.teacher.config.guidance_scale,
            "image_guidance_scale": self.teacher.config.image_guidance_scale,
        }
