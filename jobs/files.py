"""Pictures and videos of jobs, in a folder or in an S3 bucket.

A job's files are `<id>/image`, `<id>/last_image`, `<id>/about.json` and `<id>/video`. Each is there whole or
not at all. A video is written last: where there is one, its job was computed to the end. The file `database` names the
database that the jobs are in.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, S3Store

from .errors import SettingsError, StorageError
from .records import VIDEO_ID

VIDEO, ABOUT, OWNER = "video", "about.json", "database"
_OPTIONS: Any = {"timeout": "60s", "connect_timeout": "5s", "allow_http": True}
_RETRIES: Any = {"max_retries": 2}


class Files:
    """The store of files.

    Args:
        url: `file:///folder` or `s3://bucket/prefix`.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._folder: Path | None = None
        self._store: LocalStore | S3Store
        if parts.scheme == "file":
            self._folder = Path(unquote(parts.path))
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._store = LocalStore(self._folder)
            except (OSError, BaseError) as error:
                raise SettingsError(f"files: {self._folder} cannot be used: {_line(error)}") from error
        else:
            prefix = parts.path.strip("/") or None
            try:
                # Addresses and secrets are AWS's own variables of the environment.
                self._store = S3Store(parts.netloc, prefix=prefix, client_options=_OPTIONS, retry_config=_RETRIES)
            except (ValueError, BaseError) as error:
                raise SettingsError(f"files: {url} cannot be used: {_line(error)}") from error

    async def put(self, job_id: str, name: str, data: bytes) -> None:
        """Write a file, whole or not at all; it would survive a loss of power when this returns.

        Raises:
            StorageError: there is no room, or the store refuses.
        """
        with _translated(missing=True):
            await obstore.put_async(self._store, f"{job_id}/{name}", data, use_multipart=False)
            if self._folder is not None:
                await asyncio.to_thread(_sync, self._folder / job_id / name)

    async def get(self, job_id: str, name: str) -> bytes | None:
        """Return a file; None where there is none."""
        try:
            with _translated():
                found = await obstore.get_async(self._store, f"{job_id}/{name}")
                return bytes(await found.bytes_async())
        except FileNotFoundError:
            return None

    async def open(self, job_id: str, name: str) -> tuple[int, AsyncIterator[bytes]] | None:
        """Return a file's size and its bytes as they come; None where there is none."""
        try:
            with _translated():
                found = await obstore.get_async(self._store, f"{job_id}/{name}")
        except FileNotFoundError:
            return None
        return found.meta["size"], _bytes(found.stream())

    async def save_video(self, job_id: str, data: bytes, about: Mapping[str, Any]) -> None:
        """Write a video and, before it, what is known of it."""
        await self.put(job_id, ABOUT, json.dumps(about).encode())
        await self.put(job_id, VIDEO, data)

    async def saved_video(self, job_id: str) -> dict[str, Any] | None:
        """Return what is known of a job's video; None where it has none."""
        try:
            with _translated():
                await obstore.head_async(self._store, f"{job_id}/{VIDEO}")
        except FileNotFoundError:
            return None
        about = await self.get(job_id, ABOUT)
        return None if about is None else dict(json.loads(about))

    async def remove(self, job_id: str) -> None:
        """Remove all files of a job; there may be none."""
        with _translated():
            async for page in obstore.list(self._store, f"{job_id}/"):
                for item in page:
                    with contextlib.suppress(FileNotFoundError):
                        await obstore.delete_async(self._store, item["path"])
            if self._folder is not None:
                # Empty now, or with what is left of a write that was cut off; `/` in an id is impossible.
                folder = self._folder / job_id
                for path in folder.glob("*"):
                    path.unlink(missing_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    folder.rmdir()

    async def belong_to(self, database: str) -> bool:
        """Return whether the files are those of a database's jobs; they become so where they are nobody's."""
        try:
            with _translated():
                found = await obstore.get_async(self._store, OWNER)
                return bytes(await found.bytes_async()) == database.encode()
        except FileNotFoundError:
            with _translated(missing=True):
                await obstore.put_async(self._store, OWNER, database.encode(), use_multipart=False)
            return True

    async def old_ids(self, age_s: float) -> set[str]:
        """Return jobs whose newest file is older than this; what has no job's name is none of ours."""
        newest: dict[str, float] = {}
        with _translated():
            async for page in obstore.list(self._store):
                for item in page:
                    job_id = item["path"].partition("/")[0]
                    newest[job_id] = max(newest.get(job_id, 0.0), item["last_modified"].timestamp())
            if self._folder is not None:
                for folder in self._folder.iterdir():  # a folder of which no file was ever whole
                    with contextlib.suppress(FileNotFoundError):
                        newest.setdefault(folder.name, folder.stat().st_mtime)
        return {job_id for job_id, at in newest.items() if at < time.time() - age_s and VIDEO_ID.fullmatch(job_id)}


async def part(chunks: AsyncIterator[bytes], first: int, end: int) -> AsyncIterator[bytes]:
    """Yield the bytes from `first` to the one before `end`.

    They are cut out here: not every server that speaks S3 answers a request for a range as the protocol has it.
    """
    at = 0
    async for chunk in chunks:
        if piece := chunk[max(0, first - at) : max(0, end - at)]:
            yield piece
        at += len(chunk)
        if at >= end:
            return


async def _bytes(stream: Any) -> AsyncIterator[bytes]:
    with _translated():
        async for chunk in stream:
            yield bytes(chunk)


def _sync(path: Path) -> None:
    """Have a file on the disk, and its name in its folder, and that one's in the folder of all."""
    for one in (path, path.parent, path.parent.parent):
        descriptor = os.open(one, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _translated(*, missing: bool = False) -> Iterator[None]:
    """Turn what the store's client raises into errors of ours.

    Args:
        missing: whether that something is not there is one too. That the bucket is not there always is.
    """
    try:
        yield
    except FileNotFoundError as error:
        if not missing and "NoSuchBucket" not in str(error):
            raise
        raise StorageError(f"the store of files does not answer: {_line(error)}") from error
    except (BaseError, OSError, ValueError) as error:
        what = "has no room" if "No space left" in str(error) else "does not answer"
        raise StorageError(f"the store of files {what}: {_line(error)}") from error


def _line(error: BaseException) -> str:
    """Return the first line of an error: what follows is for the developers of the store's client."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
