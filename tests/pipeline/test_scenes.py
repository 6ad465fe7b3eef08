"""Scenes show what their captions say, and training never sees what is kept for judging."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clips import classify_motion, is_held_out, measure_motion
from pipeline.clips.motion import colour_of
from pipeline.clips.photographs import HELD_BACK, TRAINED, crop, photograph
from pipeline.clips.phrases import CAMERA, SPEEDS, VERBS, noun_phrase, words
from pipeline.clips.scenes import Scene, SceneGenerator
from pipeline.clips.vocabulary import COLOURS
from pipeline.judge.photographs import photographs
from pipeline.judge.sprite import lab


def scenes(count: int, **arguments) -> list[Scene]:
    source = SceneGenerator(**{"size": 32, "frames": 5, "seed": 3, **arguments})
    return [source.scene() for _ in range(count)]


@pytest.fixture(scope="module")
def many() -> list[Scene]:
    """Scenes that several tests look at."""
    return scenes(120, size=48)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32), held_out=st.booleans(), plain=st.booleans())
def test_a_scene_is_a_clip_of_its_size_whose_sprite_begins_within_the_frame(seed, held_out, plain):
    for scene in scenes(3, seed=seed, held_out=held_out, plain=plain):
        assert scene.clip.shape == (3, 5, 32, 32)
        assert float(scene.clip.min()) >= 0
        assert float(scene.clip.max()) <= 1
        assert scene.picture().size == (32, 32)
        if scene.sprite is None:
            assert float(scene.mask.max()) == 0
            continue
        x, y, radius = scene.sprite.path(5)
        for centre in (x, y):  # it begins inside, and leaves by half at the most
            assert float((centre - radius)[0]) > 0
            assert float((centre + radius)[0]) < 1
            assert -1e-6 <= float(centre.min()) <= float(centre.max()) <= 1 + 1e-6
        assert is_held_out(scene.sprite.colour, scene.sprite.shape, scene.sprite.motion) == held_out
        # Where no sprite is nor ever was, nothing changes unless a second one moves there.
        untouched = (scene.mask.amax(dim=0) == 0) & (" and " not in scene.caption)
        assert float(((scene.clip - scene.clip[:, :1]).abs() * untouched).max()) < 1e-6


def test_a_seed_gives_the_same_scenes_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    one, other = scenes(4), scenes(4)
    assert [scene.caption for scene in one] == [scene.caption for scene in other]
    assert all(torch.equal(a.clip, b.clip) for a, b in zip(one, other, strict=True))
    assert torch.equal(before, torch.get_rng_state())


def test_a_plain_scene_moves_as_its_caption_says():
    for scene in scenes(16, size=64, plain=True):
        assert scene.sprite is not None
        assert scene.caption == noun_phrase(scene.sprite.colour, scene.sprite.shape) + f" {scene.sprite.motion}"
        paint = colour_of(scene.clip[:, 0], scene.mask[0])
        assert classify_motion(measure_motion(scene.clip, scene.background, paint)) == scene.sprite.motion


def test_the_words_of_a_caption_are_those_of_its_motion_and_speed(many):
    known = set(words())
    for scene in many:
        assert len(set(scene.caption.split()) - known) <= 2, scene.caption  # at most one unknown noun a sprite
        if scene.sprite is None:
            assert scene.caption in CAMERA[scene.camera]
            continue
        own = scene.caption.split(" and ")[0]
        assert any(verb in own for verb in VERBS[scene.sprite.motion]), own
        said = [speed for speed, adverbs in SPEEDS.items() if any(f" {adverb} " in f" {own} " for adverb in adverbs)]
        assert said == ([scene.sprite.speed] if scene.sprite.speed else []), own


def test_a_scene_to_judge_has_one_sprite_its_motion_and_its_speed():
    for scene in scenes(40, judged=True):
        sprite = scene.sprite
        assert sprite is not None
        own = f"{noun_phrase(sprite.colour, sprite.shape)} {sprite.motion}"
        assert scene.caption == (f"{own} {SPEEDS[sprite.speed][0]}" if sprite.speed else own)
        paint = colour_of(scene.clip[:, 0], scene.mask[0])
        assert classify_motion(measure_motion(scene.clip, scene.background, paint)) == sprite.motion


def test_faster_sprites_get_farther(many):
    travel = {speed: [] for speed in ("slow", "", "fast")}
    for scene in many:
        if scene.sprite is not None and scene.sprite.motion.startswith("moves"):
            travel[scene.sprite.speed].append(scene.sprite.travel)
    assert max(travel["slow"]) < min(travel[""]) <= max(travel[""]) < min(travel["fast"])


def test_the_camera_moves_the_whole_picture_against_its_own_way(many):
    ways = {"pans right": (-1, -1), "pans left": (-1, 1), "pans down": (-2, -1), "pans up": (-2, 1)}
    found = [scene for scene in many if scene.camera in ways]
    assert len(found) > 5
    for scene in found:
        axis, sign = ways[scene.camera]
        first, last = scene.clip[:, 0].mean(dim=0), scene.clip[:, -1].mean(dim=0)
        spectrum = torch.fft.fft2(first - first.mean()).conj() * torch.fft.fft2(last - last.mean())
        peak = int(torch.fft.ifft2(spectrum / spectrum.abs().clamp(min=1e-6)).real.argmax())
        shift = (peak // 48, peak % 48)[axis]
        shift = shift - 48 if shift > 24 else shift
        if shift:  # flat backgrounds show no shift
            assert (shift > 0) == (sign > 0), scene.caption


def test_photographs_that_are_held_back_are_seen_by_no_training():
    assert not set(TRAINED) & set(HELD_BACK)
    judged = {path.name for path, _ in photographs()}
    assert set(HELD_BACK) <= judged
    picture = crop(torch.Generator().manual_seed(0), 16, held_back=True)
    assert picture.shape == (3, 16, 16)
    assert photograph("coffee.png").shape[0] == 3


def test_each_colour_is_painted_so_that_it_keeps_its_name(many):
    for scene in many:
        if scene.sprite is None or " and " in scene.caption or float(scene.mask[0].max()) < 1:
            continue  # a splinter covers no pixel whole
        paint = colour_of(scene.clip[:, 0], scene.mask[0])
        nearest = min(COLOURS, key=lambda name: float((lab(torch.tensor(COLOURS[name])) - lab(paint)).norm()))
        assert nearest == scene.sprite.colour, (scene.caption, paint)


def test_speeds_and_changes_of_size_are_drawn_as_often_as_asked():
    sprites = [one.sprite for one in scenes(20, size=16, frames=2, judged=True, speed_share=1, resize_share=1)]
    assert {one.motion for one in sprites} == {"grows", "shrinks"}
    assert {one.speed for one in sprites} == set(SPEEDS)
    assert {one.sprite.speed for one in scenes(20, size=16, frames=2, judged=True, speed_share=0)} == {""}


@pytest.mark.parametrize(("argument", "value"), [("size", 8), ("frames", 1)])
def test_sizes_that_hold_no_scene_are_refused(argument, value):
    with pytest.raises(ValueError, match=f"^{argument}: {value} is below"):
        SceneGenerator(**{argument: value})
