"""Trains the embedded teacher: a small I2VGen-XL U-Net with its text and image encoders, on generated clips."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, I2VGenXLUNet
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from ..animation import ImageAnimationPipeline
from ..clips import ClipGenerator, classify_motion, measure_motion
from ..families import Conditioning, I2VGenXLFamily, ImageConditioning
from .checkpoint import Checkpoint, Deadline
from .linear_start import start_still
from .stream import EncodedBatch, EncodedStream
from .text import build_feature_extractor, build_image_encoder, build_text_encoder, build_tokenizer
from .vae import learning_rate

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TeacherSettings:
    """How the teacher is built and trained; the defaults make the shipped one.

    `views` is the number of steps that each generated batch serves, every time at other timesteps
    and noise; encoding it costs a third of a step. `drop_text`, `drop_image` and `drop_both` are the
    shares of clips without caption, picture or either, from which the guidance branches are learned.
    """

    size: int = 64
    frames: int = 8
    fps: int = 8
    block_out_channels: tuple[int, ...] = (32, 64, 64)
    heads: int = 4
    width: int = 32
    steps: int = 5000
    batch: int = 8
    views: int = 2
    learning_rate: float = 1e-3
    drop_text: float = 0.10
    drop_image: float = 0.05
    drop_both: float = 0.05
    guidance_scale: float = 2.0
    image_guidance_scale: float = 1.0
    ema_decay: float = 0.998
    seed: int = 0


def build_scheduler() -> DDIMScheduler:
    """The teacher's schedule: cosine with zero terminal SNR, so that sampling starts from pure noise
    (Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed").

    1024 training steps make the grids of 32 and of 8 steps exact.
    """
    return DDIMScheduler(
        num_train_timesteps=1024,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


def build_pipeline(settings: TeacherSettings, vae: AutoencoderKL) -> ImageAnimationPipeline:
    """An untrained teacher around a trained autoencoder."""
    tokenizer = build_tokenizer()
    unet = I2VGenXLUNet(
        sample_size=settings.size // 4,
        down_block_types=("DownBlock3D", "CrossAttnDownBlock3D", "CrossAttnDownBlock3D"),
        up_block_types=("CrossAttnUpBlock3D", "CrossAttnUpBlock3D", "UpBlock3D"),
        block_out_channels=settings.block_out_channels,
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=settings.width,
        attention_head_dim=settings.heads,
    )
    start_still(unet)
    for module in unet.modules():
        # A model this small underfits; dropout only slows it.
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    pipe = ImageAnimationPipeline(
        vae=vae.requires_grad_(False).eval(),
        text_encoder=build_text_encoder(tokenizer, settings.width),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        image_encoder=build_image_encoder(settings.size, settings.width),
        feature_extractor=build_feature_extractor(settings.size),
        image_latents_fill="repeat",
        image_latents_mode="mode",
        num_inference_steps=32,
        guidance_scale=settings.guidance_scale,
        image_guidance_scale=settings.image_guidance_scale,
        num_frames=settings.frames,
        fps=settings.fps,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw_timesteps(count: int, progress: float, steps: int, generator: torch.Generator) -> Tensor:
    """Timesteps of a batch, `(count,)`.

    Only near t = T does the caption say what the clip does: everywhere else the noisy frames give it
    away. So training begins there and its share of the rest grows: from half of the draws at T itself
    to a tenth, and from a density towards T to a uniform one.
    """
    at_end = 0.5 - 0.4 * min(1.0, progress / 0.6)
    towards_end = 2.5 - 1.5 * min(1.0, progress / 0.6)
    share = 1 - torch.rand(count, generator=generator) ** towards_end
    timesteps = (share * steps).long().clamp(max=steps - 1)
    ends = torch.rand(count, generator=generator) < at_end
    return torch.where(ends, torch.full_like(timesteps, steps - 1), timesteps)


class TeacherTrainer:
    """One training run: the model, what it has learned so far, and one step of it."""

    def __init__(self, settings: TeacherSettings, vae: AutoencoderKL) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.pipe = build_pipeline(settings, vae)
        self.family = I2VGenXLFamily()
        self.modules = nn.ModuleDict(
            {"unet": self.pipe.unet, "text": self.pipe.text_encoder, "image": self.pipe.image_encoder}
        ).requires_grad_(True)
        self.modules.train()
        self.optimizer = torch.optim.AdamW(self._parameter_groups(), weight_decay=1e-4, betas=(0.9, 0.99))
        self.ema = EMAModel(self.modules.parameters(), decay=settings.ema_decay, use_ema_warmup=False)
        self.random = torch.Generator().manual_seed(settings.seed + 1)
        self.alphas = self.pipe.scheduler.alphas_cumprod

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters by how fast they learn; `pace` multiplies the learning rate.

        The text encoder and the cross-attention are reached by little gradient and learn slowly. The
        layers of the linear start lean on each other, and fast steps would undo it.
        """
        paces: dict[float, list[nn.Parameter]] = {1.0: [], 1.5: [], 0.3: []}
        last = f"unet.up_blocks.{len(self.pipe.unet.up_blocks) - 1}.resnets.{self.pipe.unet.config.layers_per_block}."
        delicate = ("unet.image_latents_proj_in", "unet.conv_in", "unet.conv_norm_out", "unet.conv_out", last)
        for name, parameter in self.modules.named_parameters():
            pace = 0.3 if name.startswith(delicate) else 1.5 if name.startswith("text") or "attn2" in name else 1.0
            paces[pace].append(parameter)
        return [{"params": parameters, "pace": pace} for pace, parameters in paces.items()]

    def _conditioning(self, batch: EncodedBatch) -> Conditioning:
        s, count = self.settings, batch.latents.shape[0]
        text = self.pipe.text_encoder(batch.tokens).last_hidden_state
        blank = self.pipe.text_encoder(batch.blank_tokens).last_hidden_state
        embedding = self.pipe.image_encoder(batch.pixels).image_embeds[:, None]
        latents = batch.latents[:, :, :1].expand_as(batch.latents)
        drop = torch.rand(count, generator=self.random)
        no_text = drop < s.drop_text + s.drop_both
        no_image = (drop >= s.drop_text) & (drop < s.drop_text + s.drop_both + s.drop_image)
        text = torch.where(no_text[:, None, None], blank, text)
        keep = (~no_image).float()
        image = ImageConditioning(latents * keep[:, None, None, None, None], embedding * keep[:, None, None])
        return Conditioning(text, image, torch.full((count,), s.fps))

    def loss(self, batch: EncodedBatch, progress: float) -> Tensor:
        """Mean squared error of v (Salimans & Ho 2022, section 4): v = sqrt(a) * noise - sqrt(1 - a) * x."""
        clean = batch.latents  # (batch, 4, frames, h, w)
        timesteps = draw_timesteps(clean.shape[0], progress, len(self.alphas), self.random)
        alpha = self.alphas[timesteps][:, None, None, None, None]
        noise = torch.randn(clean.shape, generator=self.random)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        predicted = self.family.predict(self.pipe.unet, noisy, timesteps, self._conditioning(batch))
        return F.mse_loss(predicted, target)

    def step(self, batch: EncodedBatch, step: int) -> float:
        s = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = group["pace"] * learning_rate(step, s.steps, s.learning_rate)
        loss = self.loss(batch, step / s.steps)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimizer.step()
        self.ema.step(self.modules.parameters())
        return loss.item()

    @torch.no_grad()
    def probe(self, clips: int = 32, steps: int = 1) -> tuple[float, float]:
        """A cheap look at what has been learned, on held-out clips with the averaged weights.

        With `steps` 1 the clip is predicted from pure noise in one pass: what the model knows of the
        motion from picture and caption alone.

        Returns:
            Share of clips that move as captioned, and PSNR of the first frame against the picture in dB.
        """
        from ..evaluate import first_frame_psnr_db, pictures_of  # the evaluation also serves other models

        batch = ClipGenerator(self.settings.size, self.settings.frames, seed=20_001, held_out=True).batch(clips)
        self.ema.store(self.modules.parameters())
        self.ema.copy_to(self.modules.parameters())
        self.modules.eval()
        scale = 1.0 if steps == 1 else None
        video = self.pipe(
            pictures_of(batch),
            batch.captions,
            num_inference_steps=steps,
            guidance_scale=scale,
            image_guidance_scale=scale if steps == 1 else self.settings.image_guidance_scale,
            generator=torch.Generator().manual_seed(1),
            output_type="pt",
            decode_chunk_size=None,
        ).frames
        self.modules.train()
        self.ema.restore(self.modules.parameters())
        video = video.transpose(1, 2)  # (batch, 3, frames, h, w)
        right = sum(
            classify_motion(measure_motion(video[k], batch.backgrounds[k], batch.colours[k])) == spec.motion
            for k, spec in enumerate(batch.specs)
        )
        return right / clips, float(first_frame_psnr_db(video, batch).mean())


def train_teacher(
    settings: TeacherSettings, out: Path, minutes: float | None = None, log_every: int = 50, probe_every: int = 200
) -> ImageAnimationPipeline:
    """Train, or go on from the checkpoint in `out`, and save the pipeline to `out/teacher`.

    Args:
        minutes: stop after this time, even if steps are left; a later call goes on from there.
    """
    vae = AutoencoderKL.from_pretrained(out / "vae")
    trainer = TeacherTrainer(settings, vae)
    checkpoint = Checkpoint(
        out / "teacher.pt", modules=trainer.modules, optimizer=trainer.optimizer, ema=trainer.ema
    )
    step = checkpoint.load()
    trainer.random.manual_seed(settings.seed + 1 + step)
    stream = iter(EncodedStream(settings, out / "vae", trainer.pipe.tokenizer, seed=settings.seed + 1000 + step))
    deadline = Deadline(minutes)
    began, losses = time.monotonic(), []
    while step < settings.steps and not deadline.passed():
        if step % settings.views == 0 or not losses:
            batch = next(stream)
        losses.append(trainer.step(batch, step))
        step += 1
        if not losses[-1] < float("inf"):
            raise FloatingPointError(f"the loss is {losses[-1]} at step {step}; the last checkpoint is kept")
        if step % log_every == 0:
            rate = len(losses) / (time.monotonic() - began)
            recent = sum(losses[-log_every:]) / len(losses[-log_every:])
            logger.info("step %d/%d  loss %.4f  %.2f steps/s", step, settings.steps, recent, rate)
        if step % probe_every == 0:
            accuracy, psnr = trainer.probe()
            logger.info("step %d  one pass from noise: motion %.2f, first frame %.1f dB", step, accuracy, psnr)
            checkpoint.save(step)
    checkpoint.save(step)
    trainer.ema.copy_to(trainer.modules.parameters())
    trainer.modules.eval()
    trainer.pipe.save_pretrained(out / "teacher", safe_serialization=True)
    return trainer.pipe
