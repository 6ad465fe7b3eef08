"""A stand-in for a GPU server: one job at a time, steps that a test allows, and a record of what happened."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import threading
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

FIELDS = [
    {"name": "image", "kind": "file", "required": True, "label": "Image", "about": "The picture", "choices": []},
    {"name": "prompt", "kind": "text", "required": True, "label": "Prompt", "about": "What moves", "choices": []},
    {"name": "seed", "kind": "integer", "least": 0, "most": 4294967295, "label": "Seed", "about": "", "choices": []},
    {"name": "frames", "kind": "integer", "least": 1, "most": 49, "step": 4, "default": 17, "label": "Frames",
     "about": "", "choices": []},
    {"name": "fps", "kind": "integer", "least": 1, "most": 60, "default": 8, "label": "Fps",
     "about": "", "choices": []},
    {"name": "size", "kind": "choice", "choices": ["64x64", "96x64"], "label": "Size", "about": ""},
    {"name": "format", "kind": "choice", "choices": ["mp4", "gif"], "default": "mp4", "label": "Format", "about": ""},
]  # fmt: skip
MODEL = {"model": "standin:1", "steps": 4, "passes": 4, "width": 64, "height": 64, "max_prompt_chars": 100,
         "fields": FIELDS}  # fmt: skip


class StandIn:
    """The server.

    Args:
        step_s: of a step; None: a test allows each with `allow`.
        log: file to which each event is appended, beside `events`.
    """

    def __init__(self, steps=4, step_s=0.0, retry_after=1, log=None, clip=None):
        self.steps, self.step_s, self.retry_after, self.log = steps, step_s, retry_after, log
        self.clip = clip  # a video's file
        self.allowed = threading.Semaphore(0)
        self.events = []
        self.requests = {}
        self.refuse = None  # a response in place of a computation
        self.break_at = None  # a step after which the connection breaks
        self.busy = False
        self.url = None

    def allow(self, steps=1):
        for _ in range(steps):
            self.allowed.release()

    def note(self, what, job):
        self.events.append((what, job))
        if self.log:
            with Path(self.log).open("a") as file:
                file.write(f"{what} {job}\n")

    def count(self, what):
        return sum(1 for event, _ in self.events if event == what)

    def order(self, what="begin"):
        return [job for event, job in self.events if event == what]

    def app(self):
        async def model(_):
            return JSONResponse(MODEL)

        async def readyz(_):
            return PlainTextResponse("ready")

        routes = [
            Route("/animate/stream", self.animate, methods=["POST"]),
            Route("/ui/model.json", model),
            Route("/readyz", readyz),
        ]
        return Starlette(routes=routes)

    async def animate(self, request):
        job = request.headers["x-request-id"]
        form = await request.form()
        self.requests[job] = {name: form[name] for name in form} | {"headers": dict(request.headers)}
        if self.refuse is not None:
            return self.refuse
        if self.busy:
            self.note("refuse", job)
            return Response(status_code=429, headers={"Retry-After": str(self.retry_after)})
        self.busy = True
        return StreamingResponse(self.compute(job, form), media_type="text/event-stream")

    async def compute(self, job, form):
        self.note("begin", job)
        ended = False
        try:
            yield event("start", {"steps": self.steps, "model": "standin:1", "left_s": 0})
            for step in range(1, self.steps + 1):
                await self.one_step()
                while step > 1 and self.log and Path(f"{self.log}.hold").exists():  # noqa: ASYNC110, ASYNC240
                    await asyncio.sleep(0.01)
                yield event("step", {"step": step, "steps": self.steps, "left_s": 0})
                if self.break_at == step:
                    raise ConnectionError
            ended = True
            data = self.clip or f"video of {form['prompt']}".encode()
            about = {
                "seed": form.get("seed", "7"),
                "model": "standin:1",
                "steps": str(self.steps),
                "marks": "c2pa, iptc",
            }
            self.note("end", job)
            self.busy = False
            yield event("result", {**about, "format": "mp4", "media_type": "video/mp4",
                                   "data": base64.b64encode(data).decode()})  # fmt: skip
        finally:
            if not ended:
                self.note("stop", job)
            self.busy = False

    async def one_step(self):
        if self.step_s is not None:
            await asyncio.sleep(self.step_s)
            return
        while not self.allowed.acquire(blocking=False):  # noqa: ASYNC110  # a test releases it, in its own thread
            await asyncio.sleep(0.005)


def event(name, data):
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


if __name__ == "__main__":  # port, seconds of a step, log
    stand_in = StandIn(step_s=float(sys.argv[2]), log=sys.argv[3])
    uvicorn.run(stand_in.app(), host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
