"""One pass and one request are measured part by part, and what fails is named and left out."""

import json
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from diffusers.models.resnet import TemporalConvLayer

from pipeline.bench import pass_report, variants
from pipeline.bench.presets import Size, random_i2vgen_xl
from pipeline.bench.profiling import kind_of
from pipeline.bench.timing import device_peak
from pipeline.bench.unet_pass import bench_pass, choose_variants, difference
from pipeline.bench.variants import Variant, pass_inputs
from pipeline.commands.cli import main
from pipeline.errors import StillmotionError

SMALL = Size(
    unet=(16, 32), layers=1, head_dim=8, groups=8, vae=(8, 8, 8), context=64, text_layers=2, vision_layers=1,
    vision=80, frames=3, side=32,
)  # fmt: skip
CPU = torch.device("cpu")
NAMES = ["diffusers fp32", "diffusers", "ours eager"]


@pytest.fixture(scope="module")
def pipe():
    return random_i2vgen_xl(SMALL)


def refuse(_stage):
    raise RuntimeError("backend='none' raised:\nno compiler here\nmore")


@pytest.fixture(scope="module")
def measured(pipe, tmp_path_factory):
    """A run with a variant that fails half way, between others that do not."""

    def fail_late(stage):
        variants._improve(stage, needed=None)
        return refuse(stage)

    folder, saved, quiet = tmp_path_factory.mktemp("pass"), [], []

    @contextmanager
    def watch():
        quiet.append("in")
        yield
        quiet.append("out")

    chosen = choose_variants(NAMES, CPU)
    chosen.insert(2, Variant("broken", "fails", fail_late))
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    options = {"passes": 2, "quiet": watch, "save": lambda r: saved.append(len(r.variants))}
    result = bench_pass(pipe, "random", chosen, torch.float32, folder, **options)
    pass_report.write(result, folder)
    assert all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())
    assert type(pipe.denoiser).__name__ == "PlainDenoiser"
    return result, folder, saved, quiet


def test_every_variant_has_its_figures_with_their_units(measured):
    _, folder, *_ = measured
    document = json.loads((folder / "pass.json").read_text())
    assert {"command", "machine", "versions", "shape", "dtype", "peaks", "baseline_ms"} <= document.keys()
    assert document["shape"] == {"branches": 3, "frames": 3, "height": 32, "width": 32}
    by_name = {v["name"]: v for v in document["variants"]}
    assert list(by_name) == ["diffusers", "diffusers fp32", "broken", "ours eager"]
    for name in NAMES:
        variant = by_name[name]
        assert variant["skipped"] is None
        for figure in ("pass_ms", "tflops_per_s", "share_of_peak", "ratio_to_diffusers", "build_s", "kernel_ms"):
            assert variant[figure] >= 0, figure
        assert len(variant["times_ms"]) == 2
        assert variant["relative_error"] < 1e-4
        assert variant["psnr_db"] > 80
    assert by_name["ours eager"]["gflop"] < by_name["diffusers"]["gflop"]
    assert by_name["diffusers"]["ratio_to_diffusers"] == 1


def test_ratios_are_against_the_baseline_on_either_side(measured):
    result = measured[0]
    assert len(result.baseline_ms) == 3  # before the first, and after each that was measured
    last = result.variants[-1]
    assert last.ratio_to_diffusers == pytest.approx(sum(result.baseline_ms[-2:]) / 2 / last.pass_ms, rel=1e-3)


def test_a_variant_that_fails_is_named_with_its_reason_and_the_others_go_on(measured):
    result, _, saved, _ = measured
    assert result.variants[2].skipped == "backend='none' raised: no compiler here"
    assert result.variants[3].pass_ms > 0
    assert saved == [1, 2, 3, 4]  # a run that is cut short keeps what it has
    text = pass_report.markdown(result)
    assert "| broken | skipped: backend='none' raised: no compiler here |" in text
    assert any("skipped" in line for line in pass_report.table(result.to_dict()["variants"]))


def test_measuring_is_quiet_and_building_is_not(measured):
    quiet = measured[3]
    assert quiet[::2] == ["in"] * (len(quiet) // 2)
    # The peaks; each of three variants and its profile; the baseline again after two of them.
    assert len(quiet) // 2 == 1 + 3 * 2 + 2


def test_profiles_name_operations_and_their_classes(measured):
    result, folder, *_ = measured
    document = json.loads((folder / "profile-ours-eager.json").read_text())
    assert {kind["name"] for kind in document["kinds"]} >= {"convolution", "matmul", "attention"}
    assert sum(kind["share"] for kind in document["kinds"]) == pytest.approx(1, abs=0.01)
    assert document["kernels"][0]["time_ms"] >= document["kernels"][1]["time_ms"]
    assert "| convolution |" in (folder / "profile-diffusers.md").read_text()
    assert "broken" not in result.profiles


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", "convolution"),
        ("void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16, __nv_bfloat16, float>", "copies and layout"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7", "attention"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128>>", "attention"),
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT", "matmul"),
        ("void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm>", "matmul"),
        ("triton_poi_fused_convolution_native_group_norm_silu_12", "norm and elementwise"),
        ("triton_tem_fused_mm_3", "matmul"),
        ("void at::native::CatArrayBatchedCopy<at::native::OpaqueType<2u>>", "copies and layout"),
        ("void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel_cuda>", "copies and layout"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::BFloat16>>",
         "norm and elementwise"),
        ("void at::native::(anonymous namespace)::RowwiseMomentsCUDAKernel<c10::BFloat16, float>",
         "norm and elementwise"),
        ("something else", "other"),
    ],
)  # fmt: skip
def test_kernels_are_known_by_their_names(kernel, kind):
    assert kind_of(kernel) == kind


def test_the_same_seed_gives_the_same_inputs_in_every_branch_count(pipe):
    one, other = pass_inputs(pipe, 3), pass_inputs(pipe, 3)
    assert torch.equal(one.latents, other.latents)
    assert one.latents.shape == (3, 4, 3, 8, 8)
    assert one.to(torch.bfloat16).cond["image_embeds"].dtype is torch.bfloat16
    assert pass_inputs(pipe, 1).latents.shape[0] == 1


def test_a_wrong_output_shows():
    reference = torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    assert difference(reference, reference) == (0.0, 100.0)
    relative, psnr = difference(reference + 0.1, reference)
    assert relative == pytest.approx(0.1, rel=0.1)
    assert psnr < 40


def test_a_fast_variant_with_a_wrong_output_is_marked(measured):
    result = measured[0]
    assert not any(v.wrong for v in result.variants)
    wrong = replace(result.variants[-1], wrong=True, relative_error=0.25)
    assert pass_report.table([vars(wrong)])[1].endswith("WRONG OUTPUT")
    assert "2.5e-01 (wrong)" in pass_report.markdown(replace(result, variants=[wrong]))


def test_the_peak_of_a_device_is_positive():
    peak = device_peak(CPU, torch.float32, repeats=1)
    assert peak.tflops_per_s > 0
    assert peak.copy_gb_per_s > 0


def test_compiled_variants_are_for_gpus_unless_asked_for():
    assert [v.name for v in choose_variants(None, CPU) if v.compiled] == []
    on_gpu = [v.name for v in choose_variants(None, torch.device("cuda"))]
    assert {"diffusers + compile", "ours compile", "ours aot"} <= set(on_gpu)
    assert "ours max-autotune" not in on_gpu
    assert [v.name for v in choose_variants(["ours compile"], CPU)] == ["diffusers", "ours compile"]


def test_the_command_writes_what_it_measured(teacher_folder, tmp_path, capsys):
    out = tmp_path / "figures"
    command = ["bench", "--part", "pass", "--model", str(teacher_folder), "--variants", "ours eager", "--passes", "1"]
    assert main([*command, "--out", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((out / "pass.json").read_text())
    assert [v["name"] for v in document["variants"]] == ["diffusers", "ours eager"]
    assert (out / "profile-diffusers.md").is_file()


def test_an_unknown_variant_is_wrong_use_and_the_message_names_those_there_are(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--part", "pass", "--variants", "ours eager, warp drive"])
    assert ended.value.code == 2
    assert "--variants: 'warp drive' is not one of diffusers fp32, diffusers" in capsys.readouterr().err


def test_another_family_is_refused(pia, tmp_path):
    with pytest.raises(StillmotionError, match="i2vgen-xl family"):
        bench_pass(pia, "random", choose_variants([], CPU), torch.float32, tmp_path)


def test_weights_are_made_on_the_device_and_the_rest_is_not():
    made = random_i2vgen_xl(SMALL, device="meta")
    for part in (made.unet, made.vae, made.text_encoder, made.image_encoder):
        assert all(tensor.is_meta for tensor in part.state_dict().values())
        assert all(tensor.is_meta for tensor in part.buffers())
    assert made.scheduler.alphas_cumprod.device.type == "cpu"


def test_no_layer_of_random_weights_begins_at_zero(pipe):
    layers = [module for module in pipe.unet.modules() if isinstance(module, TemporalConvLayer)]
    assert layers
    assert all(layer.conv4[-1].weight.any() for layer in layers)


def test_updates_of_a_student_are_measured_each_way(teacher_folder, tmp_path, capsys):
    command = ["bench", "--part", "distill", "--model", str(teacher_folder), "--out", str(tmp_path), "--json"]
    with pytest.raises(SystemExit):
        main([*command, "--variants", "all weights,warp drive"])
    assert "--variants: 'warp drive' is not one of all weights, " in capsys.readouterr().err
    assert main([*command, "--variants", "all weights,LoRA"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((tmp_path / "distill-update.json").read_text())
    every, lora = document["updates"]
    assert every["trained_millions"] > lora["trained_millions"] > 0
    assert all(len(update["times_s"]) == 3 and update["update_s"] > 0 for update in (every, lora))
