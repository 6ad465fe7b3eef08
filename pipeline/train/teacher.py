"""Trains the embedded teacher: flow matching (Lipman et al. 2023) of scenes (`pipeline.clips.scenes`), with the text
encoder trained along.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..clips.scenes import Scene, SceneGenerator
from ..errors import StillmotionError
from ..model.animation import ImageAnimationPipeline
from ..model.families.base import Request
from ..writing import write_beside
from .attention import PlainAttention
from .checkpoint import Checkpoint, end_of
from .half import in_half_precision
from .muon import Muon
from .settings import TeacherSettings, learning_rate
from .small_wan import build_pipeline

logger = logging.getLogger(__name__)

_SHORT = 32  # tokens of a caption in training; what is left of Wan's 512 is padding, all of it the same


@dataclass
class SceneBatch:
    """Scenes as the training sees them.

    Attributes:
        latents: `(batch, channels, latent frames, h, w)`, scaled.
        picture: what the family makes of the pictures.
        captions: one for each scene.
    """

    latents: Tensor
    picture: dict[str, Tensor]
    captions: list[str]

    def first(self, frames: int) -> SceneBatch:
        """Return the first latent frames: the autoencoder is causal, and they are those of a shorter clip."""
        picture = {name: one[:, :, :frames] for name, one in self.picture.items()}
        return SceneBatch(self.latents[:, :, :frames], picture, self.captions)


@torch.no_grad()
def encoded(pipe: ImageAnimationPipeline, scenes: list[Scene]) -> SceneBatch:
    """Return scenes as the training sees them."""
    clips = torch.stack([scene.clip for scene in scenes]) * 2 - 1
    frames, height, width = clips.shape[2:]
    request = Request([scene.picture() for scene in scenes], frames, height, width, fps=pipe.config.fps)
    with in_half_precision(pipe.parts.device):
        latents = pipe.family.encode_clip(pipe.parts, clips.to(pipe.parts.device)).float()
        picture = {name: one.float() for name, one in pipe.family.encode_picture(pipe.parts, request).items()}
    return SceneBatch(latents, picture, captions=[scene.caption for scene in scenes])


class _Scenes(IterableDataset[SceneBatch]):
    def __init__(self, settings: TeacherSettings, pipe: ImageAnimationPipeline, seed: int, plain: bool) -> None:
        self.settings, self.pipe, self.seed, self.plain = settings, pipe, seed, plain

    def __iter__(self) -> Iterator[SceneBatch]:
        torch.set_num_threads(1)
        s, worker = self.settings, get_worker_info()
        seed = self.seed + (0 if worker is None else 1_000_003 * worker.id)
        random = torch.Generator().manual_seed(seed)
        # Half of all scenes show one sprite of one colour: the others ask for more than that at once.
        # Speeds and changes of size are learned last: with their usual shares, the rarest of them fail in a fifth.
        kinds: list[dict[str, Any]] = (
            [{"plain": True}]
            if self.plain
            else [{"judged": judged, "speed_share": 0.6, "resize_share": 0.2} for judged in (False, True)]
        )
        sources = [SceneGenerator(s.size, s.frames, seed=seed + k, **kind) for k, kind in enumerate(kinds)]
        pool: list[tuple[Tensor, dict[str, Tensor], str]] = []
        while True:
            drawn_from = torch.randint(len(sources), (max(1, s.batch // s.reuse),), generator=random).tolist()
            batch = encoded(self.pipe, [sources[k].scene() for k in drawn_from])
            for k, caption in enumerate(batch.captions):
                pool.append((batch.latents[k], {name: one[k] for name, one in batch.picture.items()}, caption))
                if len(pool) > 256 * s.batch:
                    pool.pop(int(torch.randint(len(pool) - 1, (), generator=random)))
            if len(pool) < s.batch:
                continue
            drawn = [pool[k] for k in torch.randperm(len(pool), generator=random)[: s.batch].tolist()]
            latents, pictures, captions = zip(*drawn, strict=True)
            yield SceneBatch(
                torch.stack(latents),
                {name: torch.stack([one[name] for one in pictures]) for name in pictures[0]},
                list(captions),
            )


def draw_levels(count: int, progress: float | None, shift: float, generator: torch.Generator) -> Tensor:
    """Return noise levels of a batch, `(count,)`, in 0 to 1.

    Only near 1 does the caption say what the clip does: everywhere else the noisy frames give it away. While motion is
    being bound nearly all draws are 1 itself; then they follow the shifted grid on which the teacher is sampled.

    Args:
        progress: through the steps after the binding, 0 to 1; None while binding.
        shift: of the sampling grid; sigma = shift u / (1 + (shift - 1) u) of a uniform u.
    """
    at_end = 0.9 if progress is None else 0.3 - 0.2 * progress
    u = torch.rand(count, generator=generator)
    if progress is None:
        u = 1 - u**3
    levels = shift * u / (1 + (shift - 1) * u)
    ends = torch.rand(count, generator=generator) < at_end
    return torch.where(ends, torch.ones(count), levels)


def motion_weight(clean: Tensor, progress: float | None) -> Tensor:
    """Return weight of each latent cell in the loss, `(batch, 1, frames, h, w)`.

    What moves is a twentieth of a clip. It counts five times while motion is bound, and twice at the end.
    """
    extra = 4.0 if progress is None else 4.0 - 3.0 * progress
    moves = (clean - clean[:, :, :1]).square().mean(dim=1, keepdim=True) > 0.1
    return 1.0 + extra * moves.to(clean.dtype)


class TeacherTrainer:
    """One training run: the model, what it has learned so far, and one step of it."""

    def __init__(
        self,
        settings: TeacherSettings,
        vae: AutoencoderKLWan,
        device: torch.device | str = "cpu",
        start: Path | None = None,
    ) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.device, self.bind_steps = settings, torch.device(device), settings.bind_steps
        self.pipe = build_pipeline(settings, vae)
        if start is not None:
            self.bind_steps = 0
            _take_weights(self.pipe, start)
        self.pipe.to(self.device)
        self.pipe.transformer.requires_grad_()
        self.pipe.text_encoder.requires_grad_()
        self.modules = nn.ModuleDict({"transformer": self.pipe.transformer, "text": self.pipe.text_encoder}).train()
        matrices = [one for one in self.pipe.transformer.blocks.parameters() if one.ndim == 2]
        ours = {id(one) for one in matrices}
        others = [one for one in self.modules.parameters() if id(one) not in ours]
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            Muon(matrices, weight_decay=0.02),
            torch.optim.AdamW(others, weight_decay=1e-4, betas=(0.9, 0.99)),
        )
        self.ema = EMAModel(self.modules.parameters(), decay=settings.ema_decay, use_ema_warmup=False, foreach=True)
        self.random = torch.Generator().manual_seed(settings.seed + 1)
        self.whole = dict(self.pipe.transformer.attn_processors)
        self.folded = {name: PlainAttention(512 - _SHORT + 1 if "attn2" in name else 1) for name in self.whole}

    def text(self, captions: list[str]) -> Tensor:
        """Return hidden states of captions, `(batch, tokens, width)`, zeros where they end; the last one is padding."""
        tokens = self.pipe.tokenizer(
            captions, padding="max_length", max_length=_SHORT, truncation=True, return_tensors="pt"
        ).to(self.device)
        mask = tokens.attention_mask.clone()
        mask[:, -1] = 0
        hidden = self.pipe.text_encoder(tokens.input_ids, mask).last_hidden_state
        text: Tensor = hidden * mask[..., None]
        return text

    def loss(self, batch: SceneBatch, progress: float | None) -> Tensor:
        """Return mean squared error of the flow v = noise - x at z = (1 - sigma) x + sigma noise."""
        s, clean = self.settings, batch.latents.to(self.device)
        sigma = draw_levels(len(clean), progress, s.shift, self.random).to(self.device)
        noise = torch.randn(clean.shape, generator=self.random).to(self.device)
        level = sigma.view(-1, 1, 1, 1, 1)
        captions = batch.captions
        if progress is not None:
            kept = torch.rand(len(captions), generator=self.random) >= s.drop_text
            # Guidance leads away from the family's negative prompt where a person gives none, and from "" elsewhere.
            dropped = ("", self.pipe.family.negative_prompt)
            captions = [
                text if keep else dropped[k % 2] for k, (text, keep) in enumerate(zip(captions, kept, strict=True))
            ]
        with in_half_precision(self.device):
            cond = {"text": self.text(captions), **{name: one.to(self.device) for name, one in batch.picture.items()}}
            z = self.pipe.family.hold((1 - level) * clean + level * noise, cond)
            predicted = self.pipe.family.predict(self.pipe.transformer, z, 1000 * sigma, cond).float()
        error = motion_weight(clean, progress) * (predicted - (noise - clean)).square()
        made = slice(1, None) if s.held else slice(None)  # a frame that is given is not judged
        loss: Tensor = error[:, :, made].mean()
        return loss

    def progress(self, step: int) -> float | None:
        """Return how far the steps after the binding have come, 0 to 1; None while binding."""
        bind = self.bind_steps
        return None if step < bind else (step - bind) / max(1, self.settings.steps - bind)

    def frames(self, step: int) -> int:
        """Return how many latent frames of a clip are looked at: two, then three, then all.

        In two the motion is one shift, which is found within a hundred steps; longer ones repeat it.
        """
        whole = (self.settings.frames - 1) // 4 + 1
        if step < self.bind_steps // 4:
            return min(2, whole)
        return min(3, whole) if step < self.bind_steps // 2 else whole

    def step(self, batch: SceneBatch, step: int) -> float:
        s = self.settings
        for optimizer, peak in zip(self.optimizers, (s.matrix_rate, s.learning_rate), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, s.steps, peak, hold=0.5)
            optimizer.zero_grad(set_to_none=True)
        self.pipe.transformer.set_attn_processor(dict(self.folded))
        loss = self.loss(batch.first(self.frames(step)), self.progress(step))
        loss.backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.ema.step(self.modules.parameters())
        return loss.item()

    @torch.no_grad()
    def probe(self, scenes: int = 16) -> dict[str, float]:
        """Look at what has been learned, on held-out scenes with the averaged weights, in one pass from pure noise.

        Returns:
            `motion`: share of the change from first to last latent frame that is predicted, 0 for a still clip;
            `first`: mean squared error of the first latent frame, whose variance is about 1.
        """
        source = SceneGenerator(self.settings.size, self.settings.frames, seed=20_001, held_out=True, plain=True)
        batch = encoded(self.pipe, [source.scene() for _ in range(scenes)])
        self.ema.store(self.modules.parameters())
        self.ema.copy_to(self.modules.parameters())
        clean = batch.latents.to(self.device)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1)).to(self.device)
        cond = {"text": self.text(batch.captions), **{name: one.to(self.device) for name, one in batch.picture.items()}}
        z = self.pipe.family.hold(noise, cond)
        self.pipe.transformer.set_attn_processor(dict(self.folded))
        made = noise - self.pipe.family.predict(
            self.pipe.transformer, z, torch.full((scenes,), 1000.0, device=self.device), cond
        )
        made = self.pipe.family.hold(made, cond)
        self.ema.restore(self.modules.parameters())
        change = (clean[:, :, -1] - clean[:, :, 0]).square().mean()
        return {
            "motion": float(1 - (made[:, :, -1] - clean[:, :, -1]).square().mean() / change),
            "first": float((made[:, :, 0] - clean[:, :, 0]).square().mean()),
        }


def _take_weights(pipe: ImageAnimationPipeline, start: Path) -> None:
    """Take the weights of a trained teacher.

    Raises:
        StillmotionError: it is of another size, or its tokenizer has other words.
    """
    trained = ImageAnimationPipeline.from_pretrained(start, dtype=torch.float32)
    if trained.tokenizer.get_vocab() != pipe.tokenizer.get_vocab():
        raise StillmotionError(f"{start}: its captions have other words")
    for name in ("transformer", "text_encoder"):
        try:
            getattr(pipe, name).load_state_dict(getattr(trained, name).state_dict())
        except RuntimeError:
            raise StillmotionError(f"{start}: its {name} has another shape than the settings say") from None


def train_teacher(
    settings: TeacherSettings,
    out: Path,
    minutes: float | None = None,
    log_every: int = 50,
    device: torch.device | str = "cpu",
    start: Path | None = None,
) -> ImageAnimationPipeline:
    """Train, or go on from the checkpoint in `out`, and save the pipeline to `out/teacher`.

    Args:
        minutes: stop after this time, even if steps are left; a later call goes on from there.
        start: a trained teacher to go on from, with its autoencoder: no motion is bound first. None: an untrained
            one, around the autoencoder in `out/vae`.
    """
    vae = AutoencoderKLWan.from_pretrained((start or out) / "vae").float()
    trainer = TeacherTrainer(settings, vae, device, start)
    checkpoint = Checkpoint(
        out / "teacher.pt",
        modules=trainer.modules,
        muon=trainer.optimizers[0],
        adam=trainer.optimizers[1],
        ema=trainer.ema,
    )
    step = checkpoint.load()
    trainer.ema.to(trainer.device)
    trainer.random.manual_seed(settings.seed + 1 + step)
    stream, binding, compiled = None, None, not settings.compile_blocks
    ends, began, losses = end_of(minutes), time.monotonic(), []
    while step < settings.steps and time.monotonic() < ends:
        if stream is None or binding != (step < trainer.bind_steps):
            binding = step < trainer.bind_steps
            data = _Scenes(settings, trainer.pipe, settings.seed + 1000 + step, binding)
            stream = iter(DataLoader(data, batch_size=None, num_workers=settings.workers, prefetch_factor=4))
        if not compiled and trainer.frames(step) == trainer.frames(settings.steps):
            compiled = True  # the shapes of shorter clips would each be compiled too
            for block in trainer.pipe.transformer.blocks:
                block.compile()
        losses.append(trainer.step(next(stream), step))
        step += 1
        if not losses[-1] < float("inf"):
            raise StillmotionError(f"the loss is {losses[-1]} at step {step}; the last checkpoint is kept")
        if step % log_every == 0:
            recent, rate = losses[-log_every:], len(losses) / (time.monotonic() - began)
            logger.info("step %d/%d  loss %.4f  %.2f steps/s", step, settings.steps, sum(recent) / len(recent), rate)
        if step % 200 == 0:
            logger.info("step %d  one pass from noise: %s", step, trainer.probe())
            checkpoint.save(step)
    checkpoint.save(step)
    trainer.ema.copy_to(trainer.modules.parameters())
    trainer.modules.eval()
    trainer.pipe.transformer.set_attn_processor(trainer.whole)
    write_beside(out / "teacher", trainer.pipe.save_pretrained)
    return trainer.pipe
