"""A fleet's overlays, as an operator makes them, and what kustomize makes of them."""

from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from routing.cli import main
from routing.errors import RoutingError
from routing.proxies import Programs

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples" / "kubernetes"
BASE = ROOT / "deploy" / "kubernetes" / "base"
REGIONS = ("us-east", "eu-west", "sa-east")
VERSIONS = ("1.30", "1.37")
"""The oldest that `preStop.sleep` is there without a switch, and the newest that the schemas know."""


@pytest.fixture(scope="session")
def check(custom_resources):
    """`check(manifest)`: it is as the schema of its kind has it, down to the last field."""

    def check_one(manifest):
        if (known := custom_resources.get(manifest["kind"])) is not None:
            errors = [f"{'.'.join(map(str, one.path))}: {one.message}" for one in known.iter_errors(manifest)]
            assert not errors, errors
            return
        for version in VERSIONS:
            kubernetes_validate.validate(manifest, version, strict=True)

    return check_one


@pytest.fixture(scope="session")
def kustomize():
    """`kustomize(folder)`: the resources that an overlay or a base makes."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here: overlays cannot be put together")

    def build(folder):
        done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return list(yaml.safe_load_all(done.stdout))

    return build


def make_secrets(folder):
    """Certificates and keys where the example fleet says that they are."""
    (folder / "certificates").mkdir(exist_ok=True)
    pem = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
    for name in ("edge.pem", "edge.key", "ca.pem", "peer.pem", "peer.key"):
        (folder / "certificates" / name).write_text(pem)
    (folder / "keys.yaml").write_text("one: 0123456789abcdef\n")


class Operator:
    """Someone with the example files in a folder.

    Attributes:
        folder: of them.
        fleet, settings: their content; `render` writes it.
    """

    def __init__(self, folder) -> None:
        self.folder, self.out = folder, folder / "overlays"
        self.fleet = yaml.safe_load((EXAMPLES / "fleet.yaml").read_text())
        self.settings = yaml.safe_load((EXAMPLES / "kubernetes.yaml").read_text())
        make_secrets(folder)

    def render(self, *more) -> int:
        """Status of the command."""
        (self.folder / "fleet.yaml").write_text(yaml.safe_dump(self.fleet))
        (self.folder / "kubernetes.yaml").write_text(yaml.safe_dump(self.settings))
        files = ("--fleet", str(self.folder / "fleet.yaml"), "--settings", str(self.folder / "kubernetes.yaml"))
        where = ("--out", str(self.out), "--base", str(BASE))
        return main(["render", "--target", "kubernetes", *files, *where, *more])


@pytest.fixture
def operator(tmp_path):
    """See `Operator`."""
    return Operator(tmp_path)


@pytest.fixture(scope="session")
def overlays(tmp_path_factory, kustomize):
    """Resources of the example fleet, by region."""
    one = Operator(tmp_path_factory.mktemp("operator"))
    assert one.render() == 0
    return {name: kustomize(one.out / name) for name in REGIONS}


@pytest.fixture(scope="session")
def programs():
    """Envoy and HAProxy."""
    try:
        return Programs.find()
    except RoutingError as error:
        pytest.skip(str(error))


class Certificates:
    """A certificate that Envoy can read, in place of those that pods have mounted."""

    def __init__(self, folder) -> None:
        self.folder = folder
        if shutil.which("openssl") is None:
            pytest.skip("no openssl here: there is no certificate to try")
        files = ["-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt")]
        command = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=test",
            *files,
        ]
        subprocess.run(command, check=True, capture_output=True)
        shutil.copy(folder / "tls.crt", folder / "ca.crt")

    def placed(self, text):
        """The text of a file, with the certificate's folder."""
        return text.replace("/etc/stillmotion/tls", str(self.folder)).replace(
            "/etc/stillmotion/peers", str(self.folder)
        )

    @staticmethod
    def decoded(secret):
        """Files of a Secret."""
        return {name: base64.b64decode(data).decode() for name, data in secret["data"].items()}


@pytest.fixture(scope="session")
def real_certificates(tmp_path_factory):
    """See `Certificates`."""
    return Certificates(tmp_path_factory.mktemp("certificates"))
