"""Trains the embedded teacher: a small I2VGen-XL U-Net with its text and image encoders, on generated clips."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, I2VGenXLUNet
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from ..clips import ClipGenerator, classify_motion, measure_motion
from ..errors import StillmotionError
from ..judge.metrics import psnr_db
from ..model.animation import ImageAnimationPipeline
from ..model.families import Cond
from ..model.families.i2vgen_xl import I2VGenXLFamily
from ..writing import write_beside
from .checkpoint import Checkpoint, end_of
from .linear_start import start_still
from .settings import TeacherSettings, learning_rate
from .stream import EncodedBatch, encoded_batches
from .text import build_feature_extractor, build_image_encoder, build_text_encoder, build_tokenizer

logger = logging.getLogger(__name__)


def build_scheduler() -> DDIMScheduler:
    """Return the teacher's schedule: cosine with zero terminal SNR, so that sampling starts from pure noise
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
    """Return an untrained teacher around a trained autoencoder."""
    tokenizer = build_tokenizer()
    unet = I2VGenXLUNet(
        sample_size=settings.size // 4,
        down_block_types=("CrossAttnDownBlock3D",) * len(settings.block_out_channels),
        up_block_types=("CrossAttnUpBlock3D",) * len(settings.block_out_channels),
        block_out_channels=settings.block_out_channels,
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=settings.width,
        attention_head_dim=settings.head_dim,
    )
    start_still(unet)
    for module in unet.modules():
        # A model this small underfits; dropout only slows it.
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    pipe = ImageAnimationPipeline(
        vae=vae.requires_grad_(requires_grad=False).eval(),
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


def draw_timesteps(count: int, progress: float | None, steps: int, generator: torch.Generator) -> Tensor:
    """Return timesteps of a batch, `(count,)`.

    Only near t = T does the caption say what the clip does: everywhere else the noisy frames give it
    away. While motion is being bound to the caption nearly all draws are T itself, where the noise
    tells nothing and the gradient is least noisy.

    Args:
        progress: through the steps after the binding, 0 to 1; None while binding.
        steps: T, timesteps in all.
    """
    at_end, towards_end = (0.9, 3.0) if progress is None else (0.3 - 0.2 * progress, 1.8 - 0.8 * progress)
    share = 1 - torch.rand(count, generator=generator) ** towards_end
    timesteps = (share * steps).long().clamp(max=steps - 1)
    ends = torch.rand(count, generator=generator) < at_end
    return torch.where(ends, torch.full_like(timesteps, steps - 1), timesteps)


def motion_weight(clean: Tensor, progress: float | None) -> Tensor:
    """Return weight of each place of the clip in the loss, `(batch, 1, frames, h, w)`.

    What moves is a twentieth of a clip. Early on it counts five times, so that its gradient is not
    lost in that of the background; the weight falls to one, since it favours moving over still.
    """
    extra = 4.0 if progress is None else 4.0 * max(0.0, 1 - progress / 0.9)
    moves = (clean - clean[:, :, :1]).abs().mean(dim=1, keepdim=True) > 0.25
    return 1.0 + extra * moves.to(clean.dtype)


class TeacherTrainer:
    """One training run: the model, what it has learned so far, and one step of it.

    Args:
        start: folder of a trained pipeline of the same shape whose weights are refined.
        device: where the model is trained. Random numbers are drawn on the processor, so that a seed
            draws the same ones everywhere.
    """

    def __init__(
        self,
        settings: TeacherSettings,
        vae: AutoencoderKL,
        start: Path | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.device = settings, torch.device(device)
        self.refines = start is not None
        self.pipe = build_pipeline(settings, vae)
        if start is not None:
            trained = ImageAnimationPipeline.from_pretrained(start)
            for name in ("unet", "text_encoder", "image_encoder"):
                getattr(self.pipe, name).load_state_dict(getattr(trained, name).state_dict())
        self.pipe.to(self.device)
        self.family = I2VGenXLFamily()
        self.modules = nn.ModuleDict(
            {"unet": self.pipe.unet, "text": self.pipe.text_encoder, "image": self.pipe.image_encoder}
        ).requires_grad_()
        self.modules.train()
        self.optimizer = torch.optim.AdamW(self._parameter_groups(), weight_decay=1e-4, betas=(0.9, 0.99))
        self.ema = EMAModel(self.modules.parameters(), decay=settings.ema_decay, use_ema_warmup=False, foreach=True)
        self.random = torch.Generator().manual_seed(settings.seed + 1)
        self.alphas = self.pipe.scheduler.alphas_cumprod.to(self.device)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters by how fast they learn; `pace` multiplies the learning rate.

        The text encoder and the cross-attention are reached by little gradient and learn slowly. The
        layers of the linear start lean on each other, and fast steps would undo it.
        """
        paces: dict[float, list[nn.Parameter]] = {1.0: [], 2.0: [], 0.5: []}
        last = f"unet.up_blocks.{len(self.pipe.unet.up_blocks) - 1}.resnets.{self.pipe.unet.config.layers_per_block}."
        delicate = ("unet.image_latents_proj_in", "unet.conv_in", "unet.conv_norm_out", "unet.conv_out", last)
        for name, parameter in self.modules.named_parameters():
            pace = 0.5 if name.startswith(delicate) else 2.0 if name.startswith("text") or "attn2" in name else 1.0
            paces[pace].append(parameter)
        return [{"params": parameters, "pace": pace} for pace, parameters in paces.items()]

    def cond(self, batch: EncodedBatch, dropping: bool) -> Cond:
        """Return what the U-Net is given; with `dropping`, less for a share of the clips, as the settings say."""
        s, count = self.settings, batch.latents.shape[0]
        text = self.pipe.text_encoder(batch.tokens).last_hidden_state
        blank = self.pipe.text_encoder(batch.blank_tokens).last_hidden_state
        embedding = self.pipe.image_encoder(batch.pixels).image_embeds[:, None]
        latents = batch.latents[:, :, :1].expand_as(batch.latents)
        drop = torch.rand(count, generator=self.random) if dropping else torch.ones(count)
        drop = drop.to(self.device)
        no_text = drop < s.drop_text + s.drop_both
        no_image = (drop >= s.drop_text) & (drop < s.drop_text + s.drop_both + s.drop_image)
        text = torch.where(no_text[:, None, None], blank, text)
        keep = (~no_image).float()
        return {
            "text": text,
            "image_latents": latents * keep[:, None, None, None, None],
            "image_embeds": embedding * keep[:, None, None],
            "fps": torch.full((count,), s.fps, device=self.device),
        }

    def loss(self, batch: EncodedBatch, progress: float | None) -> Tensor:
        """Return mean squared error of v (Salimans & Ho 2022, section 4): v = sqrt(a) * noise - sqrt(1 - a) * x."""
        clean = batch.latents  # (batch, 4, frames, h, w)
        timesteps = draw_timesteps(clean.shape[0], progress, len(self.alphas), self.random).to(self.device)
        alpha = self.alphas[timesteps][:, None, None, None, None]
        noise = torch.randn(clean.shape, generator=self.random).to(self.device)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        predicted = self.family.predict(self.pipe.unet, noisy, timesteps, self.cond(batch, progress is not None))
        loss: Tensor = (motion_weight(clean, progress) * (predicted - target) ** 2).mean()
        return loss

    @property
    def steps(self) -> int:
        return self.settings.refine_steps if self.refines else self.settings.steps

    @property
    def bind_steps(self) -> int:
        return 0 if self.refines else self.settings.bind_steps

    def progress(self, step: int) -> float | None:
        """Return how far the steps after the binding have come, 0 to 1; None while binding."""
        return None if step < self.bind_steps else (step - self.bind_steps) / max(1, self.steps - self.bind_steps)

    def step(self, batch: EncodedBatch, step: int) -> float:
        s = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = group["pace"] * learning_rate(step, self.steps, s.learning_rate, hold=0.55)
        loss = self.loss(batch, self.progress(step))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimizer.step()
        self.ema.step(self.modules.parameters())
        return loss.item()

    @torch.no_grad()
    def probe(self, clips: int = 32) -> tuple[float, float]:
        """Look at what has been learned, on held-out clips with the averaged weights, in one pass from pure noise.

        Returns:
            Share of clips that move as captioned, and PSNR of the first frame against the picture in dB.
        """
        batch = ClipGenerator(self.settings.size, self.settings.frames, seed=20_001, held_out=True).batch(clips)
        self.ema.store(self.modules.parameters())
        self.ema.copy_to(self.modules.parameters())
        self.modules.eval()
        video = self.pipe(
            batch.pictures(),
            batch.captions,
            num_inference_steps=1,
            guidance_scale=1.0,
            image_guidance_scale=1.0,
            generator=torch.Generator().manual_seed(1),
            output_type="pt",
            decode_chunk_size=None,
        ).frames.cpu()
        self.modules.train()
        self.ema.restore(self.modules.parameters())
        video = video.transpose(1, 2)  # (batch, 3, frames, h, w)
        right = sum(
            classify_motion(measure_motion(video[k], batch.backgrounds[k], batch.colours[k])) == spec.motion
            for k, spec in enumerate(batch.specs)
        )
        return right / clips, float(psnr_db(video[:, :, 0], batch.clips[:, :, 0]).mean())


def train_teacher(
    settings: TeacherSettings,
    out: Path,
    minutes: float | None = None,
    log_every: int = 50,
    start: Path | None = None,
    device: torch.device | str = "cpu",
) -> ImageAnimationPipeline:
    """Train, or go on from the checkpoint in `out`, and save the pipeline to `out/teacher`.

    Args:
        minutes: stop after this time, even if steps are left; a later call goes on from there.
        start: refine the pipeline in this folder, and save to `out/refined` instead.
    """
    vae_folder = (start or out) / "vae"
    trainer = TeacherTrainer(settings, AutoencoderKL.from_pretrained(vae_folder), start, device)
    name = "refined" if trainer.refines else "teacher"
    checkpoint = Checkpoint(out / f"{name}.pt", modules=trainer.modules, optimizer=trainer.optimizer, ema=trainer.ema)
    paces = [group["pace"] for group in trainer.optimizer.param_groups]
    step = checkpoint.load()
    trainer.ema.to(trainer.device)
    for group, pace in zip(trainer.optimizer.param_groups, paces, strict=True):
        group["pace"] = pace  # a setting, not a state
    first_seed = settings.seed + (100_000 if trainer.refines else 1000)
    trainer.random.manual_seed(first_seed - 999 + step)
    stream, binding = None, None
    ends, began, losses = end_of(minutes), time.monotonic(), []
    while step < trainer.steps and time.monotonic() < ends:
        if stream is None or binding != (step < trainer.bind_steps):
            binding = step < trainer.bind_steps
            seed = first_seed + step
            stream = encoded_batches(settings, trainer.pipe.vae, trainer.pipe.tokenizer, seed, plain=binding)
        losses.append(trainer.step(next(stream), step))
        step += 1
        if not losses[-1] < float("inf"):
            raise StillmotionError(f"the loss is {losses[-1]} at step {step}; the last checkpoint is kept")
        if step % log_every == 0:
            rate = len(losses) / (time.monotonic() - began)
            recent = sum(losses[-log_every:]) / len(losses[-log_every:])
            logger.info("step %d/%d  loss %.4f  %.2f steps/s", step, trainer.steps, recent, rate)
        if step % 200 == 0:
            accuracy, psnr = trainer.probe()
            logger.info("step %d  one pass from noise: motion %.2f, first frame %.1f dB", step, accuracy, psnr)
            checkpoint.save(step)
    checkpoint.save(step)
    trainer.ema.copy_to(trainer.modules.parameters())
    trainer.modules.eval()
    write_beside(out / name, trainer.pipe.save_pretrained)
    return trainer.pipe
