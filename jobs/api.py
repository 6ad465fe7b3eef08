"""The API, in the shape of OpenAI's Videos: submit, look, list, fetch, delete, and once more with a change."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .clock import Clock
from .dispatch import Dispatcher
from .errors import ApiError, StorageError, bad, unavailable
from .files import VIDEO, Files, part
from .limits import Limits
from .metrics import Metrics
from .records import VIDEO_ID, Job, State, new_id
from .settings import PRIORITIES, Key, Settings
from .store import Store
from .submission import Once, Reader, Submission

logger = logging.getLogger("stillmotion.jobs")

Handler = Callable[[Request], Awaitable[Response]]
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_NO_STORE = {"Cache-Control": "no-store"}
_THUMBNAIL = 512
_AT_A_TIME = 2  # thumbnails: a large picture takes hundreds of MiB until it is small
_MEDIA_TYPE = re.compile(r"(video|image)/(?!svg)[a-z0-9.-]{1,40}")
_NEVER = ("edits", "extensions", "characters")  # of OpenAI's API, beside remix


def guarded(handler: Handler) -> Handler:
    """Answer each error in its shape: none hangs, none shows what is inside."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except ApiError as error:
            reply = error.response()
            if request.method == "POST":  # its body may not have been read, and what follows it is no request
                reply.headers["Connection"] = "close"
            return reply
        except StorageError as error:
            logger.warning("%s %s: %s", request.method, request.url.path, error)
            return unavailable(error).response()
        except Exception:
            logger.exception("%s %s failed", request.method, request.url.path)
            return ApiError(500, "internal", "the service failed at this; its log says why").response()

    return answer


class Api:
    """The endpoints."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        files: Files,
        limits: Limits,
        reader: Reader,
        dispatcher: Dispatcher,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._settings, self._store, self._files, self._limits = settings, store, files, limits
        self._reader, self._dispatcher, self._metrics, self._clock = reader, dispatcher, metrics, clock
        self._thumbnails = asyncio.Semaphore(_AT_A_TIME)

    def routes(self) -> list[Route]:
        one = "/v1/videos/{video_id}"
        return [
            Route("/v1/videos", guarded(self._create), methods=["POST"]),
            Route("/v1/videos", guarded(self._list), methods=["GET"]),
            *(Route(f"/v1/videos/{name}", guarded(self._never), methods=["POST"]) for name in _NEVER),
            Route(one, guarded(self._retrieve), methods=["GET"]),
            Route(one, guarded(self._delete), methods=["DELETE"]),
            Route(one + "/content", guarded(self._content), methods=["GET"]),
            Route(one + "/remix", guarded(self._remix), methods=["POST"]),
            Route("/v1/models", guarded(self._models), methods=["GET"]),
            Route("/v1/models/{name:path}", guarded(self._models), methods=["GET"]),
        ]

    def key(self, request: Request) -> Key:
        """Return whose request it is.

        Raises:
            ApiError: 401.
        """
        kind, _, presented = request.headers.get("authorization", "").partition(" ")
        found = self._settings.key_of(presented.strip() if kind.lower() == "bearer" else None)
        if found is None:
            raise ApiError(401, "invalid_api_key", "send a key of this service as `Authorization: Bearer`")
        # Without keys, a page of another site that a person has open must not submit jobs from their browser.
        # Nor must one whose own name was made to stand for this machine, which is the same site to the browser then.
        if not self._settings.keys and request.headers.get("sec-fetch-site") == "cross-site":
            raise ApiError(403, "cross_site", "requests of other sites' pages are not served without keys")
        host = request.headers.get("host", "")
        if not self._settings.keys and not self._settings.open and not self._settings.is_called(host):
            message = f"this service does not go by the name {host[:64]!r}: list keys, or say open: true"
            raise ApiError(403, "cross_site", message)
        return found

    # ------------------------------------------------------------------ endpoints

    async def _create(self, request: Request) -> Response:
        key = self.key(request)
        found = await self._reader.read(request)
        once = Once.of(request, found)
        if (known := await self._known(key, once)) is not None:
            return known
        return await self._submit(key, await self._reader.check(found, key), once)

    async def _remix(self, request: Request) -> Response:
        key = self.key(request)
        first = await self._job(request, key)
        found = await self._reader.read(request)
        once = Once.of(request, found, first.id)
        if (known := await self._known(key, once)) is not None:
            return known
        settings = {name: value for name, value in first.fields.items() if name != "seed"}
        if {"seconds", "fps"} & found.keys():
            settings.pop("frames", None)
        if "frames" in found:
            settings.pop("seconds", None)
        same = {"prompt": first.prompt, "model": first.model, **settings, "priority": PRIORITIES[first.priority]}
        submission = await self._reader.check({**same, **found}, key, picture_given=True)
        pictures = dict(submission.pictures)
        for name in set(first.pictures) - set(pictures):
            if (kept := await self._files.get(first.id, name)) is None:
                raise ApiError(404, "picture_expired", "the picture of this video is no longer kept")
            pictures[name] = kept
        return await self._submit(key, submission, once, pictures, first.id)

    async def _known(self, key: Key, once: Once | None) -> Response | None:
        """Return the answer to a request that was taken before, whatever would be said to it today."""
        if once is None:
            return None
        job = await asyncio.to_thread(self._store.known, key.name, once.key, once.digest)
        return None if job is None else self._shown(self._dispatcher.current(job))

    async def _submit(
        self,
        key: Key,
        submission: Submission,
        once: Once | None,
        pictures: Mapping[str, bytes] | None = None,
        remixed_from: str | None = None,
    ) -> Response:
        pictures = submission.pictures if pictures is None else pictures
        now = self._clock()
        job = Job(
            id=new_id("video"),
            seq=int(now * 1e9),
            owner=key.name,
            model=submission.model,
            prompt=submission.prompt,
            seconds=submission.seconds,
            size=submission.size,
            created=now,
            priority=submission.priority,
            fields=submission.fields,
            pictures=tuple(pictures),
            remixed_from=remixed_from,
            idempotency=once.key if once else None,
            digest=once.digest if once else None,
            webhook=submission.webhook,
        )
        try:
            # Files first: a row without its picture could not be computed; files without a row are swept up.
            for name, data in pictures.items():
                await self._files.put(job.id, name, data)
        except StorageError:
            await self._forget(job)
            raise
        try:
            wait_s = self._dispatcher.wait_s(1)
            taken, new = await asyncio.to_thread(self._store.submit, job, key, self._settings.most_queued, wait_s)
        except ApiError:  # and not where the database went away: it may have taken the job
            await self._forget(job)
            raise
        if new:
            self._metrics.submitted.labels(priority=PRIORITIES[job.priority]).inc()
            self._dispatcher.wake()
        else:
            await self._forget(job)
        return self._shown(taken)

    async def _forget(self, job: Job) -> None:
        try:
            await self._files.remove(job.id)
        except StorageError as error:
            logger.warning("%s; its files go when files of no job are swept up", error)

    async def _retrieve(self, request: Request) -> Response:
        job = await self._job(request, self.key(request))
        if job.status != State.QUEUED:
            return self._shown(job)
        place = await asyncio.to_thread(self._store.place, job)
        return self._shown(job, {"queue_position": place + 1})

    async def _list(self, request: Request) -> Response:
        key, asked = self.key(request), request.query_params
        limit = asked.get("limit", "20")
        if not re.fullmatch("[0-9]{1,3}", limit) or not 1 <= int(limit) <= 100:
            raise bad("limit", "out_of_range", f"{limit[:20]!r} is outside 1 to 100")
        if (order := asked.get("order", "desc")) not in ("asc", "desc"):
            raise bad("order", "out_of_range", f"{order[:20]!r} is neither asc nor desc")
        if (after := asked.get("after") or None) is not None and not VIDEO_ID.fullmatch(after):
            raise bad("after", "invalid_cursor", f"{after[:64]!r} is no id of a video")
        found, more = await asyncio.to_thread(self._store.page, key.name, after, int(limit), ascending=order == "asc")
        page = {
            "object": "list",
            "data": [self._dispatcher.current(job).to_api() for job in found],
            "first_id": found[0].id if found else None,
            "last_id": found[-1].id if found else None,
            "has_more": more,
        }
        return JSONResponse(page, headers=_NO_STORE)

    async def _delete(self, request: Request) -> Response:
        key, video_id = self.key(request), request.path_params["video_id"]
        job = await asyncio.to_thread(self._store.delete, video_id, key.name) if VIDEO_ID.fullmatch(video_id) else None
        if job is None:
            raise _no_video(video_id)
        computes = job.state == State.IN_PROGRESS
        if computes:
            await self._dispatcher.cancel(job.id)
        else:
            try:
                await self._dispatcher.remove(job)
            except StorageError as error:
                logger.warning("%s; the rest of it goes with the next sweep", error)
        answer = {"id": job.id, "object": "video.deleted", "deleted": True}
        return JSONResponse(answer | {"computation": "stops at its next step" if computes else "none"})

    async def _content(self, request: Request) -> Response:
        job = await self._job(request, self.key(request))
        variant = request.query_params.get("variant", "video")
        if variant == "thumbnail":
            async with self._thumbnails:
                picture = await self._files.get(job.id, "image")
                small = None if picture is None else await asyncio.to_thread(_thumbnail, picture)
            if small is None:
                raise ApiError(404, "not_found", "the picture of this video is no longer kept")
            return Response(small, media_type="image/webp", headers=_private(job))
        if variant == "picture":
            return await self._file(request, job, "image", "application/octet-stream", "picture")
        if variant != "video":
            message = f"{variant[:40]!r} is not one of video, thumbnail, picture"
            raise bad("variant", "not_supported", message)
        if job.state == State.FAILED:
            message = f"there is no video: {(job.error or {}).get('message')}"
            return _not_retried(ApiError(409, "video_failed", message))
        if job.state != State.COMPLETED or job.result is None:
            reply = _not_retried(ApiError(409, "video_not_ready", f"the video is {job.status}, at {job.progress} %"))
            reply.headers["openai-poll-after-ms"] = str(self._dispatcher.poll_after_ms(job))
            return reply
        name = f"animation-{job.result.get('seed', job.id)}.{job.result.get('format', 'mp4')}"
        media_type = str(job.result.get("media_type", "video/mp4"))
        if not _MEDIA_TYPE.fullmatch(media_type):
            media_type = "application/octet-stream"
        return await self._file(request, job, VIDEO, media_type, re.sub(r"[^A-Za-z0-9._-]", "_", name))

    async def _file(self, request: Request, job: Job, name: str, media_type: str, shown: str) -> Response:
        found = await self._files.open(job.id, name)
        if found is None:
            raise ApiError(404, "not_found", "this file is no longer kept")
        size, chunks = found
        headers = {"Content-Disposition": f'inline; filename="{shown}"', "Accept-Ranges": "bytes", **_private(job)}
        span = _span(request.headers.get("range"), size)
        status = 200
        if span is not None:
            status, chunks = 206, part(chunks, *span)
            headers["Content-Range"] = f"bytes {span[0]}-{span[1] - 1}/{size}"
            size = span[1] - span[0]
        headers["Content-Length"] = str(size)
        if request.method == "HEAD":
            return Response(None, status, headers, media_type)
        return StreamingResponse(chunks, status, headers, media_type)

    async def _never(self, request: Request) -> Response:
        self.key(request)
        what = request.url.path.rpartition("/")[2]
        raise ApiError(404, "not_supported", f"{what}: not of this service; POST /v1/videos/{{id}}/remix is nearest")

    async def _models(self, request: Request) -> Response:
        self.key(request)
        await self._limits.refresh()
        own = self._limits.about.get("model")
        names = dict.fromkeys([*self._settings.models, *([own] if own else [])])
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "stillmotion"} for name in names]
        if (asked := request.path_params.get("name")) is not None:
            if asked not in names:
                raise ApiError(404, "model_not_found", f"{asked[:64]!r} is not one of {', '.join(names)}", "model")
            return JSONResponse(next(one for one in data if one["id"] == asked), headers=_NO_STORE)
        return JSONResponse({"object": "list", "data": data}, headers=_NO_STORE)

    # ------------------------------------------------------------------

    async def _job(self, request: Request, key: Key) -> Job:
        video_id = request.path_params["video_id"]
        # An id of another key is as unknown as one that never was.
        job = await asyncio.to_thread(self._store.get, video_id, key.name) if VIDEO_ID.fullmatch(video_id) else None
        if job is None:
            raise _no_video(video_id)
        return self._dispatcher.current(job)

    def _shown(self, job: Job, more: Mapping[str, Any] | None = None) -> Response:
        headers = dict(_NO_STORE)
        if job.state in (State.QUEUED, State.IN_PROGRESS):
            headers["openai-poll-after-ms"] = str(self._dispatcher.poll_after_ms(job))
        return JSONResponse(job.to_api() | dict(more or {}), headers=headers)


def _no_video(video_id: str) -> ApiError:
    return ApiError(404, "not_found", f"there is no video {json.dumps(video_id[:64])}", "video_id")


def _not_retried(error: ApiError) -> JSONResponse:
    """Return an answer that OpenAI's clients do not ask for again by themselves, as they do after others of 409."""
    reply = error.response()
    reply.headers["x-should-retry"] = "false"
    return reply


def _private(job: Job) -> dict[str, str]:
    """Return headers of what its owner alone may keep, and no longer than it is here."""
    return {"Cache-Control": "private, max-age=300", "X-Content-Type-Options": "nosniff", "ETag": f'"{job.id}"'}


def _span(value: str | None, size: int) -> tuple[int, int] | None:
    """Return the bytes that a header `Range` asks for; None: all, where there is none or one that cannot be met."""
    match = _RANGE.fullmatch(value or "")
    if match is None or match.group(1, 2) == ("", ""):
        return None
    if not match[1]:
        first, last = max(0, size - int(match[2])), size - 1
    else:
        first, last = int(match[1]), int(match[2]) if match[2] else size - 1
    return (first, min(last, size - 1) + 1) if first < size and first <= last else None


def _thumbnail(data: bytes) -> bytes | None:
    """Return a small picture; None where the file is damaged."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as picture:
            picture.draft("RGB", (_THUMBNAIL, _THUMBNAIL))
            picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
            small = picture.convert("RGB")
    except Exception:  # noqa: BLE001  # Pillow raises anything at a damaged picture
        return None
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=82, method=2)
    return buffer.getvalue()
