"""Settings and the command line: what is wrong is named on one line."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from jobs.errors import SettingsError
from jobs.settings import read_settings

from .conftest import ROOT, SECRET

UP = {"upstream": "http://127.0.0.1:3000/"}


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path):
    file = tmp_path / "jobs.yaml"
    file.write_text("upstream: http://file:1\nport: 1\nmost_queued: 5\nmodels: [a, b]\n")
    environment = {"STILLMOTION_JOBS_PORT": "2", "STILLMOTION_JOBS_UPSTREAM": "http://env:1", "STILLMOTION_JOBS_X": "y"}
    settings = read_settings(file, environment, {"port": 3, "upstream": None})
    assert (settings.port, settings.upstream) == (3, "http://env:1")
    assert (settings.most_queued, settings.models) == (5, ("a", "b"))


def test_a_list_in_the_environment_is_separated_by_commas():
    settings = read_settings(None, {"STILLMOTION_JOBS_FETCH_HOSTS": "a.org, b.org"}, UP)
    assert settings.fetch_hosts == ("a.org", "b.org")
    assert settings.upstream == "http://127.0.0.1:3000"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"upstream": "ftp://x"}, "upstream: "),
        ({"port": 70000}, "port: "),
        ({"host": "::"}, ":: can be reached by others: list keys"),
        ({"webhook_secret": "hush"}, "webhook_secret: not whsec_"),
        ({"keys": [{"name": "a", "sha256": "x"}]}, "keys.0.sha256: "),
        ({"keys": [{"name": "a", "sha256": "0" * 64}, {"name": "a", "sha256": "1" * 64}]}, "the same name"),
        ({"files": "gs://bucket"}, "files: "),
        ({"files": "s3:///prefix"}, "files: "),
        ({"most_queue": 3}, "most_queue: "),
        ({"lease_s": "soon"}, "lease_s: "),
        ({"expires_s": float("inf")}, "expires_s: Input should be less than or equal to 315360000"),
        ({"upstream": "http://[bad"}, "upstream: not an address"),
        ({"control": "http://:80"}, "control: not an address"),
        ({"database": "sqlite:////srv/jobs.sqlite3"}, "database: not postgresql://"),
    ],
)
def test_a_setting_that_is_wrong_is_named(values, words):
    with pytest.raises(SettingsError, match=r".") as raised:
        read_settings(None, {}, UP | values)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_service_that_others_reach_needs_keys_or_a_word():
    assert read_settings(None, {}, UP | {"host": "0.0.0.0", "open": True}).open  # noqa: S104
    key = {"name": "a", "sha256": "0" * 64, "webhook_secret": SECRET}
    assert read_settings(None, {}, UP | {"host": "0.0.0.0", "keys": [key]}).secret_of("a") == SECRET  # noqa: S104


@pytest.mark.parametrize("text", ["a: [", "- a", "\x00"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, text):
    file = tmp_path / "jobs.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=r"jobs\.yaml"):
        read_settings(file, {}, UP)


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "jobs", *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=100
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve"], "upstream: Field required"),
        (["serve", "--upstream", "http://127.0.0.1:1", "--host", "192.0.2.1"], "can be reached by others"),
        (["serve", "--upstream", "http://127.0.0.1:1", "--data", "/dev/null/x"], "data: /dev/null/x cannot be written"),
        (["key", "two words"], "name: 'two words' is not 1 to 64 letters"),
    ],
)
def test_a_command_that_cannot_do_it_says_why_on_one_line(arguments, words):
    done = run(*arguments)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_key_and_a_secret_are_made():
    from jobs.settings import Settings

    made = run("key", "web")
    secret = run("secret").stdout.strip()
    key, _, settings = made.stdout.partition("\n\n")
    known = Settings(upstream="http://x", webhook_secret=secret, **yaml.safe_load(settings))
    assert known.key_of(key).name == "web"
    assert known.key_of("other") is None
    assert known.key_of("\udcff") is None


def test_the_network_on_kubernetes_lets_the_service_reach_all_that_its_settings_name():
    text = (ROOT / "deploy" / "kubernetes" / "base" / "jobs" / "jobs.yaml").read_text()
    policies = {one["metadata"]["name"]: one["spec"] for one in yaml.safe_load_all(text) if "Policy" in one["kind"]}
    ports = {port["port"] for rule in policies["jobs"]["egress"] for port in rule["ports"]}
    assert ports >= {53, 443, 5432, 8443, 9900}, "names, webhooks and the bucket, database, edge, control loop"
    # Kustomize writes the component's name into each selector of labels: another component is named by an expression.
    (there,) = [to for rule in policies["jobs"]["egress"] for to in rule.get("to", ()) if "podSelector" in to]
    control = [{"key": "app.kubernetes.io/component", "operator": "In", "values": ["control"]}]
    assert there["podSelector"] == policies["jobs-reach-control"]["podSelector"] == {"matchExpressions": control}
