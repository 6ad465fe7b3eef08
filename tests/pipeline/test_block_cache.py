"""Block caching: when layers are computed, and what stands for them when they are not."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from pipeline import ImageAnimationPipeline
from pipeline.optimise.base import NotApplicable
from pipeline.optimise.block_cache import (
    LAYERS,
    Changes,
    Schedule,
    cache_blocks,
    measure_changes,
    schedule_of,
    share_computed,
)
from pipeline.optimise.prepared import prepare_once

STEPS = 4


def animate(pipe: ImageAnimationPipeline, prompt: str = "a red ball", steps: int = STEPS, **kwargs: Any) -> Tensor:
    torch.manual_seed(0)  # of the posterior of I2VGen-XL
    picture = Image.linear_gradient("L").resize((24, 20)).convert("RGB")
    given = {"num_frames": 2, "height": 16, "width": 16, "guidance_scale": 3.0, "image_guidance_scale": None, **kwargs}
    generator = torch.Generator().manual_seed(0)
    return pipe(picture, prompt, num_inference_steps=steps, generator=generator, output_type="latent", **given).frames


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def outermost(unet: nn.Module) -> dict[str, nn.Module]:
    """Layers that are skipped, each with all that is inside it."""
    found: dict[str, nn.Module] = {}
    for name, module in unet.named_modules():  # outer ones come first
        if isinstance(module, LAYERS) and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return found


def schedule_for(pipe: ImageAnimationPipeline, *steps: bool) -> Schedule:
    return dict.fromkeys(outermost(pipe.unet), steps)


@contextmanager
def cached(pipe: ImageAnimationPipeline, schedule: Schedule) -> Iterator[None]:
    change = cache_blocks(pipe, schedule)
    try:
        yield
    finally:
        change.undo()


def traces(pipe: ImageAnimationPipeline) -> list[Any]:
    return [(name, "forward" in vars(module)) for name, module in pipe.unet.named_modules()]


def computed_calls(pipe: ImageAnimationPipeline, **kwargs: Any) -> Counter[str]:
    """How often each layer was really computed in a request: calls of its first part that does work."""
    calls: Counter[str] = Counter()
    hooks = []
    for name, layer in outermost(pipe.unet).items():
        inside = next(part for part in layer.modules() if isinstance(part, nn.GroupNorm))
        hooks.append(inside.register_forward_pre_hook(lambda _m, _a, name=name: calls.update([name])))
    try:
        animate(pipe, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


# ------------------------------------------------------------------ schedules

changes_of = st.integers(1, 12).flatmap(
    lambda steps: st.builds(
        Changes,
        steps=st.just(steps),
        relative=st.dictionaries(
            st.sampled_from(["down", "mid", "up"]),
            st.lists(st.floats(0, 2), min_size=steps - 1, max_size=steps - 1).map(tuple),
            min_size=1,
        ),
    )
)


@given(changes_of, st.floats(0, 5))
def test_the_first_and_the_last_step_are_computed(changes, threshold):
    for name, computed in schedule_of(changes, threshold).items():
        assert len(computed) == changes.steps
        assert computed[0]
        assert computed[-1]
        assert name in changes.relative


@given(changes_of, st.floats(0, 5))
def test_the_change_left_out_never_adds_up_to_the_threshold(changes, threshold):
    for name, computed in schedule_of(changes, threshold).items():
        left_out = 0.0
        for step, change in enumerate(changes.relative[name], start=1):
            left_out = 0.0 if computed[step] else left_out + change
            assert left_out < threshold or threshold == left_out == 0


@given(changes_of, st.floats(0, 5))
def test_no_step_is_computed_too_early(changes, threshold):
    """Only where the change since the layer was last computed has reached the threshold, and at the end."""
    for name, computed in schedule_of(changes, threshold).items():
        since = 0.0
        for step, change in enumerate(changes.relative[name][:-1], start=1):
            since += change
            assert computed[step] == (since >= threshold)
            since = 0.0 if computed[step] else since


@given(changes_of)
def test_a_threshold_of_zero_computes_everything_and_a_large_one_only_the_ends(changes):
    assert share_computed(schedule_of(changes, 0)) == 1
    assert share_computed(schedule_of(changes, 100)) == min(1, 2 / changes.steps)


@given(st.integers(2, 12), st.floats(0.01, 1), st.floats(0, 5), st.floats(0, 5))
def test_a_higher_threshold_never_computes_more_of_a_steady_layer(steps, change, one, other):
    """Not so for uneven changes: a later start can make a later sum cross its threshold once more."""
    changes = Changes(steps, {"layer": (change,) * (steps - 1)})
    low, high = sorted((one, other))
    assert share_computed(schedule_of(changes, high)) <= share_computed(schedule_of(changes, low))


def test_a_schedule_worked_by_hand():
    changes = Changes(6, {"layer": (0.2, 0.2, 0.3, 0.6, 0.1)})
    # 0.2, then 0.4; 0.7 reaches 0.5, and so does 0.6 at once; the last is always computed.
    assert schedule_of(changes, 0.5) == {"layer": (True, False, False, True, True, True)}
    assert share_computed(schedule_of(changes, 0.5)) == 4 / 6


def test_a_negative_threshold_is_refused():
    with pytest.raises(ValueError, match=r"^threshold: -0.1 is below 0$"):
        schedule_of(Changes(2, {"layer": (0.1,)}), -0.1)


# ------------------------------------------------------------------ measuring


def test_measured_changes_are_those_of_the_layers_residuals(pipe):
    """Against the formula, on what hooks see of one layer whose shape stays and one whose shape changes."""
    layers = outermost(pipe.unet)
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}

    def keep(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        hidden = args[0] if args else kwargs.get("hidden_states", kwargs.get("input_tensor"))
        output = output[0] if isinstance(output, tuple) else output
        seen[name].append(output - hidden if output.shape == hidden.shape else output)

    hooks = [
        layer.register_forward_hook(lambda _m, a, k, o, name=name: keep(name, a, k, o), with_kwargs=True)
        for name, layer in layers.items()
    ]
    before = traces(pipe)
    try:
        changes = measure_changes(pipe, [lambda: animate(pipe), lambda: animate(pipe, "a blue square")], STEPS)
    finally:
        for hook in hooks:
            hook.remove()
    assert traces(pipe) == before
    assert changes.relative.keys() == layers.keys()
    for name, residuals in seen.items():
        requests = residuals[:STEPS], residuals[STEPS:]
        for step in range(1, STEPS):
            expected = [float((r[step] - r[step - 1]).abs().sum() / r[step].abs().sum()) for r in requests]
            assert changes.relative[name][step - 1] == pytest.approx(sum(expected) / 2, rel=1e-3, abs=1e-6)


def test_a_request_of_more_steps_than_told_is_refused(pipe):
    before = animate(pipe, steps=2)
    with pytest.raises(ValueError, match="steps: a request makes more than 1"):
        measure_changes(pipe, [lambda: animate(pipe, steps=2)], 1)
    assert torch.equal(animate(pipe, steps=2), before)


def test_a_request_of_one_step_has_no_changes_and_its_schedule_fits(pipe):
    changes = measure_changes(pipe, [lambda: animate(pipe, steps=1)], 1)
    assert set(changes.relative.values()) == {()}
    with cached(pipe, schedule_of(changes, 1.0)):
        animate(pipe, steps=1)


def test_a_failing_request_leaves_the_pipeline_as_it_was(pipe):
    before, denoiser = traces(pipe), pipe.denoiser

    def fail() -> None:
        raise RuntimeError("no such request")

    with pytest.raises(RuntimeError, match="no such request"):
        measure_changes(pipe, [fail], STEPS)
    assert traces(pipe) == before
    assert pipe.denoiser is denoiser


# ------------------------------------------------------------------ caching


@pytest.mark.parametrize("prepare", [False, True], ids=["plain", "prepared"])
def test_with_everything_computed_the_clip_is_the_same_bit_by_bit(pipe, prepare):
    change = prepare_once(pipe) if prepare else None
    try:
        plain = animate(pipe)
        changes = measure_changes(pipe, [lambda: animate(pipe)], STEPS)
        with cached(pipe, schedule_of(changes, 0)):
            assert torch.equal(animate(pipe), plain)
    finally:
        if change is not None:
            change.undo()


def test_layers_are_computed_at_the_steps_of_the_schedule_and_no_others(pipe):
    patterns = itertools.cycle([(True, False, True, True), (True, False, False, False), (True, True, True, True)])
    schedule = dict(zip(outermost(pipe.unet), patterns, strict=False))
    assert set(computed_calls(pipe).values()) == {STEPS}
    with cached(pipe, schedule):
        calls = computed_calls(pipe)
    assert calls == {name: sum(computed) for name, computed in schedule.items()}


def test_what_is_left_out_changes_the_clip_but_little(pipe):
    plain = animate(pipe)
    with cached(pipe, schedule_for(pipe, True, False, True, True)):
        clip = animate(pipe)
    assert 1e-6 < difference(clip, plain) < 0.5 * float(plain.abs().max())


@torch.no_grad()
def test_reuse_is_exact_where_nothing_has_changed(pipe):
    """The same latents at the same timestep: what is kept is what would be computed."""
    told: list[Any] = []

    class Catcher:
        def start(self, conditioning):
            told.append(conditioning)
            return lambda latents, _timestep: latents

    plain, pipe.denoiser = pipe.denoiser, Catcher()
    animate(pipe, steps=1)
    pipe.denoiser = plain
    latents, timestep = torch.randn(2, 4, 2, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor(500)
    expected = plain.start(told[0])(latents, timestep)
    with cached(pipe, schedule_for(pipe, True, False)):
        predict = pipe.denoiser.start(told[0])
        assert torch.equal(predict(latents, timestep), expected)
        assert difference(predict(latents, timestep), expected) < 1e-5


def test_nothing_is_kept_from_one_request_for_the_next(pipe):
    schedule = schedule_for(pipe, True, False, False, True)
    requests = [{"prompt": "a red ball"}, {"prompt": "a blue square"}, {"height": 24, "num_frames": 3}]
    alone = []
    for request in requests:
        with cached(pipe, schedule):
            alone.append(animate(pipe, **request))

    def stop(*_):
        raise KeyboardInterrupt

    with cached(pipe, schedule):
        for request, expected in zip(requests, alone, strict=True):
            assert torch.equal(animate(pipe, **request), expected)
        with pytest.raises(KeyboardInterrupt):
            animate(pipe, "a blue square", callback_on_step_end=stop)
        assert torch.equal(animate(pipe), alone[0])
    assert difference(alone[0], alone[1]) > 1e-3


def test_steps_beyond_the_schedule_are_all_computed(pipe):
    with cached(pipe, schedule_for(pipe, True, False)):
        assert set(computed_calls(pipe, steps=5).values()) == {4}


def test_undo_puts_everything_back_bit_by_bit(pipe):
    plain, before, denoiser = animate(pipe), traces(pipe), pipe.denoiser
    change = cache_blocks(pipe, schedule_for(pipe, True, False, False, True))
    animate(pipe)
    change.undo()
    assert pipe.denoiser is denoiser
    assert traces(pipe) == before
    assert torch.equal(animate(pipe), plain)
    assert change.detail == "50% of the layers' calls are computed"


def test_a_schedule_of_another_unet_is_refused_and_changes_nothing(pipe):
    before, denoiser = traces(pipe), pipe.denoiser
    schedule = dict(schedule_for(pipe, True))
    missing = min(schedule)
    del schedule[missing]
    with pytest.raises(NotApplicable, match=f"^block cache: {missing}: the schedule was made for another U-Net"):
        cache_blocks(pipe, schedule)
    assert traces(pipe) == before
    assert pipe.denoiser is denoiser


def test_it_is_not_put_in_place_twice(pipe):
    schedule = schedule_for(pipe, True, False)
    with cached(pipe, schedule):
        before, denoiser = traces(pipe), pipe.denoiser
        with pytest.raises(NotApplicable, match=r"^block cache: it is in place already$"):
            cache_blocks(pipe, schedule)
        with pytest.raises(NotApplicable, match=r"^block cache: it is in place already$"):
            measure_changes(pipe, [], 2)
        assert traces(pipe) == before
        assert pipe.denoiser is denoiser


def test_a_program_that_has_no_layers_to_skip_is_refused(pipe):
    change = prepare_once(pipe)
    try:
        before = traces(pipe)
        pipe.denoiser.run = lambda latents, *_: latents
        for attempt in (lambda: cache_blocks(pipe, schedule_for(pipe, True)), lambda: measure_changes(pipe, [], 2)):
            with pytest.raises(NotApplicable, match=r"^block cache: the U-Net runs as a traced or compiled program"):
                attempt()
            assert traces(pipe) == before
    finally:
        change.undo()


def test_compiled_layers_are_refused_by_name(pia):
    name, layer = next(iter(outermost(pia.unet).items()))
    layer.compile(backend="eager")
    try:
        with pytest.raises(NotApplicable, match=f"^block cache: {name} runs as a compiled program"):
            cache_blocks(pia, schedule_for(pia, True))
        assert not any(replaced for _, replaced in traces(pia))
    finally:
        layer._compiled_call_impl = None
