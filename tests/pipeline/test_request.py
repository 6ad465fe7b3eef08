"""What a request may hold follows from the model's manifest, for every way in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.model.controls import KNOWN_CONTROLS, Control
from pipeline.model.families import all_families
from pipeline.serve.manifest import ModelInfo
from pipeline.serve.request import ALL_FIELDS, AnimationRequest, check, fields_of, names

WAN = ModelInfo(
    teacher="small", family="wan", steps=8, evaluations=8, passes=16, guidance_scale=5.0, image_guidance_scale=None,
    guidance_distilled=False, runtime="eager", precision={"default": "bfloat16", "vae": "float32"}, frames=81,
    least_frames=5, most_frames=81, frame_step=4, sizes=((480, 832), (832, 480), (624, 624)), fps=16, most_steps=100,
    controls={"guidance_scale": Control(1, 30, 5.0)}, takes_negative_prompt=True, takes_last_image=True,
)  # fmt: skip
SVD = WAN.changed(family="svd", takes_prompt=False, takes_negative_prompt=False, takes_last_image=False, frame_step=1)


@pytest.mark.parametrize(
    ("picture", "size"),
    [((1920, 1080), (480, 832)), ((1080, 1920), (832, 480)), ((500, 500), (624, 624)), ((9000, 10), (480, 832))],
)
def test_a_picture_takes_the_size_that_is_nearest_to_its_shape(picture, size):
    assert WAN.size_for(*picture) == size


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_a_picture_that_is_turned_takes_the_size_that_is_turned(width, height):
    one, other = WAN.size_for(width, height), WAN.size_for(height, width)
    assert one == other[::-1] or width == height


REFUSED = {
    "a length between two that there are": ({"frames": 10}, "frames", "10 is not 4 * n + 1; near are 9 and 13"),
    "a length above": ({"frames": 85}, "frames", "85 is outside 5 to 81"),
    "a size that there is not": ({"size": "100x100"}, "size", "100x100 is not one of 832x480, 480x832, 624x624"),
    "too many steps": ({"steps": 101}, "steps", "101 is outside 1 to 100"),
    "a seed below": ({"seed": -1}, "seed", "-1 is outside 0 to 4294967295"),
    "a control of another family": ({"controls": {"motion_scale": 1}}, "motion_scale", "has no such control"),
    "a control that is NaN": (
        {"controls": {"guidance_scale": float("nan")}},
        "guidance_scale",
        "nan is outside 1 to 30",
    ),
}


@pytest.mark.parametrize(("arguments", "field", "text"), REFUSED.values(), ids=REFUSED)
def test_what_a_model_cannot_do_is_refused_with_field_and_limit(arguments, field, text):
    with pytest.raises(InputError) as caught:
        check(AnimationRequest("a ball", **arguments), WAN, "small")
    assert caught.value.field == field
    assert text in caught.value.message


def test_a_request_that_fits_is_taken():
    fits = AnimationRequest("up", 1, 9, 8, "blue", "480x832", 4, {"guidance_scale": 2})
    check(fits, WAN, "small", last_image=True)
    check(AnimationRequest(), SVD, "small")


@pytest.mark.parametrize(
    ("request_", "last", "field"),
    [(AnimationRequest("up"), False, "prompt"), (AnimationRequest(), True, "last_image")],
)
def test_a_model_of_pictures_alone_says_so(request_, last, field):
    with pytest.raises(InputError, match=rf"^{field}: small ") as caught:
        check(request_, SVD, "small", last_image=last)
    assert caught.value.code == "not_supported"


def test_a_model_between_two_pictures_wants_the_last():
    with pytest.raises(InputError, match=r"^last_image: small makes clips between two pictures"):
        check(AnimationRequest("up"), WAN.changed(needs_last_image=True), "small")


def test_fields_carry_the_models_limits():
    found = {one.name: one for one in fields_of(WAN)}
    frames, size, scale = found["frames"], found["size"], found["guidance_scale"]
    assert (frames.least, frames.most, frames.step, frames.default) == (5, 81, 4, 81)
    assert size.choices == ("832x480", "480x832", "624x624")
    assert (scale.kind, scale.least, scale.most, scale.default) == ("number", 1, 30, 5.0)
    assert {"prompt", "negative_prompt", "last_image"} <= found.keys()
    assert not {"prompt", "negative_prompt", "last_image"} & {one.name for one in fields_of(SVD)}


def test_a_form_may_ask_for_the_controls_of_every_family():
    """They are listed where nothing slow is imported: by hand."""
    assert set(KNOWN_CONTROLS) == {name for family in all_families() for name in family.controls}
    assert set(KNOWN_CONTROLS) <= set(names(ALL_FIELDS))
