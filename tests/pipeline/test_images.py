"""Pictures of every kind that people send, and things that are none."""

from __future__ import annotations

import io
import resource
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import InputError
from pipeline.media.images import PictureLimits, centre_crop, check_header, decode, to_tensor

FORMATS = ["PNG", "JPEG", "WEBP"]


def gradient(width=48, height=32):
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


def file_of(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def far(one, other):
    return float(np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean())


def refusal_of(data, **limits):
    with pytest.raises(InputError) as caught:
        decode(data, PictureLimits(**limits))
    error = caught.value
    assert error.field == "image"
    assert 400 <= error.status < 500
    assert "\n" not in str(error)
    return error


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_picture_comes_back_as_it_was(file_format):
    decoded = decode(file_of(gradient(), file_format))
    assert decoded.mode == "RGB"
    assert decoded.size == (48, 32)
    assert far(decoded, gradient()) < (1 if file_format == "PNG" else 6)


def test_a_file_is_read_as_its_bytes_are(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(file_of(gradient()))
    assert far(decode(path), gradient()) == 0
    assert check_header(path) == (48, 32)


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_picture_is_called_damaged(file_format, share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = file_of(noise, file_format)
    assert refusal_of(data[: int(len(data) * share)]).code in {"damaged", "not_an_image"}


def test_a_picture_cut_off_within_its_header_is_refused():
    data = file_of(gradient())
    for length in range(1, 40):
        assert refusal_of(data[:length]).code in {"damaged", "not_an_image"}


def test_a_damaged_checksum_is_refused():
    data = bytearray(file_of(gradient()))
    data[len(data) // 2] ^= 0xFF
    assert refusal_of(bytes(data)).code == "damaged"


def huge_png(width, height, rows=None):
    """A picture of one bit a pixel, all black: some tens of kilobytes for hundreds of millions of pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = zlib.compress(bytes((width // 8 + 1) * (height if rows is None else rows)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_twenty_thousand_pixels_squared_are_refused_by_the_header_alone():
    error = refusal_of(huge_png(20_000, 20_000, rows=1))  # whose pixels would be called damaged
    assert error.code == "too_many_pixels"
    assert "limit of 50000000 pixels" in error.message


@pytest.mark.parametrize(("width", "height"), [(20_000, 8), (8, 20_000), (9_000, 9_000)])
def test_any_side_or_area_over_the_limit_is_refused(width, height):
    data = (
        huge_png(width, height)
        if width * height < 10**9
        else huge_png(8, 8).replace(struct.pack(">II", 8, 8), struct.pack(">II", width, height))
    )
    with pytest.raises(InputError) as caught:
        check_header(data)
    assert caught.value.code in {"too_many_pixels", "not_an_image"}
    assert caught.value.status < 500


def test_a_large_picture_within_the_limits_is_read():
    data = huge_png(7_000, 7_000)
    assert decode(data).size == (7_000, 7_000)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "CMYK"])
def test_a_picture_larger_than_any_use_is_shrunk_to_a_good_size(mode):
    file_format = "JPEG" if mode == "CMYK" else "PNG"
    picture = gradient().resize((4_500, 4_100)).convert(mode)
    decoded = decode(file_of(picture, file_format))
    assert decoded.mode == "RGB"
    assert 2_048 <= min(decoded.size) < 4_100
    assert far(decoded.resize((48, 32)), picture.resize((48, 32)).convert("RGB")) < 3


def test_a_file_over_the_limit_of_bytes_is_refused_before_it_is_looked_at():
    error = refusal_of(file_of(gradient()), max_bytes=100)
    assert (error.code, error.status) == ("too_large", 413)
    assert "100 bytes" in error.message


@pytest.mark.parametrize("size", [(1, 1), (7, 100), (100, 7)])
def test_a_picture_too_small_to_animate_is_refused_with_the_limit(size):
    error = refusal_of(file_of(Image.new("RGB", size)))
    assert error.code == "too_small"
    assert f"{size[0]}x{size[1]}" in error.message
    assert "8 pixels" in error.message


@pytest.mark.parametrize(
    "data",
    [
        b"hello, this is text and no picture",
        b"\x00" * 1000,
        b"%PDF-1.7\n" + b"x" * 100,
        b"<svg xmlns='http://www.w3.org/2000/svg' width='10' height='10'/>",
        b"http://localhost/picture.png",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"RIFF\x00\x00\x00\x00WEBPVP8 ",
    ],
)
def test_what_is_no_picture_is_refused_with_the_formats_that_are(data):
    error = refusal_of(data)
    assert (error.code, error.status) == ("not_an_image", 415)
    assert all(name in error.message for name in FORMATS)


@pytest.mark.parametrize("file_format", ["GIF", "BMP", "TIFF", "ICO", "PPM"])
def test_other_formats_are_refused(file_format):
    assert refusal_of(file_of(gradient(), file_format)).status == 415


def test_an_empty_file_is_called_empty():
    assert refusal_of(b"").code == "empty"


def test_an_animated_gif_is_refused():
    data = file_of(gradient(), "GIF", save_all=True, append_images=[Image.new("RGB", (48, 32))], duration=100)
    assert refusal_of(data).status == 415


@pytest.mark.parametrize("file_format", ["WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(file_format):
    white = Image.new("RGB", (48, 32), "white")
    data = file_of(gradient(), file_format, save_all=True, append_images=[white], duration=100)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert far(decode(data), gradient()) < 8


@pytest.mark.parametrize("colours", [2, 16, 256])
def test_palettes_give_their_colours(colours):
    palette = gradient().quantize(colours)
    decoded = decode(file_of(palette))
    assert decoded.mode == "RGB"
    assert far(decoded, palette.convert("RGB")) == 0


def test_a_palette_with_a_transparent_colour_stands_on_white():
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.paste(1, (0, 0, 8, 16))
    decoded = decode(file_of(palette, transparency=0))
    assert decoded.getpixel((2, 2)) == (0, 0, 255)
    assert decoded.getpixel((12, 2)) == (255, 255, 255)


def test_transparency_stands_on_white():
    decoded = decode(file_of(Image.new("RGBA", (16, 16), (200, 0, 0, 128))))
    assert np.allclose(decoded.getpixel((4, 4)), (227, 127, 127), atol=2)
    assert decode(file_of(Image.new("LA", (16, 16), (0, 0)))).getpixel((0, 0)) == (255, 255, 255)


def test_cmyk_gives_the_colours_that_were_meant():
    red = Image.new("RGB", (16, 16), (220, 30, 20))
    decoded = decode(file_of(red.convert("CMYK"), "JPEG", quality=95))
    assert decoded.mode == "RGB"
    assert far(decoded, red) < 8


@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey_and_black_and_white_give_grey(mode):
    picture = gradient().convert(mode)
    assert far(decode(file_of(picture)), picture.convert("RGB")) == 0


def test_sixteen_bits_are_scaled_to_eight_and_not_clipped():
    values = np.linspace(0, 65535, 64 * 32).reshape(32, 64).astype(np.uint16)
    decoded = np.asarray(decode(file_of(Image.fromarray(values))))
    assert decoded.shape == (32, 64, 3)
    assert np.abs(decoded[..., 0] - values / 257).max() < 1.5


def test_a_dark_picture_of_sixteen_bits_stays_dark():
    values = np.full((16, 16), 200, dtype=np.uint16)  # of 65535
    assert np.asarray(decode(file_of(Image.fromarray(values)))).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", FORMATS)
def test_a_picture_is_turned_as_its_camera_was_held(file_format, orientation):
    upright = Image.new("RGB", (48, 32), "white")
    upright.paste((255, 0, 0), (0, 0, 24, 16))  # top left
    # What the camera stored, so that the tag brings it upright again.
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(file_of(stored, file_format, exif=exif))
    assert decoded.size == (48, 32)
    assert far(decoded, upright) < 5


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_a_huge_picture_is_turned_too(file_format):
    exif = Image.Exif()
    exif[0x0112] = 6
    width, height = decode(file_of(Image.new("RGB", (4_600, 4_200)), file_format, exif=exif)).size
    assert width < height


def test_a_huge_jpeg_is_decoded_small():
    decoded = decode(file_of(Image.new("RGB", (4_800, 4_400), (10, 200, 30)), "JPEG"))
    assert max(decoded.size) < 4_800
    assert far(decoded.resize((4, 4)), Image.new("RGB", (4, 4), (10, 200, 30))) < 4


def is_picture_or_refused(data):
    try:
        return decode(data, PictureLimits(max_pixels=10**6)).mode == "RGB"
    except InputError as error:
        return error.field == "image" and 400 <= error.status < 500


@given(st.binary(max_size=400))
def test_any_bytes_are_a_picture_or_refused(data):
    assert is_picture_or_refused(data)


@given(st.sampled_from(FORMATS), st.data())
def test_a_picture_with_any_bytes_changed_is_a_picture_or_refused(file_format, data):
    content = bytearray(file_of(gradient(), file_format))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    assert is_picture_or_refused(bytes(content))


@given(
    size=st.tuples(st.integers(8, 300), st.integers(8, 300)),
    target=st.tuples(st.integers(8, 200), st.integers(8, 200)),
)
def test_a_crop_has_the_size_asked_for_and_no_edge(size, target):
    cropped = centre_crop(Image.new("RGB", size, (250, 120, 60)), *target)
    assert cropped.size == target
    # A crop that reached outside of the picture would be black there.
    assert cropped.getextrema() == ((250, 250), (120, 120), (60, 60))


@given(size=st.tuples(st.integers(8, 200), st.integers(8, 200)))
def test_a_crop_keeps_the_centre(size):
    picture = Image.new("RGB", size, "white")
    left, top = size[0] // 2, size[1] // 2
    picture.paste((0, 0, 0), (left - 1, top - 1, left + 1, top + 1))
    cropped = np.asarray(centre_crop(picture, 64, 64).convert("L"), dtype=float)
    weight = 255 - cropped
    if weight.sum() > 0:
        rows, columns = np.mgrid[0:64, 0:64]
        assert abs((weight * columns).sum() / weight.sum() - 31.5) < 6
        assert abs((weight * rows).sum() / weight.sum() - 31.5) < 6


@pytest.mark.parametrize("size", [(16_000, 8), (8, 16_000)])
def test_a_ribbon_is_cropped_without_being_scaled_up_as_a_whole(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert centre_crop(Image.new("RGB", size, "red"), 1280, 704).getextrema() == ((255, 255), (0, 0), (0, 0))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB; as a whole it takes 3 GB


@given(st.integers(0, 2**31))
def test_a_tensor_holds_the_pixels_between_minus_one_and_one(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    tensor = to_tensor(Image.fromarray(pixels))
    assert tuple(tensor.shape) == (1, 3, 5, 7)
    assert tensor.dtype == torch.float32
    back = ((tensor[0].permute(1, 2, 0) + 1) * 127.5).round().numpy().astype(np.uint8)
    assert np.array_equal(back, pixels)
