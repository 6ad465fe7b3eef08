"""Trains a small teacher in Wan's own classes: a diffusion transformer on the latents of a video autoencoder.

Flow matching (Lipman et al. 2023) of scenes (`pipeline.clips.scenes`), with the text encoder trained along. The picture
is given as Wan gives it: as the first latent frame (`held`, as TI2V-5B), or beside the noise with a mask (as A14B).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from ..clips.phrases import words
from ..clips.scenes import Scene, SceneGenerator
from ..errors import StillmotionError
from ..model.animation import ImageAnimationPipeline
from ..model.families.base import Request
from ..writing import write_beside
from .attention import PlainAttention
from .checkpoint import Checkpoint, end_of
from .half import in_half_precision
from .settings import WanTeacherSettings, learning_rate

logger = logging.getLogger(__name__)

_SHORT = 32  # tokens of a caption in training; what is left of Wan's 512 is padding, all of it the same


def build_tokenizer() -> T5Tokenizer:
    """Return a tokenizer that has a token for each word of captions and spells out all other text."""
    characters = [chr(code) for code in range(33, 127)]
    pieces = [*(f"▁{word}" for word in words()), *characters, "▁"]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab += [(piece, -1.0 if len(piece) > 1 else -8.0) for piece in dict.fromkeys(pieces)]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=512)


def build_pipeline(settings: WanTeacherSettings, vae: AutoencoderKLWan) -> ImageAnimationPipeline:
    """Return an untrained teacher around a trained autoencoder."""
    s, tokenizer, latents = settings, build_tokenizer(), vae.config.z_dim
    heads = s.width // 32
    text = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer), d_model=s.text_width, d_kv=16, d_ff=2 * s.text_width, num_layers=2,
            num_heads=max(1, s.text_width // 16), dropout_rate=0.0, decoder_start_token_id=0,
        )
    )  # fmt: skip
    transformer = WanTransformer3DModel(
        patch_size=(1, 1, 1),  # latent cells are 8 pixels, and few
        num_attention_heads=heads,
        attention_head_dim=32,
        in_channels=latents if s.held else 2 * latents + vae.config.scale_factor_temporal,
        out_channels=latents,
        text_dim=s.text_width,
        freq_dim=128,
        ffn_dim=3 * s.width,
        num_layers=s.layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=64,
    )
    start_near(transformer)
    pipe = ImageAnimationPipeline(
        tokenizer=tokenizer,
        text_encoder=text,
        vae=vae.requires_grad_(requires_grad=False).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=s.shift),
        transformer=transformer,
        expand_timesteps=s.held,
        num_inference_steps=s.teacher_steps,
        guidance_scale=s.guidance_scale,
        num_frames=s.frames,
        height=s.size,
        width=s.size,
        fps=s.fps,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def start_near(transformer: WanTransformer3DModel) -> None:
    """Set weights such that an untrained network passes its input on, looks at the same place in others, and reads.

    Noise has to reach the output, since the flow is noise less clip, and a background has to come from the frame that
    is given: a network that starts at random takes thousands of steps to find both.
    """
    embedding, out = transformer.patch_embedding, transformer.proj_out
    width, channels = embedding.weight.shape[:2]
    nn.init.orthogonal_(embedding.weight.view(width, -1))
    nn.init.zeros_(embedding.bias)
    # The output lists channels last.
    back = embedding.weight.view(width, channels, -1).transpose(1, 2).reshape(width, -1, channels)
    out.weight.copy_(back[:, :, : transformer.config.out_channels].reshape(width, -1).T)
    nn.init.zeros_(out.bias)
    head, heads = transformer.config.attention_head_dim, transformer.config.num_attention_heads
    third = 2 * (head // 6)  # rotary frequencies: of time, then of height, then of width
    axes = (head - 2 * third, head - third)
    tuned = [start + 2 * k for start in axes for k in range(2)]  # the two highest frequencies of each axis
    for block in transformer.blocks:
        for project, norm in ((block.attn1.to_q, block.attn1.norm_q), (block.attn1.to_k, block.attn1.norm_k)):
            for k in range(heads // 2):
                project.weight[k * head : (k + 1) * head] *= 0.1
                project.bias[k * head : (k + 1) * head] = 0
                for dim in tuned:
                    project.bias[k * head + dim] = 1
                    norm.weight[k * head + dim] = 3
    # A caption of ten words stands beside 500 tokens of padding, all zeros, which would have 98 % of the attention.
    # Their key is the bias alone, and is turned against what all queries have in common.
    text = transformer.condition_embedder.text_embedder
    nn.init.zeros_(text.linear_1.bias)
    nn.init.zeros_(text.linear_2.bias)
    text.linear_2.weight *= 5  # else what is read is a twentieth of what is seen
    for block in transformer.blocks:
        nn.init.ones_(block.attn2.to_q.bias)
        nn.init.constant_(block.attn2.to_k.bias, -0.01)
        nn.init.constant_(block.attn2.norm_q.weight, 1.5)
        nn.init.constant_(block.attn2.norm_k.weight, 1.5)


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
    def __init__(self, settings: WanTeacherSettings, pipe: ImageAnimationPipeline, seed: int, plain: bool) -> None:
        self.settings, self.pipe, self.seed, self.plain = settings, pipe, seed, plain

    def __iter__(self) -> Iterator[SceneBatch]:
        torch.set_num_threads(1)
        s, worker = self.settings, get_worker_info()
        seed = self.seed + (0 if worker is None else 1_000_003 * worker.id)
        random = torch.Generator().manual_seed(seed)
        # A third of all scenes show one sprite of one colour: the others ask for more than that at once.
        kinds = ({"plain": True},) if self.plain else ({}, {}, {"judged": True})
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


class WanTeacherTrainer:
    """One training run: the model, what it has learned so far, and one step of it."""

    def __init__(self, settings: WanTeacherSettings, vae: AutoencoderKLWan, device: torch.device | str = "cpu") -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.device = settings, torch.device(device)
        self.pipe = build_pipeline(settings, vae).to(self.device)
        self.pipe.transformer.requires_grad_()
        self.pipe.text_encoder.requires_grad_()
        self.modules = nn.ModuleDict({"transformer": self.pipe.transformer, "text": self.pipe.text_encoder}).train()
        # Orthogonal updates of matrices (Muon, Jordan et al. 2024).
        matrices = [one for one in self.pipe.transformer.blocks.parameters() if one.ndim == 2]
        ours = {id(one) for one in matrices}
        others = [one for one in self.modules.parameters() if id(one) not in ours]
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(matrices, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
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
        s = self.settings
        return None if step < s.bind_steps else (step - s.bind_steps) / max(1, s.steps - s.bind_steps)

    def frames(self, step: int) -> int:
        """Return how many latent frames of a clip are looked at: two, then three, then all.

        In two the motion is one shift, which is found within a hundred steps; longer ones repeat it.
        """
        s, whole = self.settings, (self.settings.frames - 1) // 4 + 1
        if step < s.bind_steps // 4:
            return min(2, whole)
        return min(3, whole) if step < s.bind_steps // 2 else whole

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


def train_wan_teacher(
    settings: WanTeacherSettings,
    out: Path,
    minutes: float | None = None,
    log_every: int = 50,
    device: torch.device | str = "cpu",
) -> ImageAnimationPipeline:
    """Train, or go on from the checkpoint in `out`, and save the pipeline to `out/wan-teacher`.

    Args:
        minutes: stop after this time, even if steps are left; a later call goes on from there.
    """
    trainer = WanTeacherTrainer(settings, AutoencoderKLWan.from_pretrained(out / "wan-vae"), device)
    checkpoint = Checkpoint(
        out / "wan-teacher.pt",
        modules=trainer.modules,
        muon=trainer.optimizers[0],
        adam=trainer.optimizers[1],
        ema=trainer.ema,
    )
    step = checkpoint.load()
    trainer.ema.to(trainer.device)
    trainer.random.manual_seed(settings.seed + 1 + step)
    stream, binding = None, None
    ends, began, losses = end_of(minutes), time.monotonic(), []
    while step < settings.steps and time.monotonic() < ends:
        if stream is None or binding != (step < settings.bind_steps):
            binding = step < settings.bind_steps
            if settings.compile_blocks and not binding:
                for block in trainer.pipe.transformer.blocks:
                    block.compile()
            data = _Scenes(settings, trainer.pipe, settings.seed + 1000 + step, binding)
            stream = iter(DataLoader(data, batch_size=None, num_workers=settings.workers, prefetch_factor=4))
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
    write_beside(out / "wan-teacher", trainer.pipe.save_pretrained)
    return cast(ImageAnimationPipeline, trainer.pipe)
