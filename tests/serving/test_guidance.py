"""A model that is told its guidance scale says so in the API's description and to the page."""

from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from pipeline.serve.manifest import ModelInfo
from serving.marks import Marker
from serving.openapi import describe_api
from serving.page import page
from serving.settings import Settings


def host(controls=(), limits=None):
    info = ModelInfo(
        teacher="tiny", family="i2vgen-xl", steps=8, passes=8, guidance_scale=2.0, image_guidance_scale=1.5,
        guidance_distilled=True, runtime="eager", precision="float32", frames=4, least_frames=2, most_frames=4,
        height=32, width=32, fps=8, controls=controls, guidance_range=limits,
    )  # fmt: skip
    engine = SimpleNamespace(info=info, name="animator:1")
    return SimpleNamespace(settings=Settings(), loaded=True, engine=engine, marker=Marker())


GUIDED = host(("guidance_scale",), (1.0, 4.0))


@pytest.mark.parametrize("path", ["/animate", "/animate/stream"])
def test_the_description_has_the_field_with_its_limits_where_the_model_has_the_control(path):
    def fields(server):
        content = describe_api(server)["paths"][path]["post"]["requestBody"]["content"]
        return content["multipart/form-data"]["schema"]["properties"]

    found = fields(GUIDED)["guidance_scale"]
    assert (found["type"], found["minimum"], found["maximum"], found["default"]) == ("number", 1.0, 4.0, 2.0)
    assert "guidance_scale" not in fields(host())


def test_the_page_learns_of_the_control():
    def fields(server):
        return {one["name"]: one for one in TestClient(page(server)).get("/model.json").json()["fields"]}

    found = fields(GUIDED)["guidance_scale"]
    assert (found["kind"], found["least"], found["most"], found["default"]) == ("number", 1.0, 4.0, 2.0)
    assert "guidance_scale" not in fields(host())
