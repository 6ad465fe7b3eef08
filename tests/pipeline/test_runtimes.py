"""Runtimes: programs give what the plain module gives, and step aside for shapes that they were not built for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from PIL import Image
from torch import Tensor, nn

from pipeline import ImageAnimationPipeline
from pipeline.machine import threads
from pipeline.model.families.i2vgen_xl import I2VGenXLFamily
from pipeline.optimise.base import Change, NotApplicable
from pipeline.optimise.packaged import _LONG_S, ways_to_run
from pipeline.optimise.prepared import PreparedDenoiser, prepare_once, prepared_denoisers
from pipeline.optimise.runtimes import (
    REPEATED,
    Example,
    ShapedProgram,
    compile_blocks,
    compile_decoder,
    compile_whole,
    example_of,
    find_compiler,
    install,
    run_traced,
    shapes_of,
    trace,
)
from pipeline.optimise.step_modules import StepModule
from pipeline.serve.engine import Animator
from pipeline.serve.request import AnimationRequest
from pipeline.serve.store import describe

FRAMES = 2  # of the pipelines of one level

FAMILY = I2VGenXLFamily()


@pytest.fixture(autouse=True)
def _compile_afresh() -> Iterator[None]:
    """What one test has compiled does not count for the next."""
    yield
    torch._dynamo.reset()


@pytest.fixture(params=["i2vgen", "pia"])
def ready(request) -> Iterator[ImageAnimationPipeline]:
    """A pipeline of each family with a U-Net of one level and a step module."""
    pipe = request.getfixturevalue(f"one_level_{request.param}")
    pipe.register_to_config(guidance_scale=3.0, num_inference_steps=2)
    change = prepare_once(pipe)
    yield pipe
    change.undo()


@contextmanager
def undone(change: Change) -> Iterator[Change]:
    try:
        yield change
    finally:
        change.undo()


def animate(pipe: ImageAnimationPipeline, prompt: str = "a red ball", **kwargs: Any) -> Tensor:
    """Latents of a clip of the default shapes."""
    torch.manual_seed(0)  # of the posterior of I2VGen-XL
    picture = Image.linear_gradient("L").resize((24, 20)).convert("RGB")
    generator = torch.Generator().manual_seed(0)
    return pipe(picture, prompt, generator=generator, **{"output_type": "latent", **kwargs}).frames


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


class CountingBackend:
    """A compiler that compiles nothing, and counts what it is given."""

    def __init__(self) -> None:
        self.programs = 0

    def __call__(self, graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Any]:
        self.programs += 1
        return graph.forward


# ------------------------------------------------------------------ examples and programs


def test_the_example_has_the_inputs_of_a_default_request_and_leaves_the_pipeline_as_it_was(ready):
    denoiser, seen = ready.denoiser, []

    def watch(*inputs: Tensor) -> Tensor:
        seen.append(inputs)
        return denoiser.module(*inputs)

    example = example_of(ready)
    assert ready.denoiser is denoiser
    with undone(install(ready, {example.shapes: lambda _: watch}, example.dtype, "watch", "for this test")):
        animate(ready)
        assert denoiser.run.misses == 0
    assert len(seen) == 2
    assert shapes_of(seen[0]) == example.shapes
    assert [t.dtype for t in seen[0]] == [t.dtype for t in example.inputs]
    assert all(t.is_contiguous() for t in (*example.inputs, *seen[0]))


def test_without_a_step_module_nothing_can_run_it(pipe):
    for attempt in (example_of, prepared_denoisers, run_traced):
        with pytest.raises(
            NotApplicable, match=r"^runtime: the denoiser is a PlainDenoiser; apply prepare_once first$"
        ):
            attempt(pipe)


def test_a_program_is_given_contiguous_inputs_of_its_shapes_and_type_and_no_others(caplog):
    asked, plain = [], []
    programs = {((2, 3),): lambda *inputs: asked.append(inputs)}
    program = ShapedProgram(programs, torch.float32, lambda *inputs: plain.append(inputs), "aot")
    with caplog.at_level(logging.WARNING):
        program(torch.ones(3, 2).T)
        program(torch.ones(2, 3, dtype=torch.bfloat16))
        program(torch.ones(2, 4))
    assert len(asked) == 1
    assert asked[0][0].is_contiguous()
    assert len(plain) == program.misses == 2
    assert len(caplog.records) == 1


# ------------------------------------------------------------------ TorchScript


def test_a_traced_program_gives_the_same_and_steps_aside_for_other_shapes(ready, caplog):
    plain, other = animate(ready), animate(ready, "a blue square")
    longer = animate(ready, num_frames=FRAMES + 1)
    with undone(run_traced(ready)), caplog.at_level(logging.WARNING, logger="pipeline"):
        for _ in range(2):  # TorchScript specialises a program after its first calls
            assert difference(animate(ready), plain) < 1e-5
        assert difference(animate(ready, "a blue square"), other) < 1e-5
        assert ready.denoiser.run.misses == 0
        assert not caplog.records
        for _ in range(2):
            assert torch.equal(animate(ready, num_frames=FRAMES + 1), longer)
        assert ready.denoiser.run.misses == 4
    assert [record.getMessage() for record in caplog.records] == [
        "the torchscript program was built for latents 2x4x2x4x4; 2x4x3x4x4 runs without it"
    ]
    assert ready.denoiser.run is ready.denoiser.module
    assert torch.equal(animate(ready), plain)


def test_a_module_that_cannot_be_traced_is_refused_with_the_reason():
    class Unruly(StepModule):
        def forward(self, latents: Tensor, timestep: Tensor, *prepared: Tensor) -> Any:
            raise ValueError("not today\nnor tomorrow")

    module = Unruly(FAMILY, nn.Linear(1, 1)).eval()
    with pytest.raises(NotApplicable, match=r"^torchscript: the network cannot be traced: not today$"):
        trace(module, Example((torch.ones(1), torch.ones(1))))


# ------------------------------------------------------------------ torch.compile


def compiled(module: nn.Module) -> list[str]:
    return [name for name, part in module.named_modules() if part._compiled_call_impl is not None]


@pytest.mark.parametrize("ready", ["pia"], indirect=True)
def test_compiled_blocks_give_the_same_and_are_undone(ready):
    plain, backend = animate(ready), CountingBackend()
    with undone(compile_blocks(ready, backend=backend)) as change:
        blocks = [name for name, part in ready.unet.named_modules() if isinstance(part, REPEATED)]
        assert compiled(ready.unet) == blocks
        assert change.detail == f"{len(blocks)} repeated blocks compiled"
        assert difference(animate(ready), plain) < 1e-5
        built = backend.programs
        assert 0 < built < len(blocks)  # blocks of one kind and shape share
        animate(ready, "a blue square")
        assert backend.programs == built
    assert not compiled(ready.unet)
    assert torch.equal(animate(ready), plain)


@torch.no_grad()
def test_every_shape_of_a_block_is_compiled_and_once():
    """The compiler by itself gives up on a kind of block after eight shapes, and real U-Nets have more."""
    channels = [2 * k for k in range(1, 10)]
    nets = [
        nn.Sequential(*[ResnetBlock2D(in_channels=c, temb_channels=None, groups=2) for c in channels]) for _ in range(2)
    ]
    unet = nn.ModuleList(nets)
    pipe = SimpleNamespace(network=unet, networks=(unet,), denoiser=PreparedDenoiser(StepModule(FAMILY, unet)))
    backend = CountingBackend()
    with undone(compile_blocks(pipe, backend=backend)):
        for net in unet:
            for block, c in zip(net, channels, strict=True):
                block(torch.ones(1, c, 4, 4), None)
    assert backend.programs == len(channels)


def test_a_unet_without_repeated_blocks_is_refused_by_name():
    network = nn.Linear(1, 1)
    pipe = SimpleNamespace(network=network, networks=(network,), denoiser=None)
    with pytest.raises(NotApplicable, match=r"^compile: Linear has no repeated blocks$"):
        compile_blocks(pipe)


def test_a_machine_without_a_compiler_is_told_before_anything_is_compiled():
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.raises(NotApplicable, match=r"^compile: there is no C\+\+ compiler here$"),
    ):
        find_compiler()


@pytest.mark.slow
def test_the_whole_step_compiles_into_one_program(ready):
    plain, backend = animate(ready), CountingBackend()
    example = example_of(ready)
    with undone(compile_whole(ready, example, backend=backend, fullgraph=True)):
        assert difference(animate(ready), plain) < 1e-5
        assert difference(animate(ready, "a blue square"), plain) > 1e-3
        assert backend.programs == 1
        assert ready.denoiser.run.misses == 0
    assert ready.denoiser.run is ready.denoiser.module
    assert torch.equal(animate(ready), plain)


@pytest.mark.parametrize("ready", ["pia"], indirect=True)
def test_a_compiled_decoder_gives_the_same_and_is_undone(ready):
    plain, backend = animate(ready, output_type="pt"), CountingBackend()
    with undone(compile_decoder(ready, backend=backend)):
        assert difference(animate(ready, output_type="pt"), plain) < 1e-5
        assert backend.programs == 1
    assert not compiled(ready.vae)
    assert torch.equal(animate(ready, output_type="pt"), plain)


@pytest.mark.parametrize("ready", ["pia"], indirect=True)
def test_undo_gives_back_what_was_compiled_before(ready):
    with undone(compile_decoder(ready, backend="eager")):
        before = ready.vae.decoder._compiled_call_impl
        with undone(compile_decoder(ready, backend="aot_eager")):
            assert ready.vae.decoder._compiled_call_impl is not before
        assert ready.vae.decoder._compiled_call_impl is before
    assert not compiled(ready.vae)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("ready", ["i2vgen"], indirect=True)
def test_inductor_gives_the_same(ready):
    """A minute or two of C++ for the decoder and the blocks of a small model."""
    plain = animate(ready, output_type="pt")
    with undone(compile_blocks(ready)), undone(compile_decoder(ready)):
        assert difference(animate(ready, output_type="pt"), plain) < 1e-4
    assert torch.equal(animate(ready, output_type="pt"), plain)


def test_the_fastest_way_to_run_is_found_by_measurement_and_leaves_the_pipeline_as_it_was(teacher_folder, monkeypatch):
    pipe = ImageAnimationPipeline.from_pretrained(teacher_folder)
    denoiser, before = pipe.denoiser, torch.get_num_threads()
    with threads(2):
        ways = ways_to_run(pipe, requests=1)
    assert pipe.denoiser is denoiser
    assert torch.get_num_threads() == before
    found = {(way.runtime, way.threads) for way in ways}
    assert found <= {(runtime, threads) for runtime in ("eager", "torchscript") for threads in (None, 1)}
    assert {("eager", None), ("torchscript", None)} <= found
    for way in ways:  # one thread is tried where a request is quick
        assert (way.runtime, 1) in found or way.request_s >= _LONG_S
    default = next(way for way in ways if (way.runtime, way.threads) == ("eager", None))
    assert ways[0] is default or ways[0].request_s < 0.95 * default.request_s
    assert min(way.request_s for way in ways) > 0.95 * ways[0].request_s

    def refuse(*_: Any) -> None:
        raise NotApplicable("torchscript: the network cannot be traced: for a reason")

    monkeypatch.setattr("pipeline.optimise.packaged.run_traced", refuse)
    with threads(1):
        assert [(way.runtime, way.threads) for way in ways_to_run(pipe, requests=1)] == [("eager", None)]
    assert pipe.denoiser is denoiser


def test_a_model_computes_on_the_threads_it_was_packaged_with(teacher_folder):
    pipe = ImageAnimationPipeline.from_pretrained(teacher_folder)
    used = []
    pipe.unet.register_forward_pre_hook(lambda _module, _inputs: used.append(torch.get_num_threads()))
    animator = Animator(pipe, describe(pipe, "x", {}).changed(threads=1), "x")
    with threads(3):
        animator.animate(Image.new("RGB", (32, 32)), AnimationRequest("a ball", seed=1))
        assert torch.get_num_threads() == 3
    assert set(used) == {1}
