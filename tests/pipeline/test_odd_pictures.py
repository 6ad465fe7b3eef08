"""Pictures as phones, cameras and AI programs save them, from the corpus in `odd_pictures`."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.media.images import check_header, decode

from . import odd_pictures as odd


@pytest.mark.parametrize("name", odd.LIKE_THE_CHART)
def test_an_odd_picture_shows_the_colours_that_a_browser_shows(name):
    data = odd.LIKE_THE_CHART[name]()
    decoded = decode(data)
    assert decoded.size == odd.chart().size
    assert np.abs(odd.shown(decoded) - odd.COLOURS).max() <= 3, odd.shown(decoded)
    assert sorted(check_header(data)) == sorted(odd.chart().size)


@pytest.mark.parametrize("name", odd.LIKE_THE_GREY_CHART)
def test_an_odd_grey_picture_shows_the_grey_that_was_meant(name):
    meant = np.asarray(odd.COLOURS)[:, :1]
    assert np.abs(odd.shown(decode(odd.LIKE_THE_GREY_CHART[name]())) - meant).max() <= 3


def test_a_wide_profile_that_was_ignored_would_be_seen():
    """The corpus is worth something: without its profile the picture differs by far more than the tolerance."""
    assert np.abs(odd.shown(odd.in_p3()) - odd.COLOURS).max() > 15
    assert np.abs(odd.shown(odd.in_adobe_rgb()) - odd.COLOURS).max() > 15


def test_colours_that_srgb_lacks_become_its_nearest():
    pure = Image.new("RGB", (16, 16), (0, 255, 0))
    assert decode(odd.file_of(pure, icc_profile=odd.P3)).getpixel((4, 4)) == (0, 255, 0)


def test_what_is_saved_of_a_decoded_picture_claims_no_profile_of_its_source():
    data = odd.file_of(odd.in_p3(), "JPEG", icc_profile=odd.P3, exif=odd.exif())
    again = odd.file_of(decode(data))
    assert not Image.open(io.BytesIO(again)).info.keys() & {"icc_profile", "exif"}


def test_a_file_on_disk_is_read_as_its_bytes_are(tmp_path):
    odd.write(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        assert np.array_equal(np.asarray(decode(path)), np.asarray(decode(path.read_bytes())))
