from types import SimpleNamespace

import pytest
import torch

from pipeline.clips import ClipGenerator
from pipeline.evaluate import evaluate, wilson_interval
from pipeline.sources import open_checkpoint

SIZE, FRAMES = 32, 8


class Oracle:
    """Stands for a pipeline that makes the very clips its pictures were taken from."""

    default_size = (SIZE, SIZE)
    config = SimpleNamespace()
    device = "cpu"

    def __init__(self, seed, spoil=lambda video: video):
        self.generator = ClipGenerator(SIZE, FRAMES, seed=seed, held_out=True)
        self.spoil = spoil
        # An autoencoder that is the identity.
        identity = SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: self.seen))
        self.vae = SimpleNamespace(
            encode=self._see(identity), dtype=torch.float32, config=SimpleNamespace(scaling_factor=1)
        )

    def _see(self, answer):
        def encode(pixels):
            self.seen = pixels
            return answer

        return encode

    def decode_latents(self, latents, chunk):
        return latents

    def __call__(self, images, prompts, **options):
        batch = self.generator.batch(len(images))
        assert batch.captions == prompts
        assert len(options["generator"]) == len(images)
        return SimpleNamespace(frames=self.spoil(batch.clips).transpose(1, 2))


def oracle(seed=3, **options):
    info = SimpleNamespace(frames=FRAMES, steps=32, passes=96)
    return SimpleNamespace(pipe=Oracle(seed, **options), info=info, name="oracle")


def test_a_model_that_makes_the_true_clips_gets_full_marks():
    result = evaluate(oracle(), clips=10, seed=3, batch=4)
    assert result.motion_accuracy == 1
    assert set(result.accuracy_by_motion.values()) == {1.0}
    assert result.unclear == 0
    assert result.ground_truth_psnr_db == 100
    assert result.first_frame_psnr_db == 100
    assert result.vae_psnr_db > 90
    assert result.psnr_to_teacher_db is None
    assert (result.model, result.clips, result.seed, result.steps, result.passes) == ("oracle", 10, 3, 32, 96)


def test_a_model_that_moves_backwards_fails_where_motion_has_a_direction():
    result = evaluate(oracle(spoil=lambda video: video.flip(2)), clips=24, seed=3)
    assert result.accuracy_by_motion["moves left"] == 0
    assert result.accuracy_by_motion["stays still"] == 1
    assert 0 < result.motion_accuracy < 1


def test_a_lost_sprite_is_counted_as_unclear():
    result = evaluate(oracle(spoil=torch.zeros_like), clips=6, seed=3)
    assert result.unclear > 0
    assert result.motion_accuracy == 0


def test_a_student_is_compared_with_its_teacher():
    assert evaluate(oracle(), clips=2, seed=3, teacher=oracle()).psnr_to_teacher_db == 100


@pytest.mark.parametrize("option", ["clips", "batch"])
def test_a_count_below_one_is_named(option):
    with pytest.raises(ValueError, match=f"{option}: 0 is below 1"):
        evaluate(oracle(), **{"clips": 4, option: 0})


def test_figures_do_not_depend_on_the_size_of_batches(teacher_folder):
    animator = open_checkpoint(teacher_folder)
    seen = [0]
    one = evaluate(animator, clips=3, batch=1, on_progress=lambda done, _total: seen.append(done))
    all_at_once = evaluate(animator, clips=3, batch=3)
    assert seen == [0, 1, 2, 3]
    assert one.passes == 6  # two steps, three branches
    for name in ("first_frame_psnr_db", "ground_truth_psnr_db", "vae_psnr_db", "motion_accuracy"):
        assert getattr(one, name) == pytest.approx(getattr(all_at_once, name), abs=0.01)


def test_a_model_of_oblong_clips_is_judged_on_squares(teacher_folder):
    animator = open_checkpoint(teacher_folder)
    animator.pipe.unet.register_to_config(sample_size=(8, 12))
    assert animator.pipe.default_size == (32, 48)
    assert evaluate(animator, clips=1).clips == 1


def test_the_interval_is_wilsons():
    # Newcombe 1998, table I: 81 of 263, 0.2553 to 0.3662.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20)[0] == 0
    assert wilson_interval(20, 20)[1] == pytest.approx(1)
