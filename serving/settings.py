"""Settings of the service, read from the environment; the defaults are written here once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import StillmotionError
from pipeline.media.images import PictureLimits

PREFIX = "STILLMOTION_"
DEFAULT_MODEL = "animator:latest"


class SettingsError(StillmotionError):
    """An environment variable that cannot be used; the text names it."""


class Settings(BaseModel):
    """Each field is read from `STILLMOTION_<NAME IN CAPITALS>`.

    Variables with the prefix that name no field are left alone: Kubernetes adds some of its own
    (`STILLMOTION_SERVICE_HOST`) beside a Service of that name.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str | None = Field(default=None, min_length=1)
    """Tag in the BentoML store, or a folder. None: the one pinned in the Bento, else `animator:latest`."""
    device: str | None = Field(default=None, min_length=1)
    """As PyTorch names it, for example `cuda:0`. None: CUDA where there is some, else CPU."""
    text_encoder: Literal["resident", "offload"] = "resident"
    """Whether the text encoder stays on the device, or waits in the processor's memory while the network computes."""
    text_cache: int = Field(default=64, ge=0, le=100_000)
    """Prompts whose encoding is kept for the next request with the same one. 0: none."""
    region: str = Field(default="local", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """Name of the region this server stands in; goes into response headers."""
    deadline_s: float = Field(default=120.0, gt=0, le=3000, allow_inf_nan=False)
    """From admission to the finished video. The computation is stopped when it passes."""
    headers_s: float = Field(default=10.0, gt=0, le=600, allow_inf_nan=False)
    """Time in which the head of a request must arrive, from its first byte or the opening of the connection."""
    upload_s: float = Field(default=20.0, gt=0, le=600, allow_inf_nan=False)
    """Time in which the whole request body must arrive."""
    send_s: float = Field(default=60.0, gt=0, le=600, allow_inf_nan=False)
    """Time in which the client must have taken the response."""
    max_image_bytes: int = Field(default=16 * 2**20, ge=1024, le=2**30)
    max_image_pixels: int = Field(default=50_000_000, ge=64)
    max_image_side: int = Field(default=16_384, ge=8)
    min_image_side: int = Field(default=8, ge=1)
    max_prompt_chars: int = Field(default=1000, ge=1, le=100_000)
    max_uploads: int = Field(default=64, ge=1, le=10_000)
    """Request bodies that may arrive at the same time."""
    max_uploads_bytes: int = Field(default=128 * 2**20, ge=1024)
    """Memory for the bodies that arrive at the same time; at least one of the greatest size always fits."""
    marks: Literal["on", "off"] = "on"
    """Whether clips are marked as made by AI: in their metadata, and by C2PA once there is a certificate."""
    c2pa_certificate: Path | None = None
    """File of the certificate that signs clips and those that it was issued with, in PEM, the signer's first."""
    c2pa_key: Path | None = None
    """File of its private key, PKCS #8 in PEM."""
    c2pa_algorithm: Literal["es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519"] = "es256"
    """Algorithm of that key."""
    log: Literal["text", "json"] = "text"
    """Form of log lines."""
    traces: str | None = Field(default=None, pattern=r"^https?://[^/\s]+/\S*$")
    """Where traces are sent by OTLP over HTTP, for example `http://collector:4318/v1/traces`. None: nowhere."""

    @property
    def max_body_bytes(self) -> int:
        """Of a whole request: two pictures and two prompts, at four bytes a character, and what multipart adds."""
        return 2 * self.max_image_bytes + 8 * self.max_prompt_chars + 16 * 1024

    @property
    def picture_limits(self) -> PictureLimits:
        return PictureLimits(
            max_bytes=self.max_image_bytes,
            max_pixels=self.max_image_pixels,
            max_side=self.max_image_side,
            min_side=self.min_image_side,
        )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Read the settings.

        Raises:
            SettingsError: on one line, naming each variable that is wrong and why.
        """
        values = {}
        for name in cls.model_fields:
            value = environment.get(PREFIX + name.upper(), "").strip()
            if value:
                values[name] = value
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            found = [
                f"{PREFIX}{str(item['loc'][0]).upper()}={item['input']!r}: {item['msg']}" for item in error.errors()
            ]
            raise SettingsError("; ".join(found)) from error
