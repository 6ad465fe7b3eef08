"""What proxies show of themselves: counters to other machines, requests to who reads logs, and nothing else."""

import asyncio
import json

from routing.metrics.observation import Target
from routing.metrics.proxies import COMPLETED


def test_another_machine_reads_counters_and_nothing_else(running, free_ports):
    async def scenario():
        edge = f"127.0.0.1:{free_ports(1)[0]}"

        def change(content):
            content["data_plane"]["places"]["a"]["metrics"] = edge

        async with running({"a": 1}, change=change, service_s=0.01) as fleet:
            await fleet.jobs(3, fleet.url("a"))
            page = await fleet.page(Target("a", "edge", edge), f"http://{edge}/metrics")
            assert page.total(COMPLETED, envoy_cluster_name="jobs") == 3
            assert (await fleet.dispatcher("a")).ready == 1
            dispatcher = fleet.places["a"].dispatchers[0].admin
            for path in ("/", "/stats", "/animate"):
                assert (await fleet.client.get(f"http://{dispatcher}{path}")).status_code == 404
            for path in ("/livez", "/readyz"):
                assert (await fleet.client.get(f"http://{dispatcher}{path}")).status_code == 200
            for method, path in (("POST", "/metrics"), ("GET", "/stats"), ("GET", "/config_dump"), ("GET", "/")):
                assert (await fleet.client.request(method, f"http://{edge}{path}")).status_code == 404

    asyncio.run(scenario())


def test_an_edge_logs_requests_without_keys_and_pictures(running, tmp_path):
    async def scenario():
        (tmp_path / "keys.yaml").write_text("studio: a-key-of-the-studio\n")
        async with running({"a": 1}, service_s=0.01, api_keys="keys.yaml") as fleet:
            headers = {"X-API-Key": "a-key-of-the-studio"}
            url = fleet.url("a", "/animate?token=secret")
            assert (await fleet.client.post(url, content=b"a picture", headers=headers)).status_code == 200
            log = fleet.root / "a" / "edge" / "log.txt"

            def lines():
                return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]

            (line,) = await fleet.holds(lines)
            assert (line["status"], line["region"], line["attempts"]) == (200, "a", 1)
            assert (line["client"], line["path"]) == ("studio", "/animate")
            assert not {"secret", "a-key-of-the-studio", "picture"} & set(log.read_text().split('"'))
            assert "secret" not in log.read_text()

    asyncio.run(scenario())
