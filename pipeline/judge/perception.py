"""What large models see in clips: CLIP scores and FVD, from weights on this disk. Nothing is downloaded.

Small generated clips have figures that say more (`pipeline.clips` knows what moves where); these are for
checkpoints and captions of the real world.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ModelError, first_line
from ..machine import sha256_of

Features = Callable[[Tensor], Tensor]
"""Clips `(batch, 3, frames, height, width)` in [0, 1] to features `(batch, width)`."""

_I3D_SIDE = 224  # pixels that I3D was trained with (Carreira & Zisserman 2017)
_FRAMES_AT_ONCE = 64  # of CLIP; bounds the memory of long clips


@dataclass(frozen=True)
class Perception:
    """What clips are judged with beside the project's own figures: a CLIP model, and features for FVD."""

    clip: ClipModel | None = None
    features: Features | None = None


class ClipModel:
    """A CLIP model with its tokenizer and picture processor."""

    def __init__(self, model: Any, tokenizer: Any, processor: Any) -> None:
        self.model, self.tokenizer, self.processor = model, tokenizer, processor

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> ClipModel:
        """Load a `CLIPModel` in transformers' format.

        Raises:
            ModelError: there is none in the folder, or a part of it is missing.
        """
        folder = Path(folder)
        try:
            kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        except (OSError, ValueError, AttributeError) as error:
            raise ModelError(
                f"{folder}: no CLIP model there (no config.json that can be read); "
                "give the folder of a CLIPModel in transformers' format"
            ) from error
        if kind != "clip":
            raise ModelError(f"{folder}: config.json says model_type {kind!r}, not 'clip'; give a CLIPModel")
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        parts = []
        for part in (CLIPModel, CLIPTokenizer, CLIPImageProcessor):
            try:
                parts.append(part.from_pretrained(folder, local_files_only=True))
            except Exception as error:  # libraries raise a dozen kinds here; each becomes one line for a person
                reason = first_line(error)
                raise ModelError(f"{folder}: the {part.__name__} cannot be loaded: {reason}") from error
        model, tokenizer, processor = parts
        return cls(model.eval().to(device), tokenizer, processor)

    @torch.no_grad()
    def of_frames(self, videos: Tensor) -> Tensor:
        """Return unit embeddings of each frame, `(batch, frames, width)`.

        Args:
            videos: `(batch, 3, frames, height, width)`, float in [0, 1].
        """
        frames = videos.transpose(1, 2).flatten(0, 1)  # (batch * frames, 3, height, width)
        bytes_of = (frames.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
        parts = []
        for part in bytes_of.split(_FRAMES_AT_ONCE):
            pixels = self.processor(list(part.numpy()), input_data_format="channels_first", return_tensors="pt")
            parts.append(_pooled(self.model.get_image_features(pixels.pixel_values.to(self.model.device))))
        return cast(Tensor, F.normalize(torch.cat(parts).float().cpu(), dim=-1).unflatten(0, (len(videos), -1)))

    @torch.no_grad()
    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit embeddings of captions, `(batch, width)`; what is too long for the model is cut off."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self.model.device)
        return F.normalize(_pooled(self.model.get_text_features(**tokens)).float().cpu(), dim=-1)


def _pooled(output: Any) -> Tensor:
    # transformers 5 returns the whole output, and 4 the features alone.
    return cast(Tensor, output if isinstance(output, Tensor) else output.pooler_output)


def clip_score(videos: Tensor, captions: Sequence[str], clip: ClipModel) -> Tensor:
    """Return CLIP score of each clip (Hessel et al. 2021): mean over frames of 100 * max(cos(frame, caption), 0).

    Args:
        videos: `(batch, 3, frames, height, width)`, float in [0, 1].
        captions: one for each clip.

    Returns:
        `(batch,)`, in [0, 100]. Scores of different CLIP models cannot be compared.
    """
    if len(captions) != len(videos):
        raise ValueError(f"captions: {len(captions)} for {len(videos)} clips")
    cosines = (clip.of_frames(videos) * clip.of_texts(captions)[:, None]).sum(dim=-1)  # (batch, frames)
    return 100 * cosines.clamp(min=0).mean(dim=1)


def clip_consistency(videos: Tensor, clip: ClipModel) -> Tensor:
    """Return CLIP temporal consistency of each clip: mean of 100 * max(cos, 0) between frames that follow each other.

    Arguments as `clip_score` has them.

    Returns:
        `(batch,)`, in [0, 100]; 100 for a clip that stands still, or has one frame.
    """
    frames = clip.of_frames(videos)
    if frames.shape[1] < 2:
        return torch.full((len(frames),), 100.0)
    cosines = (frames[:, 1:] * frames[:, :-1]).sum(dim=-1)  # (batch, frames - 1)
    return 100 * cosines.clamp(min=0).mean(dim=1)


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Return squared Fréchet distance of the Gaussians that fit two sets of features (Dowson & Landau 1982)::

        |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))

    Of I3D features it is FVD (Unterthiner et al. 2019). It needs no square root of a matrix: with centred
    features X, C = X^T X / (n - 1), and tr (C_a C_b)^(1/2) is the sum of the singular values of X_a X_b^T,
    divided by the roots of n_a - 1 and n_b - 1. That holds for few clips with many features too, but the
    figure then lies far above that of many clips: compare figures of as many clips only.

    Args:
        features_a, features_b: `(n_a, width)` and `(n_b, width)`, of two items or more.
    """
    if features_a.shape[1:] != features_b.shape[1:]:
        raise ValueError(f"features_b: width {features_b.shape[1]} is not {features_a.shape[1]}")
    means, scaled = [], []
    for name, features in (("features_a", features_a), ("features_b", features_b)):
        if len(features) < 2:
            raise ValueError(f"{name}: {len(features)} clips have no covariance")
        x = features.double().cpu()
        means.append(x.mean(dim=0))
        scaled.append((x - means[-1]) / (len(x) - 1) ** 0.5)
    between = (means[0] - means[1]).square().sum()
    traces = sum(x.square().sum() for x in scaled)
    joint = torch.linalg.svdvals(scaled[0] @ scaled[1].T).sum()
    return max(0.0, float(between + traces - 2 * joint))


class I3D:
    """Features of an I3D network in a TorchScript file, as FVD takes them.

    Loading such a file runs the code in it: take it from where you trust, and compare `sha256`.
    """

    def __init__(self, file: str | Path, device: str = "cpu") -> None:
        self.file, self.device = Path(file), device
        try:
            self.sha256 = sha256_of(self.file)
            self._network = torch.jit.load(str(self.file), map_location=device).eval()
        except (OSError, RuntimeError) as error:
            raise ModelError(f"{self.file}: not a TorchScript file that can be read ({_message(error)})") from error
        # The file that StyleGAN-V's authors publish, and most papers use, would otherwise classify.
        names = {argument.name for argument in self._network.forward.schema.arguments}
        wanted = {"rescale": False, "resize": False, "return_features": True}
        self._options = {name: value for name, value in wanted.items() if name in names}

    @torch.no_grad()
    def __call__(self, videos: Tensor) -> Tensor:
        """Features, `(batch, width)`, of clips `(batch, 3, frames, height, width)` in [0, 1].

        Raises:
            ModelError: the network does not take such clips; I3D needs about ten frames.
        """
        batch, _, frames, _, _ = videos.shape
        flat = F.interpolate(
            videos.transpose(1, 2).flatten(0, 1).float(), size=(_I3D_SIDE, _I3D_SIDE), mode="bilinear", antialias=True
        )
        clips = (flat.clamp(0, 1) * 2 - 1).unflatten(0, (batch, frames)).transpose(1, 2)
        try:
            features = self._network(clips.to(self.device), **self._options)
        except (RuntimeError, torch.jit.Error) as error:
            raise ModelError(
                f"{self.file}: fails on clips of {frames} frames (I3D needs about ten): {_message(error)}"
            ) from error
        return cast(Tensor, features).flatten(1).float().cpu()


def _message(error: Exception) -> str:
    """Return what an error says, on one line; a TorchScript program says it after a traceback of its own."""
    return str(error).strip().splitlines()[-1].strip() if isinstance(error, torch.jit.Error) else first_line(error)
