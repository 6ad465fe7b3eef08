"""Generated clips are what their captions say, and held-out ones stay out of training."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clips import (
    COLOURS,
    MOTIONS,
    SHAPES,
    ClipGenerator,
    caption_of,
    classify_motion,
    is_held_out,
    measure_motion,
)
from pipeline.clips.backgrounds import KINDS, random_background
from pipeline.clips.sprites import coverage, odd_polygon
from pipeline.clips.vocabulary import GENERIC_SHAPES
from pipeline.train.text import words_of_captions

COMBINATIONS = list(product(COLOURS, SHAPES, MOTIONS))


def read_back(batch):
    return [
        classify_motion(measure_motion(batch.clips[k], batch.backgrounds[k], batch.colours[k]))
        for k in range(len(batch.specs))
    ]


@pytest.mark.parametrize(
    ("size", "frames", "held_out", "variety"),
    [(64, 8, True, False), (64, 16, False, False), (64, 8, False, True), (32, 8, False, False), (64, 2, False, False)],
)
def test_the_motion_of_a_clip_can_be_read_back_from_it(size, frames, held_out, variety):
    batch = ClipGenerator(size, frames, seed=5, held_out=held_out, variety=variety).batch(200)
    named = [spec.motion for spec in batch.specs]
    assert set(named) == set(MOTIONS)
    # With two frames a jump begins and ends on the ground.
    judged = [k for k, motion in enumerate(named) if frames > 2 or motion != "jumps"]
    read = read_back(batch)
    wrong = [(named[k], read[k], batch.specs[k]) for k in judged if read[k] != named[k]]
    assert len(wrong) <= 0.005 * len(judged), wrong


def test_words_drawn_often_come_three_times_as_often():
    source = ClipGenerator(16, 2, seed=3, often=("star", "grows"))
    specs = [source.spec() for _ in range(2000)]
    for share, of in ((sum(s.shape == "star" for s in specs) / 2000, len(SHAPES)),
                      (sum(s.motion == "grows" for s in specs) / 2000, len(MOTIONS))):  # fmt: skip
        assert abs(share - 3 / (of + 2)) < 0.04
    with pytest.raises(ValueError, match="often: 'comet' is neither a shape nor a motion"):
        ClipGenerator(16, 2, often=("comet",))


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_clip_played_backwards_is_read_as_the_opposite(motion):
    opposite = {
        "moves left": "moves right", "moves right": "moves left", "moves up": "moves down",
        "moves down": "moves up", "grows": "shrinks", "shrinks": "grows",
    }  # fmt: skip
    batch = ClipGenerator(64, 8, seed=9).batch(80)
    batch.clips = batch.clips.flip(2)
    read = [r for r, spec in zip(read_back(batch), batch.specs, strict=True) if spec.motion == motion]
    assert len(read) > 2
    assert set(read) == {opposite.get(motion, motion)}


def test_a_copy_without_the_sprite_is_unclear():
    batch = ClipGenerator(64, 8, seed=1).batch(20)
    batch.clips = batch.backgrounds[:, :, None].expand_as(batch.clips)
    assert set(read_back(batch)) == {"unclear"}


def test_a_copy_that_repeats_the_first_frame_stays_still():
    batch = ClipGenerator(64, 8, seed=1).batch(40)
    batch.clips = batch.clips[:, :, :1].expand_as(batch.clips)
    assert set(read_back(batch)) == {"stays still"}


@given(seed=st.integers(0, 2**31), level=st.floats(0, 0.05))
@settings(max_examples=10)
def test_a_little_noise_does_not_change_what_is_read(seed, level):
    batch = ClipGenerator(64, 8, seed=seed).batch(6)
    noise = torch.randn(batch.clips.shape, generator=torch.Generator().manual_seed(seed))
    batch.clips = (batch.clips + level * noise).clamp(0, 1)
    read = read_back(batch)
    assert sum(r != spec.motion for r, spec in zip(read, batch.specs, strict=True)) <= 1


@given(seed=st.integers(0, 2**63 - 1), held_out=st.booleans())
@settings(max_examples=20)
def test_training_and_held_out_clips_share_no_combination(seed, held_out):
    generator = ClipGenerator(16, 2, seed=seed, held_out=held_out)
    for _ in range(30):
        spec = generator.spec()
        assert is_held_out(spec.colour, spec.shape, spec.motion) == held_out


def test_one_combination_in_seven_is_held_out():
    share = sum(is_held_out(*combination) for combination in COMBINATIONS) / len(COMBINATIONS)
    assert share == pytest.approx(1 / 7, abs=0.02)


def test_every_word_and_every_pair_of_words_occurs_in_training_and_every_word_outside_of_it():
    seen = [c for c in COMBINATIONS if not is_held_out(*c)]
    held = [c for c in COMBINATIONS if is_held_out(*c)]
    for words in (seen, held):
        for column, names in enumerate((tuple(COLOURS), SHAPES, MOTIONS)):
            assert {combination[column] for combination in words} == set(names)
    for one, other in combinations(range(3), 2):
        pairs = {(combination[one], combination[other]) for combination in seen}
        assert pairs == {(combination[one], combination[other]) for combination in COMBINATIONS}


@pytest.mark.parametrize("held_out", [False, True])
def test_the_generator_draws_every_colour_shape_and_motion_about_equally(held_out):
    generator = ClipGenerator(16, 2, seed=3, held_out=held_out)
    specs = [generator.spec() for _ in range(1500)]
    for names, drawn in (
        (COLOURS, Counter(s.colour for s in specs)),
        (SHAPES, Counter(s.shape for s in specs)),
        (MOTIONS, Counter(s.motion for s in specs)),
    ):
        assert set(drawn) == set(names)
        assert min(drawn.values()) > 0.5 * len(specs) / len(names)


@given(seed=st.integers(0, 2**63 - 1), held_out=st.booleans(), variety=st.booleans())
@settings(max_examples=10)
def test_a_seed_gives_the_same_clips_each_time(seed, held_out, variety):
    one, other = (ClipGenerator(32, 4, seed=seed, held_out=held_out, variety=variety).batch(3) for _ in range(2))
    assert torch.equal(one.clips, other.clips)
    assert one.captions == other.captions
    assert one.specs == other.specs


def test_clips_do_not_depend_on_the_size_of_the_batches_they_are_drawn_in():
    whole = ClipGenerator(32, 4, seed=2, variety=True).batch(6)
    source = ClipGenerator(32, 4, seed=2, variety=True)
    parts = [source.batch(2) for _ in range(3)]
    assert torch.equal(whole.clips, torch.cat([part.clips for part in parts]))
    assert whole.captions == [caption for part in parts for caption in part.captions]


def test_clips_draw_nothing_from_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    ClipGenerator(32, 4, seed=2, variety=True).batch(4)
    assert torch.equal(before, torch.get_rng_state())


def test_other_seeds_give_other_clips():
    assert not torch.equal(ClipGenerator(32, 4, seed=1).batch(2).clips, ClipGenerator(32, 4, seed=2).batch(2).clips)


@given(seed=st.integers(0, 2**31), size=st.sampled_from([16, 32, 64]), frames=st.integers(2, 9))
@settings(max_examples=15)
def test_a_clip_is_in_range_and_shows_its_sprite_in_every_frame(seed, size, frames):
    batch = ClipGenerator(size, frames, seed=seed).batch(2)
    assert tuple(batch.clips.shape) == (2, 3, frames, size, size)
    assert float(batch.clips.min()) >= 0
    assert float(batch.clips.max()) <= 1
    for k in range(2):
        changed = (batch.clips[k] - batch.backgrounds[k][:, None]).abs().amax(dim=(0, 2, 3))
        assert (changed > 0.1).all()


@given(seed=st.integers(0, 2**31))
@settings(max_examples=25)
def test_the_whole_path_of_a_sprite_lies_within_the_frame(seed):
    generator = ClipGenerator(64, 8, seed=seed)
    for _ in range(5):
        x, y, radius = generator.spec().path(8)
        for centre in (x, y):
            assert float((centre - radius).min()) >= 0
            assert float((centre + radius).max()) <= 1


def test_without_variety_captions_are_plain():
    batch = ClipGenerator(32, 2, seed=0).batch(40)
    assert batch.captions == [caption_of(s.colour, s.shape, s.motion) for s in batch.specs]
    assert caption_of("orange", "star", "grows") == "an orange star grows"
    assert caption_of("red", "circle", "moves right") == "a red circle moves right"


def test_variety_words_captions_differently_and_adds_bystanders_and_nameless_shapes():
    batch = ClipGenerator(32, 2, seed=0, variety=True).batch(300)
    plain = [spec.caption for spec in batch.specs]
    assert 0.1 < sum(a != b for a, b in zip(batch.captions, plain, strict=True)) / len(plain) < 0.6
    text = " ".join(batch.captions)
    assert " and " in text
    assert "the " in text
    assert any(noun in text.split() for noun in GENERIC_SHAPES)
    # Whatever the wording, the motion that is judged is named, and named first.
    assert all(
        spec.motion in caption.split(" and ")[0] for spec, caption in zip(batch.specs, batch.captions, strict=True)
    )


def test_every_word_of_a_caption_is_in_the_vocabulary():
    words = set(words_of_captions())
    for caption in ClipGenerator(32, 2, seed=4, variety=True).batch(200).captions:
        assert set(caption.split()) <= words


@pytest.mark.parametrize(("argument", "value"), [("size", 8), ("frames", 1)])
def test_clips_too_small_to_show_anything_are_refused(argument, value):
    with pytest.raises(ValueError, match=rf"^{argument}: "):
        ClipGenerator(**{argument: value})


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_covers_about_what_its_radius_says_at_any_size(shape):
    def share(size):
        centre = torch.tensor([size / 2])
        return float(coverage(shape, centre, centre, torch.tensor([size / 4]), size).mean())

    assert 0.05 < share(64) < 0.2
    assert share(128) == pytest.approx(share(64), rel=0.05)


def test_an_unknown_shape_is_refused_by_name():
    one = torch.tensor([8.0])
    with pytest.raises(ValueError, match=r"^shape: 'blob' is not one of circle"):
        coverage("blob", one, one, one, 16)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=25)
def test_nameless_outlines_are_seen(seed):
    corners = odd_polygon(torch.Generator().manual_seed(seed))
    centre = torch.tensor([32.0])
    assert float(coverage(corners, centre, centre, torch.tensor([12.0]), 64).sum()) > 20


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_kind_of_background_is_a_picture(kind):
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        picture = kind(generator, 32)
        assert tuple(picture.shape) == (3, 32, 32)
        assert torch.isfinite(picture).all()
        assert 0 <= float(picture.min()) <= float(picture.max()) <= 1


def test_backgrounds_differ_from_one_another():
    generator = torch.Generator().manual_seed(0)
    pictures = torch.stack([random_background(generator, 16) for _ in range(20)])
    assert len({picture.numpy().tobytes() for picture in pictures}) == 20
