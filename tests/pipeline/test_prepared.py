"""What is the same at every step is computed once a request, and is never that of another request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline import ImageAnimationPipeline
from pipeline.model.families import Cond
from pipeline.model.sampling import PlainDenoiser
from pipeline.optimise.base import NotApplicable
from pipeline.optimise.context import ClipAttnProcessor, cross_attentions, fold_context
from pipeline.optimise.prepared import PreparedDenoiser, prepare_once
from pipeline.optimise.runtimes import example_of
from pipeline.optimise.sequence_parallel import FrameSplit, SequenceParallelDenoiser
from pipeline.optimise.step_modules import StepModule

from .small_checkpoints import SMALL

STEPS, FRAMES = 3, 3
BRANCHES = {
    "three branches": {"guidance_scale": 3.0, "image_guidance_scale": 1.5},
    "two branches": {"guidance_scale": 3.0, "image_guidance_scale": None},
    "one branch": {"guidance_scale": 1.0, "image_guidance_scale": None},
}


def animate(pipe: ImageAnimationPipeline, prompt: Any = "a red ball", angle: float = 0, **kwargs: Any) -> Tensor:
    """Latents of a clip; pictures of two angles differ."""
    torch.manual_seed(0)  # of the posterior of I2VGen-XL
    picture = Image.linear_gradient("L").resize((24, 20)).rotate(angle).convert("RGB")
    given = {
        "num_frames": FRAMES,
        "height": 16,
        "width": 16,
        "num_inference_steps": STEPS,
        "generator": torch.Generator().manual_seed(0),
        **BRANCHES["three branches"],
        **kwargs,
    }
    pictures = picture if isinstance(prompt, str) else [picture, picture.rotate(90)]
    return pipe(pictures, prompt, output_type="latent", **given).frames


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@contextmanager
def prepared(pipe: ImageAnimationPipeline) -> Iterator[PreparedDenoiser]:
    """The models are shared by all tests: whatever happens they are given back as they were."""
    change = prepare_once(pipe)
    try:
        yield pipe.denoiser
    finally:
        change.undo()


def traces(pipe: ImageAnimationPipeline) -> list[Any]:
    return [
        (name, len(m._forward_pre_hooks), len(m._forward_hooks), id(getattr(m, "processor", None)), m.training)
        for name, m in pipe.unet.named_modules()
    ]


@pytest.mark.parametrize("branches", BRANCHES)
def test_a_request_gives_the_same_clip(pipe, branches):
    plain = animate(pipe, **BRANCHES[branches])
    with prepared(pipe):
        assert difference(animate(pipe, **BRANCHES[branches]), plain) < 1e-5


def test_sides_that_do_not_halve_evenly_give_the_same_clip(pipe):
    size = {"height": 28, "width": 20}  # 7 x 5 latents
    plain = animate(pipe, **size)
    with prepared(pipe):
        assert difference(animate(pipe, **size), plain) < 1e-5


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_any_number_of_frames_gives_the_same_clip(pipe, frames):
    plain = animate(pipe, num_frames=frames)
    with prepared(pipe):
        assert difference(animate(pipe, num_frames=frames), plain) < 1e-5


def test_several_clips_in_a_batch_keep_their_own_prompts_and_pictures(pipe):
    prompts = ["a red ball", "a blue square moves left"]
    plain = animate(pipe, prompts)
    with prepared(pipe):
        assert difference(animate(pipe, prompts), plain) < 1e-5
    assert difference(plain[0], plain[1]) > 1e-3


def test_nothing_of_a_request_is_left_over_for_the_next(pipe):
    requests = [
        {"prompt": "a red ball"},
        {"prompt": "a blue square moves left"},
        {"prompt": "a red ball", "angle": 90},
        {"prompt": "a red ball", "height": 24, "num_frames": 2, "fps": 4},
        {"prompt": "a red ball"},
    ]
    branches = BRANCHES["two branches"]
    plain = [animate(pipe, **request, **branches) for request in requests]
    with prepared(pipe):
        for request, expected in zip(requests, plain, strict=True):
            assert difference(animate(pipe, **request, **branches), expected) < 1e-5
    # And they do differ, so that what is left over would show.
    assert all(difference(plain[0], other) > 1e-3 for other in plain[1:3])


class Recorder:
    """A plain denoiser that keeps what a request is told, and its first input."""

    def __init__(self, pipe: ImageAnimationPipeline) -> None:
        self.pipe = pipe

    def start(self, cond: Cond) -> Callable[[Tensor, Tensor], Tensor]:
        self.cond = cond
        plain = PlainDenoiser(self.pipe).start(cond)

        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            self.latents, self.timestep = latents, timestep
            return plain(latents, timestep)

        return predict


@torch.no_grad()
def test_two_requests_whose_steps_take_turns_do_not_mix(pipe):
    told = []
    plain = pipe.denoiser
    for prompt in ("a red ball", "a blue square moves left"):
        recorder = pipe.denoiser = Recorder(pipe)
        animate(pipe, prompt)
        told.append(recorder)
    pipe.denoiser = plain
    latents, timestep = told[0].latents, told[0].timestep
    expected = [plain.start(recorder.cond)(latents, timestep) for recorder in told]
    with prepared(pipe) as denoiser:
        predicts = [denoiser.start(recorder.cond) for recorder in told]
        for _ in range(2):
            for predict, wanted in zip(predicts, expected, strict=True):
                assert difference(predict(latents, timestep), wanted) < 1e-5
    assert difference(*expected) > 1e-3


def test_a_request_that_stops_half_way_leaves_nothing_behind(pipe):
    plain = animate(pipe, "a blue square moves left")

    def stop(*_):
        raise KeyboardInterrupt

    with prepared(pipe):
        with pytest.raises(KeyboardInterrupt):
            animate(pipe, callback_on_step_end=stop)
        processors = [attn.processor for attn in cross_attentions(pipe.unet).values()]
        assert all(processor.keys_values is None for processor in processors)
        assert difference(animate(pipe, "a blue square moves left"), plain) < 1e-5


def count_calls(modules: dict[str, nn.Module], run: Callable[[], Any]) -> Counter[str]:
    calls: Counter[str] = Counter()
    hooks = [
        module.register_forward_pre_hook(lambda _m, _a, name=name: calls.update([name]))
        for name, module in modules.items()
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def test_keys_and_values_are_projected_once_a_request(pipe):
    layers = cross_attentions(pipe.unet)
    projections = {f"{name}.{to}": getattr(attn, to) for name, attn in layers.items() for to in ("to_k", "to_v")}
    assert set(count_calls(projections, lambda: animate(pipe)).values()) == {STEPS}
    with prepared(pipe):
        calls = count_calls(projections, lambda: animate(pipe))
    assert calls == dict.fromkeys(projections, 1)


def test_picture_and_frame_rate_are_encoded_once_a_request(i2vgen):
    names = ("image_latents_proj_in", "image_latents_temporal_encoder", "image_latents_context_embedding")
    modules = {name: getattr(i2vgen.unet, name) for name in (*names, "context_embedding", "fps_embedding")}
    with prepared(i2vgen):
        assert count_calls(modules, lambda: animate(i2vgen)) == dict.fromkeys(modules, 1)


def flops(pipe: ImageAnimationPipeline) -> int:
    with FlopCounterMode(display=False) as counter:
        animate(pipe, num_inference_steps=2, **BRANCHES["one branch"])
    return counter.get_total_flops()


def test_a_request_costs_less_than_with_a_folded_context_and_that_less_than_plain(pipe):
    plain = flops(pipe)
    change = fold_context(pipe.unet)
    folded = flops(pipe)
    change.undo()
    with prepared(pipe):
        once = flops(pipe)
    assert once < folded < plain


def test_all_that_a_step_takes_is_contiguous(pipe):
    """Programs compiled ahead of time trust in it."""
    recorder = Recorder(pipe)
    plain, pipe.denoiser = pipe.denoiser, recorder
    animate(pipe)
    pipe.denoiser = plain
    with prepared(pipe) as denoiser, torch.no_grad():
        tensors = denoiser.module.prepare(recorder.cond)
        assert len(tensors) > 2 * len(denoiser.module.layers)
        assert all(tensor.is_contiguous() for tensor in tensors)


def test_undo_puts_everything_back_bit_by_bit(pipe):
    pipe.unet.mid_block.train()
    try:
        plain, before, denoiser = animate(pipe), traces(pipe), pipe.denoiser
        change = prepare_once(pipe)
        assert isinstance(pipe.denoiser, PreparedDenoiser)
        animate(pipe)
        change.undo()
        assert pipe.denoiser is denoiser
        assert traces(pipe) == before
        assert torch.equal(animate(pipe), plain)
    finally:
        pipe.unet.eval()


def test_a_context_that_was_folded_before_stays_folded(pipe):
    change = fold_context(pipe.unet)
    try:
        plain = animate(pipe)
        with prepared(pipe):
            assert difference(animate(pipe), plain) < 1e-5
        assert all(isinstance(attn.processor, ClipAttnProcessor) for attn in cross_attentions(pipe.unet).values())
        assert torch.equal(animate(pipe), plain)
    finally:
        change.undo()


def test_it_is_not_put_in_place_twice(pipe):
    with prepared(pipe) as denoiser:
        before = traces(pipe)
        with pytest.raises(NotApplicable, match=r"^prepare: it is in place already$"):
            prepare_once(pipe)
        assert pipe.denoiser is denoiser
        assert traces(pipe) == before


def test_it_is_refused_where_frames_are_split_over_processes(pipe):
    """It would take the exchange's place, and each process would see its own frames alone."""
    before, plain = traces(pipe), pipe.denoiser
    split = object.__new__(FrameSplit)  # no pass is made, so it needs no ranks
    spread = pipe.denoiser = SequenceParallelDenoiser(StepModule(pipe.family, pipe.unet), split)
    with pytest.raises(
        NotApplicable, match=r"^prepare: denoiser: SequenceParallelDenoiser is in the plain one's place$"
    ):
        prepare_once(pipe)
    assert pipe.denoiser is spread
    pipe.denoiser = plain
    assert traces(pipe) == before


@pytest.mark.parametrize("kind", ["hunyuanvideo-1.5", "hunyuanvideo-1.5-meanflow"])
@torch.no_grad()
def test_a_program_of_hunyuanvideo_has_shapes_that_no_prompt_decides(kind, tmp_path):
    """Of diffusers' own pass the prompt's length is part of the program; ours is exported once and takes each."""
    SMALL[kind]().save_pretrained(tmp_path)
    pipe = ImageAnimationPipeline.from_pretrained(tmp_path)
    prepare_once(pipe)
    module, size = pipe.denoiser.module, {"num_frames": 5, "height": 32, "width": 32}
    exported = torch.export.export(module, example_of(pipe, **size).inputs, strict=False).module()
    for prompt in ("up", "a red circle moves", 'a clip of "up" and "down"'):
        inputs = example_of(pipe, prompt=prompt, **size).inputs
        assert difference(exported(*inputs), module(*inputs)) < 1e-5
        at = module.names.index("image_embeds") + 2
        without = (*inputs[:at], torch.zeros_like(inputs[at]), *inputs[at + 1 :])
        assert difference(exported(*without), module(*without)) < 1e-5
