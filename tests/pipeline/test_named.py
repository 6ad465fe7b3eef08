"""Changes by name, on small transformers of several families: what they leave of the clip, and what they refuse."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline import ImageAnimationPipeline
from pipeline.bench.measure import held_bytes
from pipeline.commands.cli import main
from pipeline.optimise.base import NotApplicable
from pipeline.optimise.named import (
    NAMED,
    attention_backend,
    attention_backends,
    cast_storage,
    check_runtime,
    fastest_backend,
    in_order,
    named,
    offload_blocks,
    quantise,
    tile_decoder,
)
from pipeline.optimise.prepared import PreparedExperts, prepare_once
from pipeline.optimise.runtimes import (
    compile_blocks,
    compile_decoder,
    compile_whole,
    example_of,
    put,
    repeated_blocks,
    run_traced,
)
from pipeline.packaging.package import package
from pipeline.serve.engine import Animator
from pipeline.serve.request import AnimationRequest
from pipeline.serve.sources import open_checkpoint

from .small_checkpoints import SMALL

KINDS = ("wan-2.1", "wan-2.2-a14b", "wan-2.2-ti2v", "ltx", "cogvideox", "hunyuanvideo-1.5")
CHOOSES_ATTENTION = tuple(kind for kind in KINDS if kind != "cogvideox")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("named") / kind
            SMALL[kind]().save_pretrained(made[kind])
            pipe = ImageAnimationPipeline.from_pretrained(made[kind])
            pipe.register_to_config(num_frames=9, height=32, width=32, num_inference_steps=2)
            pipe.save_pretrained(made[kind])
        return made[kind]

    return folder


@pytest.fixture(scope="module")
def loaded(folders) -> Callable[[str], ImageAnimationPipeline]:
    pipes: dict[str, ImageAnimationPipeline] = {}

    def load(kind: str) -> ImageAnimationPipeline:
        if kind not in pipes:
            pipes[kind] = ImageAnimationPipeline.from_pretrained(folders(kind))
            pipes[kind].set_progress_bar_config(disable=True)
        return pipes[kind]

    return load


def animate(pipe: ImageAnimationPipeline, output_type: str = "latent") -> Tensor:
    picture = Image.linear_gradient("L").resize((40, 40)).convert("RGB")
    generator = torch.Generator().manual_seed(0)
    return pipe(picture, "a red circle moves up", generator=generator, output_type=output_type).frames


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


# ------------------------------------------------------------------ attention


@pytest.mark.parametrize("kind", CHOOSES_ATTENTION)
def test_a_back_end_gives_the_same_attention_and_is_taken_out_again(loaded, kind):
    pipe = loaded(kind)
    plain = animate(pipe)
    change = attention_backend(pipe, "_native_math")
    assert change.detail.endswith("layers by _native_math")
    assert difference(animate(pipe), plain) < 1e-4
    change.undo()
    assert torch.equal(animate(pipe), plain)


def test_a_back_end_of_one_model_is_not_that_of_others(loaded):
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as Registry

    before = Registry.get_active_backend()[0]
    attention_backend(loaded("wan-2.1"), "_native_math").undo()
    assert Registry.get_active_backend()[0] is before


@pytest.mark.parametrize("backend", ["warp", "sage", "flash_hub", "_native_npu"])
def test_a_back_end_that_cannot_be_used_is_named_with_those_that_can(loaded, backend):
    pipe = loaded("wan-2.1")
    plain = animate(pipe)
    with pytest.raises(NotApplicable, match=rf"^attention: '{backend}': .*; there are .*native") as caught:
        attention_backend(pipe, backend)
    assert "\n" not in str(caught.value)
    assert torch.equal(animate(pipe), plain)


def test_back_ends_that_are_here_run_or_say_why_not(loaded):
    assert "native" in attention_backends()
    assert not any(name.endswith("_hub") for name in attention_backends())
    assert fastest_backend(loaded("ltx")) in attention_backends()


def test_a_network_that_computes_attention_by_itself_is_named(loaded, i2vgen):
    for pipe in (loaded("cogvideox"), i2vgen):
        with pytest.raises(NotApplicable, match=f"attention: {type(pipe.network).__name__} computes it by itself"):
            attention_backend(pipe, "native")


# ------------------------------------------------------------------ memory and float8


@pytest.mark.parametrize("kind", KINDS)
def test_weights_in_float8_take_less_and_give_nearly_the_same(loaded, kind):
    pipe = loaded(kind)
    plain, held, dtype = animate(pipe), held_bytes(pipe), pipe.network.dtype
    change = cast_storage(pipe)
    assert held_bytes(pipe) < held
    assert pipe.network.dtype == dtype
    stored = animate(pipe)
    assert 0 < float((stored - plain).norm() / plain.norm()) < 0.1
    change.undo()
    assert held_bytes(pipe) == held
    assert torch.equal(animate(pipe), plain)


@pytest.mark.parametrize("kind", ["wan-2.2-a14b", "ltx"])
def test_offloaded_blocks_give_the_same(loaded, kind):
    pipe = loaded(kind)
    plain = animate(pipe)
    change = offload_blocks(pipe, torch.device("cpu"))
    assert torch.equal(animate(pipe), plain)
    change.undo()
    assert torch.equal(animate(pipe), plain)
    with pytest.raises(NotApplicable, match="offload: there is no GPU here"):
        offload_blocks(pipe)


def test_a_unet_whose_layers_compute_outside_their_blocks_is_not_offloaded(i2vgen, pia):
    for pipe in (i2vgen, pia):
        with pytest.raises(NotApplicable, match=f"offload: layers of {type(pipe.network).__name__} compute outside"):
            offload_blocks(pipe, torch.device("cpu"))


def test_a_program_keeps_its_weights(loaded):
    pipe = loaded("ltx")
    change = prepare_once(pipe)
    put(pipe, [lambda latents, *_: latents], "none", "")
    for name, one in NAMED.items():
        if one.plain:
            with pytest.raises(
                NotApplicable, match=f"{name.split('-bl')[0]}: a traced or compiled program runs the network"
            ):
                one.apply(pipe)
    change.undo()


def test_a_unet_is_cast_where_its_sensitive_layers_are_named(i2vgen, pia):
    held, plain = held_bytes(pia), pia.network.conv_in.weight.clone()
    change = cast_storage(pia)
    assert held_bytes(pia) < held / 2
    change.undo()
    assert torch.equal(pia.network.conv_in.weight, plain)
    with pytest.raises(NotApplicable, match="float8-storage: diffusers names no layers of I2VGenXLUNet"):
        cast_storage(i2vgen)


def test_float8_says_what_it_wants(loaded, monkeypatch):
    pipe = loaded("wan-2.1")
    with pytest.raises(NotApplicable, match=r"^float8: multiplies float8 on a GPU, and this is cpu$"):
        quantise(pipe, dynamic=True)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(
        NotApplicable, match=r"^float8-weights: torchao is not installed; pip install 'stillmotion\[float8\]'$"
    ):
        quantise(pipe, dynamic=False)
    old = SimpleNamespace(
        device=torch.device("cuda"), network=pipe.network, networks=pipe.networks, denoiser=pipe.denoiser
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
    with pytest.raises(NotApplicable, match=r"^float8: this GPU has compute capability 8\.0; it takes 8\.9 or later$"):
        quantise(old, dynamic=True)


def test_layers_are_quantised_one_by_one_without_those_that_diffusers_keeps(loaded, monkeypatch):
    """With a stand-in for torchao that rounds weights: what is chosen, tried and undone is ours."""
    seen: list[nn.Linear] = []

    def rounded(layer: nn.Linear, _config: object) -> None:
        seen.append(layer)
        layer.weight = nn.Parameter(layer.weight.to(torch.float8_e4m3fn).float(), requires_grad=False)

    torchao = ModuleType("torchao.quantization")
    torchao.__dict__.update(
        Float8DynamicActivationFloat8WeightConfig=object,
        Float8WeightOnlyConfig=object,
        PerRow=object,
        quantize_=rounded,
    )
    monkeypatch.setitem(sys.modules, "torchao", ModuleType("torchao"))
    monkeypatch.setitem(sys.modules, "torchao.quantization", torchao)
    pipe = loaded("wan-2.2-a14b")
    plain, names = animate(pipe), {id(m): name for name, m in pipe.network.named_modules()}
    change = quantise(pipe, dynamic=False)
    assert change.detail == f"{len(seen)} linear layers in float8"
    chosen = [names[id(layer)] for layer in seen if id(layer) in names]
    assert chosen
    assert len(chosen) * 2 == len(seen)  # both experts
    assert not any("embed" in name or "norm" in name for name in chosen)
    assert not torch.equal(animate(pipe), plain)
    change.undo()
    assert torch.equal(animate(pipe), plain)


# ------------------------------------------------------------------ the decoder


def test_tiles_are_blended_and_a_frame_that_is_no_larger_is_left_alone(loaded):
    pipe = loaded("wan-2.1")
    plain = animate(pipe, "pt")
    with pytest.raises(NotApplicable, match="tiling: frames of 32 x 32 pixels are no more than a tile of 256 x 256"):
        tile_decoder(pipe)
    assert not pipe.vae.use_tiling
    sides = {f"tile_sample_min_{side}": 16 for side in ("height", "width")}
    strides = {f"tile_sample_stride_{side}": 8 for side in ("height", "width")}
    change = tile_decoder(pipe, **sides, **strides)
    tiled = animate(pipe, "pt")
    assert tiled.shape == plain.shape
    assert not torch.equal(tiled, plain)
    change.undo()
    assert torch.equal(animate(pipe, "pt"), plain)


# ------------------------------------------------------------------ programs of transformers


class CountingBackend:
    """A compiler that compiles nothing, and counts what it is given."""

    def __init__(self) -> None:
        self.programs = 0

    def __call__(self, graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        self.programs += 1
        return graph.forward


@pytest.mark.parametrize("kind", ["wan-2.2-a14b", "wan-2.2-ti2v", "cogvideox"])
def test_blocks_of_one_kind_share_a_compiled_program_also_of_two_experts(loaded, kind):
    pipe = loaded(kind)
    plain, backend = animate(pipe), CountingBackend()
    change = compile_blocks(pipe, backend=backend)
    blocks = [block for network in pipe.networks for block in repeated_blocks(network)]
    assert change.detail == f"{len(blocks)} repeated blocks compiled"
    assert len(blocks) == 2 * len(pipe.networks)
    assert difference(animate(pipe), plain) < 1e-5
    assert backend.programs < len(blocks) * 2
    change.undo()
    assert torch.equal(animate(pipe), plain)
    torch.compiler.reset()


@pytest.mark.parametrize("change", [cast_storage, lambda pipe: offload_blocks(pipe, torch.device("cpu"))])
def test_blocks_that_are_cast_or_offloaded_compile_too(loaded, change):
    pipe, backend = loaded("wan-2.1"), CountingBackend()
    below = change(pipe)
    plain = animate(pipe)
    above = compile_blocks(pipe, backend=backend)
    assert difference(animate(pipe), plain) < 1e-5
    assert backend.programs
    above.undo()
    below.undo()
    torch.compiler.reset()


def test_a_compiled_video_decoder_gives_the_same(loaded):
    pipe = loaded("ltx")
    plain, backend = animate(pipe, "pt"), CountingBackend()
    change = compile_decoder(pipe, backend=backend)
    assert difference(animate(pipe, "pt"), plain) < 1e-5
    assert backend.programs
    change.undo()
    torch.compiler.reset()


@pytest.mark.parametrize("runtime", ["torchscript", "compile"])
@pytest.mark.parametrize("kind", ["wan-2.2-a14b", "wan-2.2-ti2v", "ltx"])
def test_a_program_of_each_network_gives_the_same(loaded, kind, runtime):
    pipe = loaded(kind)
    plain = animate(pipe)
    below = prepare_once(pipe)
    assert isinstance(pipe.denoiser, PreparedExperts) == (len(pipe.networks) == 2)
    assert torch.equal(animate(pipe), plain)
    backend = CountingBackend()
    whole = runtime == "compile"
    change = compile_whole(pipe, example_of(pipe), backend=backend) if whole else run_traced(pipe)
    runs = [one.run for one in getattr(pipe.denoiser, "each", {"": pipe.denoiser}).values()]
    assert len(runs) == len(pipe.networks)
    assert difference(animate(pipe), plain) < 1e-4
    assert all(run.misses == 0 for run in runs)
    assert backend.programs == whole  # of two experts too
    with pytest.raises(NotApplicable, match="a traced or compiled program runs the network already"):
        compile_blocks(pipe)
    change.undo()
    below.undo()
    assert torch.equal(animate(pipe), plain)
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["wan-2.2-a14b", "wan-2.2-ti2v", "ltx", "hunyuanvideo-1.5"])
def test_a_package_has_a_program_for_each_of_its_sizes_and_says_when_none_fits(folders, kind, caplog):
    """A minute for each size: networks of two experts share a program, timesteps of tokens are in it."""
    folder = folders(kind).with_name(f"{kind}-wide")
    pipe = ImageAnimationPipeline.from_pretrained(folders(kind))
    pipe.register_to_config(height=32, width=64)
    pipe.save_pretrained(folder)
    packaged = package(open_checkpoint(folder), {}, "aot")
    animator = Animator.load(packaged.path)
    assert (animator.runtime, animator.fallback) == ("aot", None)
    eager = open_checkpoint(folder)
    for height, width in packaged.info.sizes:
        picture = Image.linear_gradient("L").resize((width, height)).convert("RGB")
        request = AnimationRequest("a red circle moves up", seed=1)
        made, plain = animator.animate(picture, request), eager.animate(picture, request)
        assert made.runtime == "aot"
        assert made.clip.shape[1:3] == (height, width)
        assert abs(made.clip.astype(int) - plain.clip).max() <= 2
    step = packaged.info.frame_step
    if packaged.info.least_frames < packaged.info.frames:
        shorter = animator.animate(picture, AnimationRequest("a red circle", seed=1, frames=9 - step))
        assert shorter.runtime == "eager"
        assert "program was built for latents" in caplog.text


# ------------------------------------------------------------------ by name, in a package


def test_names_are_looked_up_and_go_with_runtimes_or_not():
    assert named("attention:sage").note == "attention of a transformer by sage"
    with pytest.raises(ValueError, match=r"^optimisations: 'warp' is not one of float8-storage, .*attention:BACKEND$"):
        named("warp")
    check_runtime(["attention:native", "tiling"], "aot")
    check_runtime(["offload"], "compile")
    names = ["compile-blocks", "offload", "attention:native", "float8-storage"]
    assert in_order(names) == ["attention:native", "float8-storage", "offload", "compile-blocks"]
    with pytest.raises(ValueError, match="optimisations: offload changes modules of the network, and runtime aot has"):
        check_runtime(["offload"], "aot")


def test_a_package_is_served_with_its_changes_and_says_what_does_not_fit(folders, capsys):
    command = ["package", "--checkpoint", str(folders("wan-2.1"))]
    changes = ["float8-storage", "offload", "attention:_native_math"]
    assert main([*command, *(word for name in changes for word in ("--optimise", name))]) == 0
    assert "offload: there is no GPU here" in capsys.readouterr().err
    source = open_checkpoint(folders("wan-2.1"))
    packaged = package(source, {}, optimisations=changes)
    assert packaged.info.optimisations == tuple(changes)
    animator = Animator.load(packaged.path)
    assert held_bytes(animator.pipe) < held_bytes(source.pipe)
    assert animator.fallback.startswith("offload: there is no GPU here")
    assert source.pipe.network.blocks[0].attn1.to_q.weight.dtype == torch.float32  # it was only read
    assert main([*command, "--optimise", "warp"]) == 1
    assert "optimisations: 'warp' is not one of" in capsys.readouterr().err


def test_the_benchmark_has_a_rung_for_each_and_for_back_ends_that_are_asked_for(folders, capsys):
    command = ["bench", "--model", str(folders("wan-2.2-ti2v")), "--repeats", "1", "--rungs"]
    assert main([*command, "teacher,prepare,attention:_native_math,attention:sage,float8-storage,offload"]) == 0
    out = capsys.readouterr().out
    assert "attention:sage: not applied: attention: 'sage': " in out
    assert "offload: not applied: there is no GPU here" in out
    assert all(f"\n{name} " in out for name in ("teacher", "attention:_native_math", "float8-storage"))
    assert main([*command, "decoder,tiling,bfloat16", "--part", "decode"]) == 0
    out = capsys.readouterr().out
    assert "tiling: not applied: frames of 32 x 32 pixels" in out
    assert "bfloat16: not applied: the wan family keeps its autoencoder in float32" in out
