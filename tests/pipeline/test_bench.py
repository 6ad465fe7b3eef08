"""The benchmark measures what it says it measures, of whole requests, single passes and updates, for every family."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers.models.resnet import TemporalConvLayer
from PIL import Image

from pipeline import ImageAnimationPipeline
from pipeline.bench import bench, table
from pipeline.bench.ladder import EXACT, Ladder, Rung, plan, use_solver, without_tf32
from pipeline.bench.presets import WAN, random_i2vgen_xl, random_wan
from pipeline.bench.profile import class_of
from pipeline.bench.report import markdown, write
from pipeline.bench.result import RungResult
from pipeline.bench.subjects import diffusers_request
from pipeline.commands.cli import main
from pipeline.errors import StillmotionError
from pipeline.machine import PeakMemory
from pipeline.optimise.base import Change, NotApplicable
from pipeline.optimise.precision import choose, difference
from pipeline.serve.sources import open_checkpoint

from .small_checkpoints import SMALL

FAST = ["diffusers", "teacher", "precision", "context", "prepare", "solver", "torchscript", "8 x 1"]
PASSES = ["diffusers", "ours eager", "ours attention"]
FIGURES = {"name", "median_s", "speedup", "peak_memory_mb", "flops", "psnr_to_previous_db"}
SIZES = {
    "unet": {
        "sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8,
        "cross_attention_dim": 64, "attention_head_dim": 8, "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    },
    "vae": {"block_out_channels": (8, 8, 8), "layers_per_block": 2, "norm_num_groups": 8, "sample_size": 32},
    "text": {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1},
    "vision": {"hidden_size": 80, "intermediate_size": 80, "num_hidden_layers": 1, "num_attention_heads": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def teacher(teacher_folder) -> ImageAnimationPipeline:
    return open_checkpoint(teacher_folder).pipe


@pytest.fixture(scope="module")
def requests(teacher, tmp_path_factory):
    """The ladder of a random teacher, but the compilers."""
    return bench(teacher, "random", "tiny", tmp_path_factory.mktemp("bench"), FAST, repeats=1)


@pytest.fixture(scope="module")
def passes(teacher, tmp_path_factory):
    """Single passes, with what was saved after each rung, and the files."""
    folder, saved = tmp_path_factory.mktemp("pass"), []
    save = lambda result: saved.append([rung.name for rung in result.rungs])  # noqa: E731
    result = bench(
        teacher, "random", "tiny", folder, PASSES[1:], repeats=2, part="pass", calls=2, profiled=True, save=save
    )
    write(result, folder)
    return result, saved, folder


def by_name(result) -> dict[str, RungResult]:
    return {rung.name: rung for rung in result.rungs}


# ------------------------------------------------------------------ whole requests


def test_every_rung_of_a_request_has_its_figures(requests):
    assert [rung.name for rung in requests.rungs] == FAST
    for rung in requests.rungs:
        assert rung.skipped is None
        assert rung.median_s > 0
        assert rung.pass_s > 0
        assert rung.flops > 0
        assert rung.share_of_peak > 0
        assert rung.peak_memory_mb is None or rung.peak_memory_mb > 50


def test_passes_are_steps_times_branches(requests):
    passes = {name: rung.passes for name, rung in by_name(requests).items()}
    assert passes["teacher"] == passes["context"] == passes["prepare"] == 2 * 3
    assert passes["diffusers"] == 2 * 2  # it knows two branches
    assert passes["solver"] == passes["torchscript"] == 2 * 3  # no more steps than the model takes
    assert passes["8 x 1"] == 8


def test_ratios_are_of_the_same_run(requests):
    rungs = by_name(requests)
    teacher = rungs["teacher"]
    assert teacher.speedup == 1
    assert rungs["solver"].speedup == pytest.approx(teacher.median_s / rungs["solver"].median_s, rel=0.02)
    assert rungs["prepare"].pass_speedup == pytest.approx(rungs["diffusers"].pass_s / rungs["prepare"].pass_s, rel=0.02)


def test_a_request_is_accounted_for_part_by_part(requests):
    teacher = by_name(requests)["teacher"]
    assert set(teacher.parts_s) == {"encode prompt", "encode image", "step", "decode latents"}
    assert 0 < sum(teacher.parts_s.values()) < teacher.median_s
    assert set(by_name(requests)["diffusers"].parts_s) == {"step"}


def test_each_rung_is_compared_with_the_one_that_it_stands_on(requests):
    rungs = by_name(requests)
    assert rungs["teacher"].psnr_to_previous_db is None
    assert rungs["context"].psnr_to_previous_db > 60
    assert rungs["prepare"].psnr_to_previous_db > 60
    assert rungs["torchscript"].psnr_to_previous_db > 60  # the solver's frames, and not the teacher's
    assert rungs["torchscript"].psnr_to_teacher_db == pytest.approx(rungs["solver"].psnr_to_teacher_db, abs=0.5)
    assert rungs["8 x 1"].psnr_to_teacher_db is None
    assert rungs["diffusers"].psnr_to_teacher_db is None  # with fewer branches it makes another clip


def test_operations_fall_from_rung_to_rung_and_a_program_has_those_of_the_rung_below(requests):
    rungs = by_name(requests)
    assert rungs["teacher"].flops > rungs["context"].flops > rungs["prepare"].flops
    assert rungs["torchscript"].flops == rungs["solver"].flops


def test_a_precision_that_does_not_pay_here_says_so_and_is_not_kept(requests):
    precision = by_name(requests)["precision"]
    kept = choose(requests.trials, torch.device("cpu"))["network"] is not torch.float32
    assert precision.kept == kept
    assert precision.partial == ("does not pay here" in precision.note) == (not kept)
    assert precision.psnr_to_teacher_db > 20


@pytest.mark.usefixtures("requests", "passes")
def test_the_pipeline_is_left_as_it_was(teacher, teacher_folder):
    as_it_was = open_checkpoint(teacher_folder).pipe.unet.state_dict()
    assert all(torch.equal(value, as_it_was[name]) for name, value in teacher.unet.state_dict().items())
    assert teacher.config.num_inference_steps == 2
    assert type(teacher.denoiser).__name__ == "PlainDenoiser"


def test_tables_name_every_rung_and_the_plot_is_a_picture(requests, tmp_path):
    text = markdown(requests)
    assert all(f"| {name} |" in text for name in FAST)
    assert len(table(requests.to_dict()["rungs"])) == 1 + len(FAST)
    written = write(requests, tmp_path)
    assert json.loads(written[0].read_text())["rungs"][1]["name"] == "teacher"
    with Image.open(written[-1]) as plot:
        assert plot.width > 500


# ------------------------------------------------------------------ one pass, one update


def test_every_pass_has_its_figures_beside_diffusers(passes):
    result, _, folder = passes
    document = json.loads((folder / "pass.json").read_text())
    assert document == json.loads(json.dumps(result.to_dict()))
    assert document["shape"] == {"branches": 3, "frames": 4, "height": 32, "width": 32}
    assert [rung["name"] for rung in document["rungs"]] == PASSES
    for rung in document["rungs"]:
        assert rung["skipped"] is None
        assert all(rung[name] > 0 for name in ("median_s", "speedup", "share_of_peak", "kernel_ms"))
        assert len(rung["times_s"]) == 2
        assert rung["relative_error"] < 1e-4
        assert rung["psnr_to_teacher_db"] > 80
    plain, ours, chosen = result.rungs
    assert plain.speedup == 1
    assert ours.flops < plain.flops
    assert "by " in chosen.details[-1]  # which back end each shape got


def test_a_run_that_is_cut_short_keeps_what_it_has(passes):
    saved = passes[1]
    assert [] in saved  # the exact output is not timed
    assert ["diffusers"] in saved
    assert saved[-1] == PASSES


def test_profiles_name_kernels_and_their_classes(passes):
    text = (passes[2] / "profile-ours-eager.md").read_text()
    assert all(f"\n| {name} |" in text for name in ("convolution", "matmul", "attention"))


def test_a_fast_pass_with_a_wrong_output_is_marked(teacher, tmp_path, monkeypatch):
    def spoil(pipe):
        return Change("spoilt", "", pipe.unet.register_forward_hook(lambda *_: (torch.zeros(3, 4, 4, 8, 8),)).remove)

    own = Ladder._pass
    monkeypatch.setattr(Ladder, "_pass", lambda ladder: [*own(ladder), Rung("spoilt", "", (spoil,), "pass")])
    result = bench(teacher, "random", "tiny", tmp_path, ["spoilt"], repeats=1, part="pass", calls=1)
    assert [rung.wrong for rung in result.rungs] == [False, True]
    assert "WRONG OUTPUT" in table(result.to_dict()["rungs"])[-1]
    assert "WRONG OUTPUT" in markdown(result)


def test_a_wrong_output_shows():
    reference = torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    assert difference(reference, reference) == (0.0, 100.0)
    relative, psnr = difference(reference + 0.1, reference)
    assert relative == pytest.approx(0.1, rel=0.1)
    assert psnr < 40


def test_passes_of_more_or_fewer_branches_are_measured(teacher, tmp_path):
    run = partial(bench, teacher, "random", "tiny", tmp_path, [], repeats=1, part="pass", calls=1)
    one, four = run(branches=1), run(branches=4)
    assert (one.shape["branches"], four.shape["branches"]) == (1, 4)
    assert four.rungs[0].flops == 4 * one.rungs[0].flops


def test_compilers_are_for_gpus_unless_asked_for(i2vgen, tmp_path):
    ladder = Ladder(i2vgen, torch.float32, None, keep_precision=True, folder=tmp_path)
    rungs = {rung.name: rung for rung in ladder.rungs("pass")}
    assert not any(rung.program for rung in rungs.values() if rung.by_default)
    ladder.on_gpu = True
    on_gpu = {rung.name for rung in ladder.rungs("pass") if rung.by_default}
    assert {"diffusers + compile", "ours compile", "ours aot"} <= on_gpu
    assert not {"ours max-autotune", "ours fused qkv"} & on_gpu
    assert EXACT in on_gpu


def test_updates_of_a_student_are_measured_each_way(teacher_folder, tmp_path, capsys):
    command = ["bench", "--part", "distill", "--model", str(teacher_folder), "--out", str(tmp_path), "--json"]
    assert main([*command, "--variants", "all weights,LoRA", "--repeats", "1"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((tmp_path / "distill-update.json").read_text())
    every, lora = document["rungs"]
    assert every["trained_millions"] > lora["trained_millions"] > 0
    assert all(len(rung["times_s"]) == 1 and rung["median_s"] > 0 for rung in (every, lora))
    assert every["flops"] > 0


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", "convolution"),
        ("void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16, __nv_bfloat16, float>", "copies and layout"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7", "attention"),
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT", "matmul"),
        ("triton_poi_fused_convolution_native_group_norm_silu_12", "norm and elementwise"),
        ("triton_tem_fused_mm_3", "matmul"),
        ("void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel_cuda>", "copies and layout"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::BFloat16>>",
         "norm and elementwise"),
        ("something else", "other"),
    ],
)  # fmt: skip
def test_kernels_are_known_by_their_names(kernel, kind):
    assert class_of(kernel) == kind


# ------------------------------------------------------------------ families, and what does not fit


@pytest.fixture(
    scope="module",
    params=[("wan-2.1-flf", 5), ("wan-2.2-a14b", 5), ("svd", 2), ("ltx", 9), ("hunyuanvideo-1.5", 5)],
    ids=lambda p: p[0],
)
def of_family(request, tmp_path_factory) -> tuple[str, Path]:
    """A small checkpoint of another family whose requests are short."""
    kind, frames = request.param
    folder = tmp_path_factory.mktemp(kind)
    SMALL[kind]().save_pretrained(folder)
    pipe = ImageAnimationPipeline.from_pretrained(folder)
    pipe.register_to_config(num_frames=frames, height=32, width=32, num_inference_steps=1 if kind == "svd" else 2)
    pipe.save_pretrained(folder)
    return kind, folder


def test_every_family_is_measured_beside_diffusers(of_family, capsys, tmp_path):
    kind, folder = of_family
    names = ["diffusers", "teacher", "context", "prepare", "solver", *(["8 x 1"] if kind == "ltx" else [])]
    assert main(["bench", "--model", str(folder), "--json", "--repeats", "1", "--rungs", ",".join(names)]) == 0
    rungs = {rung["name"]: rung for rung in json.loads(capsys.readouterr().out)["rungs"]}
    assert list(rungs) == names
    assert rungs["diffusers"]["passes"] == rungs["teacher"]["passes"] == 2 * rungs["teacher"]["steps"]
    assert rungs["diffusers"]["psnr_to_teacher_db"] > 60
    left_out = {name for name, rung in rungs.items() if rung["skipped"]}
    expected = {"svd": {"solver"}}
    assert left_out == expected.get(kind, {"context"})
    assert all((rung["median_s"] is None) == (name in left_out) for name, rung in rungs.items())
    assert not any("\n" in (rung["skipped"] or "") for rung in rungs.values())
    if kind == "ltx":  # where nothing applies the command fails with the reasons
        assert rungs["8 x 1"]["passes"] == 8
        assert main(["bench", "--model", str(folder), "--json", "--rungs", "context", "--out", str(tmp_path)]) == 1
        assert "nothing was measured: context: " in capsys.readouterr().err


def test_a_pass_of_every_family_is_measured(of_family, tmp_path):
    kind, folder = of_family
    pipe = open_checkpoint(folder).pipe
    result = bench(pipe, kind, "tiny", tmp_path, ["ours eager"], repeats=1, part="pass", calls=1)
    plain, ours = result.rungs
    assert ours.relative_error < 1e-4
    assert 0 < ours.flops <= plain.flops


def test_diffusers_own_pipeline_makes_the_clip_that_ours_makes(one_level_pia, tmp_path):
    one_level_pia.register_to_config(num_inference_steps=2)
    result = bench(one_level_pia, "random", "tiny", tmp_path, ["diffusers", "teacher"], repeats=1)
    assert result.rungs[0].psnr_to_teacher_db > 60


def test_what_does_not_apply_is_left_out_with_its_reason_or_stops_the_run(one_level_pia, tmp_path, monkeypatch):
    def refuse(_pipe):
        raise RuntimeError("backend='none' raised:\nno compiler here\nmore")

    own = Ladder._pass
    monkeypatch.setattr(Ladder, "_pass", lambda ladder: [Rung("broken", "", (refuse,), "pass"), *own(ladder)])
    run = partial(bench, one_level_pia, "random", "tiny", tmp_path, ["broken"], repeats=1, part="pass", calls=1)
    broken, plain = run().rungs
    assert broken.skipped == "backend='none' raised:"
    assert plain.median_s > 0
    assert table([vars(plain), vars(broken)])[-1] == "broken: not applied: backend='none' raised:"
    with pytest.raises(StillmotionError, match="backend='none' raised:"):
        run(strict=True)


def test_a_rung_that_fails_half_way_undoes_its_first_half_and_does_without_a_base_that_does_not_fit(i2vgen):
    def refuse(_pipe):
        raise NotApplicable("second: no")

    ladder = Ladder(i2vgen, torch.bfloat16, torch.float32, keep_precision=False, folder=None)
    rung = next(rung for rung in ladder.rungs("request") if rung.name == "prepare")
    with pytest.raises(NotApplicable, match="second: no"), Rung("x", "", (*rung.changes, refuse)).entered(i2vgen):
        pass
    assert type(i2vgen.denoiser).__name__ == "PlainDenoiser"
    with Rung("x", "", rung.changes, base=(refuse,)).entered(i2vgen) as applied:
        assert type(i2vgen.denoiser).__name__ == "PreparedDenoiser"
        assert applied.skipped == ["second: no"]
    assert type(i2vgen.denoiser).__name__ == "PlainDenoiser"


# ------------------------------------------------------------------ the command, and parts


def test_the_command_prints_one_document(teacher_folder, capsys):
    command = ["bench", "--model", str(teacher_folder), "--rungs", "teacher, context", "--repeats", "1"]
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {"machine", "versions", "preset", "rungs"} <= document.keys()
    assert all(rung.keys() >= FIGURES for rung in document["rungs"])


@pytest.mark.parametrize(
    ("part", "known"),
    [("request", "diffusers, teacher"), ("pass", "diffusers fp32, diffusers"), ("distill", "all weights, check")],
)
def test_a_rung_that_there_is_not_is_wrong_use_and_the_message_names_those_there_are(
    teacher_folder, capsys, part, known
):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--model", str(teacher_folder), "--part", part, "--rungs", "warp drive"])
    assert ended.value.code == 2
    assert f"--rungs: 'warp drive' is not one of {known}" in capsys.readouterr().err


def test_the_published_size_is_built_from_widths_and_no_layer_begins_at_zero():
    pipe = random_i2vgen_xl(SIZES, frames=3)
    frames = pipe(Image.new("RGB", (32, 32)), "x", num_inference_steps=1, image_guidance_scale=1.5).frames[0]
    assert len(frames) == 3
    assert frames[0].size == (32, 32)
    layers = [module for module in pipe.unet.modules() if isinstance(module, TemporalConvLayer)]
    assert layers
    assert all(layer.conv4[-1].weight.any() for layer in layers)


def test_the_published_size_is_i2vgen_xls_and_weights_are_made_on_the_device_and_the_rest_is_not():
    made = random_i2vgen_xl(device="meta")
    assert sum(parameter.numel() for parameter in made.unet.parameters()) // 10**6 == 1420
    assert made.default_size == (512, 512)
    for part in (made.unet, made.vae, made.text_encoder, made.image_encoder):
        assert all(tensor.is_meta for tensor in part.state_dict().values())
    assert made.scheduler.alphas_cumprod.device.type == "cpu"


@pytest.mark.parametrize(("preset", "millions"), [("wan-ti2v-5b", 5000), ("wan-a14b", 14289)])
def test_the_published_sizes_of_wan_are_made_on_the_device_and_small_ones_animate(preset, millions):
    made = random_wan(WAN[preset], device="meta")
    assert round(sum(parameter.numel() for parameter in made.network.parameters()) / 10**6) == millions
    assert all(tensor.is_meta for part in (made.network, made.vae) for tensor in part.state_dict().values())
    widths = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 1, "ffn_dim": 16}
    small = {
        "transformer": {**WAN[preset]["transformer"], **widths},
        "vae": {**WAN[preset]["vae"], "base_dim": 3, "decoder_base_dim": None, "num_res_blocks": 1},
        "text": {"d_model": 32, "d_ff": 16, "d_kv": 8, "num_heads": 4},
        "request": {**WAN[preset]["request"], "num_frames": 5, "height": 32, "width": 64, "num_inference_steps": 1},
    }
    pipe = random_wan(small)
    assert pipe.config.expand_timesteps == (preset == "wan-ti2v-5b")
    assert diffusers_request(pipe).shape == (5, 32, 64, 3)


def test_plans_and_solvers_are_undone(i2vgen):
    scheduler, steps = i2vgen.scheduler, i2vgen.config.num_inference_steps
    changes = [use_solver(i2vgen, 7), plan(i2vgen, 3, guidance_scale=1.0), without_tf32(i2vgen)]
    assert (i2vgen.config.num_inference_steps, i2vgen.config.guidance_scale) == (3, 1.0)
    for change in reversed(changes):
        change.undo()
    assert i2vgen.scheduler is scheduler
    assert i2vgen.config.num_inference_steps == steps


def test_the_peak_of_memory_is_that_of_the_block():
    with PeakMemory() as small:
        pass
    with PeakMemory() as large:
        torch.ones(64 * 2**20, dtype=torch.uint8).add_(1)
    if small.peak_mb is None or large.peak_mb is None:
        pytest.skip("this system does not tell a process's peak")
    assert 40 < large.peak_mb - small.peak_mb < 200
