"""The examples of docs/jobs.md do what the page says, and its gallery of errors has all there are."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jobs.settings import Settings, read_settings

from ..docs.pages import ROOT, blocks
from .conftest import SECRET

PAGE = ROOT / "docs" / "jobs.md"
BASE = "http://127.0.0.1:8080"
CLIENTS = [block for block in blocks(PAGE) if block.note and "jobs serve" not in block.text]


@pytest.mark.parametrize("block", CLIENTS, ids=lambda block: f"{block.language} at {block.line}")
def test_an_example_gets_its_video(block, stand_in, service, tmp_path):
    if block.text.startswith("node") and shutil.which("node") is None:
        pytest.skip("no node here")
    client = service(stand_in().url)
    for name in ("assets", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    text = block.text.replace(BASE, client.url)
    command = [sys.executable, "-c", text] if block.language == "python" else ["bash", "-euc", text]
    environment = {
        **os.environ,
        "STILLMOTION_API": f"{client.url}/v1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    if "receive(" not in text:
        assert (tmp_path / "clip.mp4").read_bytes() == b"video of a red circle moves up"


def test_the_receiver_of_webhooks_takes_what_is_signed(stand_in, service):
    from .conftest import until
    from .receiver import Receiver

    (block,) = [one for one in CLIENTS if "receive(" in one.text]
    with Receiver() as receiver:
        client = service(stand_in().url, private_addresses=True)
        client.submit(webhook_url=receiver.url)
        headers, body = until(receiver.first, "it has come")
    names = {}
    exec(block.text, names)  # noqa: S102  # the page's own example
    names["receive"](body, headers, SECRET)


def test_the_gallery_of_errors_has_every_code_and_no_other():
    source = "".join(path.read_text() for path in (ROOT / "jobs").glob("*.py"))
    raised = set(re.findall(r'(?:bad\(\s*[\w".]+|ApiError\(\s*\d+),\s*"([a-z_]+)"', source))
    raised |= set(re.findall(r'bad\(\s*(?:"[\w-]+"|name(?:\[:64\])?|outer\[:64\]|None),\s*"([a-z_]+)"', source))
    gallery = PAGE.read_text().partition("## Errors")[2].partition("\n\nA job that failed")[0]
    told = set(re.findall(r"`([a-z_]+)`", "".join(line.split("|")[2] for line in gallery.splitlines() if "|" in line)))
    assert raised - told == set()
    assert told - raised == set()


def test_settings_of_the_page_are_those_of_the_program():
    table = PAGE.read_text().partition("| setting |")[2].partition("\n\n")[0]
    told = {name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert told == set(Settings.model_fields) - {"open"}


def test_the_example_of_settings_is_read():
    settings = read_settings(ROOT / "docs" / "examples" / "jobs" / "jobs.yaml", {}, {})
    assert settings.key_of("sk-example-web").name == "web"
    for block in blocks(PAGE):
        if block.language == "yaml":
            found = yaml.safe_load(block.text.replace("1f0c...", hashlib.sha256(b"x").hexdigest()))
            assert Settings.model_validate(json.loads(json.dumps(found))).keys
