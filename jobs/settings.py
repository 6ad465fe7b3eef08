"""Settings of the job service: from a YAML file, then the environment, then flags; the later wins.

Each setting but `keys` is also read from `STILLMOTION_JOBS_<NAME IN CAPITALS>`, so that secrets need no file.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import httpx
import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from .errors import SettingsError

PREFIX = "STILLMOTION_JOBS_"
Priority = Literal["interactive", "batch"]
PRIORITIES: tuple[Priority, ...] = ("interactive", "batch")
_HTTP = r"^https?://[^\s/]+(/\S*)?$"
_HOST = re.compile(r"[A-Za-z0-9_.:-]+")
_SECRET = re.compile(r"whsec_(?=[A-Za-z0-9+/=]{32})(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")


class Key(BaseModel):
    """An API key and what its holder may do.

    Attributes:
        name: of the holder; jobs belong to it.
        sha256: of the key, in hexadecimal: the file holds no secret.
        share: its weight where several holders wait.
        most_unfinished: jobs that may wait or run at a time; None: as many as the queue takes.
        per_day: jobs that it may submit in 24 hours.
        priorities: that it may ask for.
        webhook_secret: signs its webhooks; None: the service's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    share: float = Field(default=1.0, gt=0, le=1000)
    most_unfinished: int | None = Field(default=None, ge=1)
    per_day: int | None = Field(default=None, ge=1)
    priorities: tuple[Priority, ...] = PRIORITIES
    webhook_secret: SecretStr | None = None

    @field_validator("webhook_secret")
    @classmethod
    def _can_sign(cls, secret: SecretStr | None) -> SecretStr | None:
        return _signing(secret)


EVERYONE = Key(name="everyone", sha256="0" * 64)
"""Whose jobs all are where there are no keys."""


class Settings(BaseModel):
    """What the service needs to know; only `upstream` has no default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    upstream: str = Field(pattern=_HTTP)
    """Address of a server or an edge: jobs go to its `/animate/stream`."""
    upstream_key: SecretStr | None = None
    """Sent to it as `X-API-Key`."""
    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8080, ge=0, le=65535)
    data: Path = Path("jobs-data")
    """Folder of the database and the files, where they are not elsewhere."""
    database: SecretStr | None = None
    """`postgresql://...`, which several replicas share. None: SQLite in `data`, for one process."""
    files: str | None = Field(default=None, pattern=r"^(s3://[^/\s]|file:///)\S*$")
    """`s3://bucket/prefix`, with the AWS_... variables of the environment. None: a folder in `data`."""
    keys: tuple[Key, ...] = ()
    open: bool = False
    """Whether to serve an address that others reach without keys."""
    models: tuple[str, ...] = Field(default=("stillmotion",), min_length=1)
    """Names by which clients may ask for the model; the server's own name is one as well."""
    most_queued: int = Field(default=10_000, ge=1)
    """Jobs that may wait; further ones are refused with 429."""
    most_in_flight: int = Field(default=256, ge=1, le=10_000)
    """Jobs that one process may have sent at a time."""
    most_attempts: int = Field(default=5, ge=1, le=100)
    """Computations that may be begun for one job, where they are lost with a server."""
    start_s: float = Field(default=900.0, gt=0, le=86_400)
    """How long the upstream may take to begin with a job that it has taken."""
    compute_s: float = Field(default=3600.0, gt=0, le=86_400)
    """How long a job may compute, from its start."""
    lease_s: float = Field(default=30.0, ge=0.5, le=3600)
    """After so long without a word of its process, a job is taken over by another one."""
    expires_s: float = Field(default=86_400.0, gt=0, le=10 * 365 * 86_400)
    """How long a job and its files stay after its end."""
    drain_s: float = Field(default=20.0, ge=0, le=3600)
    """How long the service waits for jobs in flight when it is stopped; the rest goes back to the queue."""
    max_image_bytes: int = Field(default=16 * 2**20, ge=1024, le=2**30)
    max_image_pixels: int = Field(default=50_000_000, ge=64)
    max_uploads: int = Field(default=16, ge=1, le=10_000)
    """Requests whose pictures are read at the same time."""
    upload_s: float = Field(default=60.0, gt=0, le=3600)
    """Time in which a request's body must arrive."""
    fetch_hosts: tuple[str, ...] = ()
    """Hosts from which pictures named by an address are fetched. Empty: none is."""
    webhook_secret: SecretStr | None = None
    webhook_attempts: int = Field(default=8, ge=1, le=50)
    webhook_hosts: tuple[str, ...] = ()
    """Hosts that webhooks may go to. Empty: any that is public."""
    private_addresses: bool = False
    """Whether webhooks and fetched pictures may go to private addresses, and by plain HTTP."""
    control: str | None = Field(default=None, pattern=_HTTP)
    """Address of the control loop's pages, for the view of the fleet."""

    @field_validator("keys")
    @classmethod
    def _each_once(cls, keys: tuple[Key, ...]) -> tuple[Key, ...]:
        for what in ("name", "sha256"):
            values = [getattr(key, what) for key in keys]
            if len(set(values)) < len(values):
                raise ValueError(f"two keys have the same {what}")
        return keys

    @field_validator("models", "fetch_hosts", "webhook_hosts", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        """Take a list from the environment, separated by commas."""
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("upstream", "control")
    @classmethod
    def _no_slash(cls, value: str | None) -> str | None:
        return value.rstrip("/") if value else value

    @field_validator("upstream", "control")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        try:
            if value is None or _HOST.fullmatch(httpx.URL(value).raw_host.decode("ascii")):
                return value
        except httpx.InvalidURL:
            pass
        raise ValueError("not an address such as http://127.0.0.1:3000")

    @field_validator("database")
    @classmethod
    def _is_shared(cls, value: SecretStr | None) -> SecretStr | None:
        # A SQLite elsewhere would be one that several processes may open, each of which believes that it is alone.
        if value is not None and not value.get_secret_value().startswith(("postgresql://", "postgresql+psycopg://")):
            raise ValueError("not postgresql://...; without it SQLite is used, in the folder `data`")
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _can_sign(cls, secret: SecretStr | None) -> SecretStr | None:
        return _signing(secret)

    @model_validator(mode="after")
    def _closed(self) -> Settings:
        if not self.keys and not self.open and not _is_loopback(self.host):
            raise ValueError(f"host {self.host} can be reached by others: list keys, or say open: true")
        return self

    @property
    def database_url(self) -> str:
        if self.database is None:
            return f"sqlite:///{self.data.resolve() / 'jobs.sqlite3'}"
        return self.database.get_secret_value()

    @property
    def files_url(self) -> str:
        return self.files or (self.data.resolve() / "files").as_uri()

    @property
    def max_body_bytes(self) -> int:
        """Of a whole request: two pictures, in base64 at worst, and texts."""
        return 2 * (self.max_image_bytes * 4 // 3) + 128 * 1024

    def is_called(self, host: str) -> bool:
        """Return whether a header `Host` names this machine: by an address, or by a name that it is known to have."""
        name = re.sub(r":[0-9]*$", "", host)
        try:
            ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return name.lower() in ("", "localhost", self.host)
        return True

    def key_of(self, presented: str | None) -> Key | None:
        """Return whom a presented key belongs to; None: nobody."""
        if not self.keys:
            return EVERYONE
        # The digest of a random key tells nothing of it, so a comparison that takes no equal time is safe.
        digest = hashlib.sha256((presented or "").encode("utf-8", "surrogateescape")).hexdigest()
        return next((key for key in self.keys if key.sha256 == digest), None)

    def holder(self, name: str) -> Key:
        """Return the key of a job's owner; one that was removed since has no share of its own."""
        return next((key for key in self.keys if key.name == name), EVERYONE)

    def secret_of(self, name: str) -> str | None:
        """Return what signs the webhooks of a holder."""
        secret = self.holder(name).webhook_secret or self.webhook_secret
        return secret.get_secret_value() if secret else None


def _signing(secret: SecretStr | None) -> SecretStr | None:
    if secret is not None and not _SECRET.fullmatch(secret.get_secret_value()):
        raise ValueError("not whsec_ and at least 24 bytes in base64; `python -m jobs secret` makes one")
    return secret


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_settings(file: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any]) -> Settings:
    """Read the settings.

    Raises:
        SettingsError: on one line, naming each setting that is wrong and why.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            read = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise SettingsError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
        if not isinstance(read, dict | None):
            raise SettingsError(f"{file}: holds no settings by name")
        values.update(read or {})
    names = set(Settings.model_fields) - {"keys"}
    values.update({name: text for name in names if (text := environment.get(PREFIX + name.upper(), "").strip())})
    values.update({name: value for name, value in flags.items() if value is not None})
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        found = [f"{'.'.join(map(str, one['loc'])) or 'settings'}: {one['msg']}" for one in error.errors()]
        raise SettingsError("; ".join(found).replace("Value error, ", "")) from error
