"""The form's parser, by itself."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.model.controls import Control
from pipeline.serve.manifest import ModelInfo
from pipeline.serve.request import ALL_FIELDS, names
from serving.form import parse
from serving.settings import Settings

SETTINGS = Settings()
INFO = ModelInfo(
    teacher="tiny", family="wan", steps=8, evaluations=8, passes=16, guidance_scale=5.0, image_guidance_scale=None,
    guidance_distilled=False, runtime="eager", precision={"default": "float32"}, frames=9, least_frames=5,
    most_frames=9, frame_step=4, sizes=((32, 64), (64, 32)), fps=8, most_steps=20,
    controls={"guidance_scale": Control(1, 30, 5.0)}, takes_negative_prompt=True, takes_last_image=True,
)  # fmt: skip
TYPE = "multipart/form-data; boundary=x"


def part(name, data, filename=None):
    extra = "" if filename is None else f'; filename="{filename}"'
    return f'--x\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + data + b"\r\n"


def test_a_form_becomes_a_request(make):
    image = make.picture()
    body = part("image", image, "a.png") + part("prompt", b" hi ") + part("seed", b"5") + part("format", b"GIF")
    form = parse(body + b"--x--", TYPE, SETTINGS, INFO)
    assert form.image == image
    assert (form.request.prompt, form.request.seed, form.request.frames, form.format) == ("hi", 5, None, "gif")


def test_fields_as_bentoml_s_clients_send_them_are_understood(make):
    body = part("image", make.picture(), "a.png") + part("prompt", b'"hi"') + part("seed", b"null")
    form = parse(body + part("format", b'"webm"') + b"--x--\r\n", TYPE, SETTINGS, INFO)
    assert (form.request.prompt, form.request.seed, form.format) == ("hi", None, "webm")


@pytest.mark.parametrize(
    ("text", "scale"), [(b"2.5", 2.5), (b"3", 3.0), (b"1e1", 10.0), (b"null", None), (b'"4.0"', 4.0)]
)
def test_a_guidance_scale_is_a_number(make, text, scale):
    body = part("image", make.picture(), "a.png") + part("prompt", b"hi") + part("guidance_scale", text)
    assert parse(body + b"--x--", TYPE, SETTINGS, INFO).request.controls.get("guidance_scale") == scale


@pytest.mark.parametrize("text", [b"NaN", b"inf", b"much", b"1,5", b".", b"0x10", b"9" * 1000])
def test_a_guidance_scale_that_is_no_number_is_refused(make, text):
    body = part("image", make.picture(), "a.png") + part("prompt", b"hi") + part("guidance_scale", text)
    with pytest.raises(InputError) as caught:
        parse(body + b"--x--", TYPE, SETTINGS, INFO)
    assert (caught.value.field, caught.value.code) == ("guidance_scale", "not_a_number")


def test_a_picture_without_a_file_name_is_taken_and_an_address_is_not(make):
    rest = part("prompt", b"hi") + b"--x--\r\n"
    assert parse(part("image", make.picture()) + rest, TYPE, SETTINGS, INFO).image
    with pytest.raises(InputError) as caught:
        parse(part("image", b"https://example.org/a.png") + rest, TYPE, SETTINGS, INFO)
    assert caught.value.code == "not_a_file"


@given(st.binary(max_size=300))
@example(b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n"\\ud800"\r\n--x--\r\n')
def test_no_body_makes_the_parser_fail_in_another_way(body):
    with pytest.raises(InputError):
        parse(body, TYPE, SETTINGS, INFO)


@given(st.lists(st.tuples(st.sampled_from([*names(ALL_FIELDS), "other", ""]), st.binary(max_size=40)), max_size=8))
def test_no_fields_make_the_parser_fail_in_another_way(fields):
    body = b"".join(part(name, data.replace(b"--x", b"")) for name, data in fields) + b"--x--\r\n"
    with pytest.raises(InputError) as caught:
        parse(body, TYPE, SETTINGS, INFO)
    assert 400 <= caught.value.status < 500


@given(st.text(st.characters(codec="latin-1"), max_size=60))
def test_no_content_type_makes_the_parser_fail_in_another_way(content_type):
    with pytest.raises(InputError):
        parse(b"--x--\r\n", content_type, SETTINGS, INFO)
