"""Scenes to judge by can be read back from their clips, and held-out ones stay out of training."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clips import COLOURS, MOTIONS, SHAPES, Scene, SceneGenerator, classify_motion, is_held_out, measure_motion
from pipeline.clips.backgrounds import KINDS, random_background
from pipeline.clips.motion import colour_of
from pipeline.clips.sprites import coverage, odd_polygon

COMBINATIONS = list(product(COLOURS, SHAPES, MOTIONS))


def judged(count: int, size: int = 64, frames: int = 8, seed: int = 5, held_out: bool = True) -> list[Scene]:
    return SceneGenerator(size, frames, seed, held_out=held_out, judged=True).batch(count).scenes


def read_back(scenes: list[Scene], change=lambda scene: scene.clip) -> list[str]:
    """What is read from copies of clips; the sprite's colour is known from the true one."""
    paints = [colour_of(scene.clip[:, 0], scene.mask[0]) for scene in scenes]
    each = zip(scenes, paints, strict=True)
    return [classify_motion(measure_motion(change(scene), scene.background, paint)) for scene, paint in each]


@pytest.mark.parametrize(
    ("size", "frames", "held_out"), [(64, 17, True), (64, 8, False), (32, 8, False), (64, 2, True)]
)
def test_the_motion_of_a_scene_can_be_read_back_from_it(size, frames, held_out):
    scenes = judged(200, size, frames, held_out=held_out)
    assert {scene.sprite.motion for scene in scenes} == set(MOTIONS)
    # With two frames a jump begins and ends on the ground.
    kept = [scene for scene in scenes if frames > 2 or scene.sprite.motion != "jumps"]
    wrong = [
        (scene.sprite, read) for scene, read in zip(kept, read_back(kept), strict=True) if read != scene.sprite.motion
    ]
    assert len(wrong) <= 0.01 * len(kept), wrong


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_clip_played_backwards_is_read_as_the_opposite(motion):
    opposite = {
        "moves left": "moves right", "moves right": "moves left", "moves up": "moves down",
        "moves down": "moves up", "grows": "shrinks", "shrinks": "grows",
    }  # fmt: skip
    scenes = [scene for scene in judged(80, seed=9) if scene.sprite.motion == motion]
    assert len(scenes) > 2
    assert set(read_back(scenes, lambda scene: scene.clip.flip(1))) == {opposite.get(motion, motion)}


def test_a_copy_without_the_sprite_is_unclear():
    assert set(read_back(judged(20), lambda scene: scene.background[:, None].expand_as(scene.clip))) == {"unclear"}


def test_a_copy_that_repeats_the_first_frame_stays_still():
    assert set(read_back(judged(40), lambda scene: scene.clip[:, :1].expand_as(scene.clip))) == {"stays still"}


@given(seed=st.integers(0, 2**31), level=st.floats(0, 0.05))
@settings(max_examples=10)
def test_a_little_noise_does_not_change_what_is_read(seed, level):
    scenes, random = judged(6, seed=seed), torch.Generator().manual_seed(seed)
    clean = read_back(scenes)
    noisy = read_back(scenes, lambda s: (s.clip + level * torch.randn(s.clip.shape, generator=random)).clamp(0, 1))
    assert sum(a != b for a, b in zip(clean, noisy, strict=True)) <= 1


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
def test_every_colour_shape_and_motion_is_drawn_about_equally(held_out):
    sprites = [scene.sprite for scene in judged(800, size=16, frames=2, seed=3, held_out=held_out)]
    for names, drawn in (
        (COLOURS, Counter(s.colour for s in sprites)),
        (SHAPES, Counter(s.shape for s in sprites)),
        (MOTIONS, Counter(s.motion for s in sprites)),
    ):
        assert set(drawn) == set(names)
        assert min(drawn.values()) > 0.5 * len(sprites) / len(names)


def test_scenes_do_not_depend_on_the_size_of_the_batches_they_are_drawn_in():
    whole, source = SceneGenerator(32, 5, seed=2).batch(6), SceneGenerator(32, 5, seed=2)
    parts = [source.batch(2) for _ in range(3)]
    assert torch.equal(whole.clips, torch.cat([part.clips for part in parts]))
    assert whole.captions == [caption for part in parts for caption in part.captions]
    assert whole.pictures()[3].tobytes() == parts[1].pictures()[1].tobytes()


def test_other_seeds_give_other_scenes():
    assert not torch.equal(SceneGenerator(32, 5, seed=1).batch(2).clips, SceneGenerator(32, 5, seed=2).batch(2).clips)


def test_a_picture_can_be_of_any_frame():
    scene = judged(1, seed=4)[0]
    last = replace(scene, clip=scene.clip.flip(1)).picture()
    assert scene.picture(-1).tobytes() == last.tobytes() != scene.picture().tobytes()


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
