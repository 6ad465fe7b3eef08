"""Pages of a large fleet's proxies, in the formats of HAProxy 2.8 and Envoy 1.40, and agents that poll for rows.

Run as a program: `synthetic.py pages PORT REGIONS EDGES`, or `synthetic.py agents URL REGIONS EDGES SECONDS`.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from collections import Counter

import aiohttp
from aiohttp import web

GPUS, SERVICE_S = 500, 2.5
BACKENDS = ("gpus", "pages")


def load(region: int, seconds: float) -> float:
    """Share of a region's capacity that its users ask for: waves that follow the sun, some above 1."""
    return 0.65 + 0.5 * math.sin(region / 5 + seconds / 20)


def dispatcher(region: int, jobs: float, now: float) -> str:
    busy = min(GPUS, round(load(region, now) * GPUS))
    lines = [f"haproxy_process_uptime_seconds {int(now)}", "haproxy_process_nbthread 1"]
    for backend in BACKENDS:
        about = f'{{proxy="{backend}"}}'
        lines += [f"# HELP haproxy_backend_figure_{i} help\n# TYPE haproxy_backend_figure_{i} gauge" for i in range(40)]
        lines += [f"haproxy_backend_figure_{i}{about} {i}" for i in range(40)]
        lines += [
            f"haproxy_backend_current_queue{about} 0",
            f"haproxy_backend_current_sessions{about} {busy}",
            f"haproxy_backend_active_servers{about} {GPUS}",
            *(
                f'haproxy_backend_http_responses_total{{proxy="{backend}",code="{code}"}} {int(jobs)}'
                for code in ("1xx", "2xx", "3xx", "4xx", "5xx", "other")
            ),
        ]
    return "\n".join(lines) + "\n"


def edge(region: int, jobs: float, now: float, regions: int) -> str:
    lines = [
        f'envoy_cluster_upstream_rq_completed{{envoy_cluster_name="jobs"}} {int(jobs)}',
        f'envoy_cluster_upstream_rq_retry{{envoy_cluster_name="jobs"}} {int(jobs / 50)}',
        'envoy_http_downstream_rq_active{envoy_http_conn_manager_prefix="edge"} 10',
        'envoy_http_downstream_rq_rx_reset{envoy_http_conn_manager_prefix="edge"} 0',
        f"envoy_server_uptime{{}} {int(now / 5) * 5}",
    ]
    for k in range(20):  # as many destinations as a row of a hot region has
        to = (region + k) % regions
        lines.append(
            f'envoy_cluster_zone_upstream_rq_xx{{envoy_response_code_class="2",envoy_cluster_name="jobs",'
            f'source_region="r{region}",destination_region="r{to}"}} {int(jobs / 20)}'
        )
    return "\n".join(lines) + "\n"


def pages(port: int, regions: int, edges: int) -> None:
    """Serve all pages: `/dispatcher/REGION` and `/edge/REGION/NUMBER`."""
    jobs = [0.0] * regions
    state = {"at": time.monotonic(), "begun": time.monotonic()}

    def move() -> float:
        now = time.monotonic()
        if now - state["at"] > 0.2:
            for i in range(regions):
                jobs[i] += load(i, now - state["begun"]) * GPUS / SERVICE_S * (now - state["at"])
            state["at"] = now
        return now - state["begun"]

    async def of_dispatcher(request: web.Request) -> web.Response:
        now, region = move(), int(request.match_info["region"])
        return web.Response(text=dispatcher(region, jobs[region], now))

    async def of_edge(request: web.Request) -> web.Response:
        now, region = move(), int(request.match_info["region"])
        return web.Response(text=edge(region, jobs[region] * regions / edges, now, regions))

    app = web.Application()
    app.router.add_get("/dispatcher/{region}", of_dispatcher)
    app.router.add_get("/edge/{region}/{number}", of_edge)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


async def agents(url: str, regions: int, edges: int, seconds: float) -> None:
    """Poll as agents do, all at once; print how polls were answered, by status, and the epochs and versions seen."""
    answers: Counter[str] = Counter()
    end = time.monotonic() + seconds
    backwards = 0

    async def one(session: aiohttp.ClientSession, number: int) -> None:
        nonlocal backwards
        tag, last = "", (0, 0)
        while time.monotonic() < end:
            try:
                parameters = {"after": tag, "wait": "5"}
                async with session.get(f"{url}/rows/r{number % regions}", params=parameters) as answer:
                    answers[str(answer.status)] += 1
                    if answer.status == 200:
                        row = json.loads(await answer.read())
                        tag = answer.headers["etag"].strip('"')
                        backwards += (row["epoch"], row["version"]) < last
                        last = row["epoch"], row["version"]
            except (aiohttp.ClientError, TimeoutError) as error:
                answers[type(error).__name__] += 1
                await asyncio.sleep(0.5)

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:
        await asyncio.gather(*(one(session, number) for number in range(edges)))
    sys.stdout.write(json.dumps({"answers": answers, "backwards": backwards}))


if __name__ == "__main__":
    kind, *arguments = sys.argv[1:]
    if kind == "pages":
        pages(*(int(one) for one in arguments))
    else:
        asyncio.run(agents(arguments[0], int(arguments[1]), int(arguments[2]), float(arguments[3])))
