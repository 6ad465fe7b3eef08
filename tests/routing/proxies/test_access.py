"""Who may send requests, what a request may say of itself, and what is told to nobody."""

import asyncio
import shutil
import ssl
import stat
import subprocess
import warnings

import httpx
import pytest
import yaml

from routing.envoy.files import BOOTSTRAP, KEYS, edge_folder, read_keys
from routing.errors import InputError
from routing.proxies import write_fleet

GOOD, OTHER = "k" * 20, "other-key-0123456789"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A folder with certificates of two authorities, an edge, two for users, and one of a stranger."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the program openssl, which makes certificates")
    folder = tmp_path_factory.mktemp("certificates")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]

    def openssl(command: str, *more: str) -> None:
        subprocess.run(["openssl", *command.split(), *more], cwd=folder, capture_output=True, check=True)

    for name in ("ca", "other-ca"):
        openssl(f"req -x509 -days 2 -subj /CN={name} -keyout {name}.key -out {name}.pem", *curve)
    signers = {"edge": "ca", "users": "ca", "new-users": "ca", "stranger": "other-ca"}
    for name, authority in signers.items():
        san = "DNS:localhost,IP:127.0.0.1" if name.endswith("users") else f"DNS:{name}.test"
        (folder / f"{name}.ext").write_text(f"subjectAltName={san}")
        openssl(f"req -new -subj /CN={name} -keyout {name}.key -out {name}.csr", *curve)
        signed = f"-CA {authority}.pem -CAkey {authority}.key -CAcreateserial -extfile {name}.ext"
        openssl(f"x509 -req -days 2 -in {name}.csr {signed} -out {name}.pem")
    return folder


async def protocol(address, newest):
    """What an edge chooses of HTTP/2 and 1.1, with no newer TLS than this."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.maximum_version = newest
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.set_alpn_protocols(["h2", "http/1.1"])
    host, port = address.split(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    chosen = writer.get_extra_info("ssl_object").selected_alpn_protocol()
    writer.close()
    return chosen


def test_users_reach_an_edge_by_tls_and_its_certificate_is_renewed_while_it_runs(running, certificates, tmp_path):
    async def scenario():
        for suffix in ("pem", "key"):
            shutil.copy(certificates / f"users.{suffix}", tmp_path / f"served.{suffix}")
        tls = {"certificate": "served.pem", "key": "served.key"}
        async with running({"a": 1}, service_s=0.01, tls=tls) as fleet:
            trusting = ssl.create_default_context(cafile=certificates / "ca.pem")
            async with httpx.AsyncClient(verify=trusting, trust_env=False) as client:
                assert (await client.post(fleet.url("a"), content=b"x")).status_code == 200
            with pytest.raises(httpx.HTTPError):
                await fleet.client.post(fleet.url("a").replace("https", "http"), content=b"x")
            assert await protocol(fleet.places["a"].edge, ssl.TLSVersion.TLSv1_2) == "h2"
            with pytest.raises(ssl.SSLError):
                await protocol(fleet.places["a"].edge, ssl.TLSVersion.TLSv1_1)

            def serial() -> str:
                return ssl.get_server_certificate(tuple(fleet.places["a"].edge.split(":")))

            before = await asyncio.to_thread(serial)
            for suffix in ("key", "pem"):
                shutil.copy(certificates / f"new-users.{suffix}", tmp_path / "partial")
                (tmp_path / "partial").replace(tmp_path / f"served.{suffix}")

            async def renewed() -> bool:
                return (await asyncio.to_thread(serial)) != before

            await fleet.holds(renewed)
            assert await asyncio.to_thread(serial) == (certificates / "new-users.pem").read_text()

    asyncio.run(scenario())


@pytest.mark.parametrize("named", [True, False])
def test_a_dispatcher_serves_edges_of_its_authority_and_nobody_else(running, certificates, named):
    async def scenario():
        async def try_with(certificate, wanted=200, **more):
            mutual = {"ca": "ca.pem", "certificate": f"{certificate}.pem", "key": f"{certificate}.key", **more}
            async with running({"a": 1}, service_s=0.01, base=certificates, mutual_tls=mutual) as fleet:
                assert (await fleet.jobs(1, fleet.url("a")))[0].status_code == wanted
                plain = fleet.dispatcher_url("a")
                for url in (plain, plain.replace("http", "https")):
                    # httpx passes an alert that comes after the handshake on as it is.
                    with pytest.raises((httpx.HTTPError, ssl.SSLError)):
                        await fleet.client.post(url, content=b"x")
                stranger = ssl.create_default_context()
                stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
                stranger.load_cert_chain(certificates / "stranger.pem", certificates / "stranger.key")
                async with httpx.AsyncClient(verify=stranger, trust_env=False) as client:
                    with pytest.raises((httpx.HTTPError, ssl.SSLError)):
                        await client.post(plain.replace("http", "https"), content=b"x")
                assert fleet.servers["a"][0].started == (wanted == 200)

        # One certificate for both roles: its name is right for both, or nobody asks for one.
        await try_with("edge", **({"edge_name": "edge.test", "dispatcher_name": "edge.test"} if named else {}))

    asyncio.run(scenario())


def test_an_edge_without_the_right_name_finds_no_dispatcher(running, certificates):
    async def scenario():
        mutual = {"ca": "ca.pem", "certificate": "edge.pem", "key": "edge.key", "edge_name": "someone.test"}
        async with running({"a": 1}, edges=[], base=certificates, mutual_tls=mutual) as fleet:
            fleet.start_edge("a")
            await fleet.until(fleet.url("a", "/livez"))
            response = (await fleet.jobs(1, fleet.url("a")))[0]
            assert response.status_code == 503
            assert response.json()["code"] == "unavailable"
            assert (await fleet.client.get(fleet.url("a", "/readyz"))).status_code == 503

    asyncio.run(scenario())


def test_keys_open_an_edge_and_change_while_it_runs(running, tmp_path):
    async def scenario():
        (tmp_path / "keys.yaml").write_text(yaml.safe_dump({"studio": GOOD}))
        async with running({"a": 1}, service_s=0.01, api_keys="keys.yaml") as fleet:

            async def status(path="/animate", method="POST", **headers):
                return (await fleet.client.request(method, fleet.url("a", path), headers=headers)).status_code

            assert await status() == 401
            assert await status(**{"X-API-Key": "wrong-key-0123456789"}) == 401
            assert await status(**{"X-API-Key": GOOD}) == 200
            assert await status(Authorization=f"Bearer {GOOD}") == 200
            assert await status("/docs.json", "GET") == 401
            assert await status("/ui/", "GET") == 401
            assert await status("/livez", "GET") == 200
            assert await status("/readyz", "GET") == 200

            for seen in fleet.servers["a"][0].headers:
                assert seen["x-stillmotion-client"] == "studio"
                assert GOOD not in str(seen)

            refused = await fleet.client.post(fleet.url("a"))
            assert refused.json() == {
                "error": "give an API key: the header X-API-Key",
                "code": "unauthorized",
                "field": None,
            }

            (tmp_path / "keys.yaml").write_text(yaml.safe_dump({"lab": OTHER}))
            write_fleet(fleet.root, fleet.fleet, fleet.table, base=tmp_path)

            async def taken() -> bool:
                return await status(**{"X-API-Key": OTHER}) == 200

            await fleet.holds(taken)
            assert await status(**{"X-API-Key": GOOD}) == 401

            folder = edge_folder(fleet.root, "a")
            assert stat.S_IMODE((folder / KEYS).stat().st_mode) == 0o600
            for path in fleet.root.rglob("*"):
                if path.is_file() and path.name != KEYS:
                    assert OTHER not in path.read_text(), path
            admin = fleet.places["a"].admin
            assert OTHER not in (await fleet.client.get(f"http://{admin}/config_dump?include_eds")).text

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "should hold a key for each client"),
        ("[a, b]", "should hold a key for each client"),
        ("studio: short", "studio: the key should have at least 16 characters"),
        ("studio: 1234567890123456789", "studio: client and key should be text; put them in quotes"),
        ("studio: 'has a space in it..'", "without spaces"),
        (f"a: {GOOD}\nb: {GOOD}", "b: another client has the same key"),
    ],
)
def test_a_bad_file_of_keys_is_refused_without_showing_one(tmp_path, content, message):
    path = tmp_path / "keys.yaml"
    path.write_text(content)
    with pytest.raises(InputError) as error:
        read_keys(path)
    assert message in str(error.value)
    assert GOOD not in str(error.value)
    assert str(path) in str(error.value)


def test_what_a_client_says_of_itself_is_not_believed(running):
    async def scenario():
        def change(content):
            content["retry"] |= {"attempts": 2, "base_interval_s": 0.001, "max_interval_s": 0.001}

        async with running({"a": 1, "b": 0}, {"b": {"a": 1.0}}, change=change, service_s=0.01) as fleet:
            lies = {
                "x-envoy-max-retries": "50",
                "x-envoy-retry-on": "5xx,reset,retriable-4xx",
                "x-envoy-upstream-rq-timeout-ms": "1",
                "x-envoy-internal": "true",
                "x-envoy-original-path": "/elsewhere",
                "x-stillmotion-source": "b",
                "x-stillmotion-client": "somebody",
                "x-request-id": "00000000-0000-0000-0000-000000000000",
                "x-forwarded-for": "8.8.8.8",
                "x-forwarded-proto": "https",
            }
            (response,) = await fleet.jobs(1, fleet.url("a"), headers=lies)
            assert response.status_code == 200
            (seen,) = fleet.servers["a"][0].headers
            assert seen["x-stillmotion-source"] == "a"
            assert "x-stillmotion-client" not in seen
            assert not {name for name in lies if name.startswith("x-envoy-")} & seen.keys()
            assert seen["x-request-id"] != lies["x-request-id"]
            assert seen["x-request-id"] == response.headers["x-request-id"]
            assert not seen["x-forwarded-for"].endswith(lies["x-forwarded-for"])
            assert seen["x-forwarded-proto"] == "http"

            fleet.servers["a"][0].busy = 1
            (response,) = await fleet.jobs(1, fleet.url("a"), headers=lies)
            assert response.headers["x-stillmotion-attempts"] == "2"

            direct = await fleet.client.post(fleet.dispatcher_url("a"), content=b"x", headers=lies)
            assert direct.status_code == 429
            assert fleet.servers["a"][0].refused == 3

    asyncio.run(scenario())


def test_answers_tell_region_attempts_and_request_and_nothing_of_the_machinery(running):
    async def scenario():
        async with running({"a": 1}, service_s=0.01) as fleet:
            ok = (await fleet.jobs(1, fleet.url("a")))[0]
            fleet.servers["a"][0].busy = 1
            busy = (await fleet.jobs(1, fleet.url("a")))[0]
            page = await fleet.client.get(fleet.url("a", "/docs.json"))
            for response in (ok, busy, page):
                names = set(response.headers)
                assert not {name for name in names if name.startswith("x-envoy")}
                assert response.headers["server"] == "stillmotion"
                assert {"x-stillmotion-region", "x-stillmotion-attempts", "x-request-id"} <= names
                assert response.headers["x-stillmotion-region"] == "a"

    asyncio.run(scenario())


def test_a_users_edge_has_no_metrics_and_only_known_pages(running):
    async def scenario():
        async with running({"a": 1}) as fleet:
            hidden = ("/metrics", "/stats", "/uix", "/animate/other", "/ui/../metrics", "//metrics", "/%2e%2e/metrics")
            for path in hidden:
                response = await fleet.client.get(httpx.URL(fleet.url("a", "")).copy_with(raw_path=path.encode()))
                assert response.status_code == 404, path
                assert response.json()["code"] == "not_found"
            escaped = httpx.URL(fleet.url("a", "")).copy_with(raw_path=b"/ui%2f..%2fmetrics")
            assert (await fleet.client.get(escaped)).status_code == 400

    asyncio.run(scenario())


def test_the_admin_page_is_on_loopback_and_cannot_stop_the_proxy(running):
    async def scenario():
        async with running({"a": 1}) as fleet:
            for folder in fleet.root.glob("*/edge"):
                admin = yaml.safe_load((folder / BOOTSTRAP).read_text())["admin"]
                assert admin["address"]["socket_address"]["address"] == "127.0.0.1"
            admin = f"http://{fleet.places['a'].admin}"
            for path in ("/quitquitquit", "/runtime_modify?a=b", "/reset_counters", "/logging?level=debug", "/"):
                for method in ("GET", "POST"):
                    assert (await fleet.client.request(method, admin + path)).status_code == 403, path
            assert (await fleet.client.get(f"{admin}/stats/prometheus")).status_code == 200
            assert (await fleet.client.get(fleet.url("a", "/readyz"))).status_code == 200

            assert (await fleet.client.post(f"{admin}/healthcheck/fail")).status_code == 200
            assert (await fleet.client.get(fleet.url("a", "/readyz"))).status_code == 503

    asyncio.run(scenario())
