"""The API's description holds: what schemathesis makes of it never breaks the server, nor the description."""

import os
import subprocess
import sys

import pytest

# The other checks ask for what a description cannot say, such as which bytes are a picture.
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,unsupported_method"
)


def test_the_description_names_every_status_and_field(server):
    api = server.get("/docs.json").json()
    for path in ("/animate", "/animate/stream"):
        operation = api["paths"][path]["post"]
        assert set(operation["responses"]) == {"200", "400", "408", "413", "415", "429", "500", "503", "504"}
        schema = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
        fields = {"image", "prompt", "negative_prompt", "seed", "frames", "fps", "steps", "guidance_scale", "format"}
        assert set(schema["properties"]) == fields
        assert schema["properties"]["frames"]["maximum"] == 4


@pytest.mark.parametrize(
    ("examples", "limit_s"),
    [("15", 840), pytest.param("200", 3000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])],
)
def test_generated_requests_find_no_server_error_and_nothing_that_the_description_does_not_say(
    server, tmp_path, examples, limit_s
):
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/docs.json", "--url", server.url,
        "--checks", CHECKS, "--max-examples", examples, "--phases", "examples,coverage,fuzzing", "--seed", "1",
        "--request-timeout", "120", "--no-color", "--workers", "1",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONUTF8": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=limit_s
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert server.animate().status_code == 200
