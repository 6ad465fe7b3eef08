"""Adapters and networks that others trained, in the layouts that they are published in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.commands.cli import main
from pipeline.errors import ModelError
from pipeline.model.renoising import RenoisingScheduler
from pipeline.packaging.lora import merge
from pipeline.packaging.lora_file import LoraFile
from pipeline.serve.manifest import ModelInfo

from .small_checkpoints import SMALL

# Published names of Wan's layers, and diffusers'.
LAYERS = {
    "self_attn.q": "attn1.to_q",
    "self_attn.k": "attn1.to_k",
    "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0",
    "cross_attn.q": "attn2.to_q",
    "cross_attn.k": "attn2.to_k",
    "cross_attn.v": "attn2.to_v",
    "cross_attn.o": "attn2.to_out.0",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
RANK = 2


def random(*shape):
    return 0.3 * torch.randn(*shape)


def layers(network):
    """Published name, diffusers' name and module of each layer that adapters change."""
    for number, block in enumerate(network.blocks):
        for published, own in LAYERS.items():
            yield f"blocks.{number}.{published}", f"blocks.{number}.{own}", block.get_submodule(own)


def lightning(network):
    """As Wan2.2-Lightning has it: down, up and alpha."""
    tensors = {}
    for published, _, layer in layers(network):
        key = f"diffusion_model.{published}"
        tensors[f"{key}.lora_down.weight"] = random(RANK, layer.in_features)
        tensors[f"{key}.lora_up.weight"] = random(layer.out_features, RANK)
        tensors[f"{key}.alpha"] = torch.tensor(1.0)
    return tensors


def lightx2v(network):
    """As LightX2V has it: down, up and differences of biases."""
    tensors = {key: value for key, value in lightning(network).items() if not key.endswith("alpha")}
    for published, _, layer in layers(network):
        tensors[f"diffusion_model.{published}.diff_b"] = random(layer.out_features)
    return tensors


def musubi(network):
    """As musubi-tuner has it: flat names."""
    return {
        "lora_unet_" + name.rpartition(".lora")[0].replace(".", "_") + ".lora" + name.rpartition(".lora")[2]
        if ".lora" in name
        else "lora_unet_" + name.removesuffix(".alpha").replace(".", "_") + ".alpha": value
        for name, value in ((k.removeprefix("diffusion_model."), v) for k, v in lightning(network).items())
    }


def peft(network):
    """As diffusers saves it."""
    tensors = {}
    for _, own, layer in layers(network):
        tensors[f"transformer.{own}.lora_A.weight"] = random(RANK, layer.in_features)
        tensors[f"transformer.{own}.lora_B.weight"] = random(layer.out_features, RANK)
    return tensors


LAYOUTS = {"lightning": lightning, "lightx2v": lightx2v, "musubi": musubi, "peft": peft}


def written(folder: Path, tensors, name="lora.safetensors", metadata=None) -> Path:
    save_file(tensors, folder / name, metadata=metadata)
    return folder / name


@pytest.fixture
def network():
    return SMALL["wan-2.2-a14b"]().transformer


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_those_of_diffusers_own_loader_once_it_has_fused_them(layout, tmp_path):
    reference, mine = SMALL["wan-2.2-a14b"](), SMALL["wan-2.2-a14b"]().transformer
    before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    path = written(tmp_path, LAYOUTS[layout](mine))
    reference.load_lora_weights(str(path))
    reference.fuse_lora(lora_scale=0.5)
    reference.unload_lora_weights()
    done = merge(mine, LoraFile(path, 0.5), "transformer")
    assert done.keys == len(before) - sum(torch.equal(mine.state_dict()[name], before[name]) for name in before)
    for name, tensor in reference.transformer.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name], tensor, rtol=0, atol=2e-6, msg=name)


def test_differences_of_norms_modulations_and_the_head_are_added_whole(network, tmp_path):
    names = {
        "blocks.1.self_attn.norm_q.diff": "blocks.1.attn1.norm_q.weight",
        "blocks.0.norm3.diff": "blocks.0.norm2.weight",
        "blocks.0.norm3.diff_b": "blocks.0.norm2.bias",
        "blocks.0.diff_m": "blocks.0.scale_shift_table",
        "head.diff_m": "scale_shift_table",
        "head.head.diff": "proj_out.weight",
        "head.head.diff_b": "proj_out.bias",
        "patch_embedding.diff": "patch_embedding.weight",
        "time_projection.1.diff_b": "condition_embedder.time_proj.bias",
        "text_embedding.2.diff": "condition_embedder.text_embedder.linear_2.weight",
    }
    before = {own: network.state_dict()[own].clone() for own in names.values()}
    tensors = {f"diffusion_model.{name}": random(*before[own].shape) for name, own in names.items()}
    assert merge(network, LoraFile(written(tmp_path, tensors), 2.0), "transformer").keys == len(names)
    for name, own in names.items():
        change = network.state_dict()[own] - before[own]
        torch.testing.assert_close(change, 2 * tensors[f"diffusion_model.{name}"], rtol=0, atol=1e-6, msg=name)


def test_a_convolution_and_names_that_are_diffusers_own_are_merged_too(network, tmp_path):
    before = network.patch_embedding.weight.detach().clone()
    key = "diffusion_model.patch_embedding.lora"
    down, up = random(RANK, *before.shape[1:]), random(before.shape[0], RANK, 1, 1, 1)
    merge(network, LoraFile(written(tmp_path, {f"{key}_down.weight": down, f"{key}_up.weight": up})), "transformer")
    expected = torch.einsum("orabc,ridhw->oidhw", up, down)
    torch.testing.assert_close(network.patch_embedding.weight - before, expected, rtol=0, atol=1e-6)

    ltx = SMALL["ltx"]().transformer
    layer = ltx.transformer_blocks[0].attn1.to_q
    before = layer.weight.detach().clone()
    key = "diffusion_model.transformer_blocks.0.attn1.to_q.lora"
    down, up = random(RANK, layer.in_features), random(layer.out_features, RANK)
    merge(ltx, LoraFile(written(tmp_path, {f"{key}_A.weight": down, f"{key}_B.weight": up})), "transformer")
    torch.testing.assert_close(layer.weight - before, up @ down, rtol=0, atol=1e-6)


def test_alpha_of_the_header_counts_where_a_file_has_it_there(network, tmp_path):
    tensors = peft(network)
    weight = network.blocks[0].attn1.to_q.weight
    before = weight.detach().clone()
    header = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 6, "transformer.r": RANK})}
    merge(network, LoraFile(written(tmp_path, tensors, metadata=header)), "transformer")
    key = "transformer.blocks.0.attn1.to_q.lora"
    expected = 3 * tensors[f"{key}_B.weight"] @ tensors[f"{key}_A.weight"]
    torch.testing.assert_close(weight - before, expected, rtol=0, atol=1e-5)


def spoilt(network, how):
    tensors = lightning(network)
    if how == "of another model":
        return {f"lora_transformer_layers.{n}.lora_down.weight": value for n, value in enumerate(tensors.values())}
    if how == "of a larger model":
        return {
            key: torch.cat([value, value]) if value.dim() and "up" in key else value for key, value in tensors.items()
        }
    if how == "with a picture's keys":
        return {**tensors, "diffusion_model.blocks.0.cross_attn.k_img.diff": random(24, 24)}
    if how == "half":
        return {key: value for key, value in tensors.items() if "lora_up" not in key}
    if how == "not numbers":
        return {**tensors, "diffusion_model.blocks.0.ffn.0.diff_b": torch.full((32,), float("nan"))}
    if how == "of LoKr":
        return {key.replace("lora_down.weight", "lokr_w1"): value for key, value in tensors.items()}
    raise AssertionError(how)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (
            "of another model",
            r"none of its 60 weights match in transformer \(WanTransformer3DModel\); first lora_t",
        ),
        ("of a larger model", r".*lora_up.weight \(48, 2\) times .* does not fit transformer\.blocks\.0.* \(24, 24\)"),
        ("with a picture's keys", r"1 of its 21 weights match nothing in transformer .*k_img\.diff"),
        ("half", r".*lora_down.weight is there without its other half"),
        ("not numbers", r"ffn.net.0.proj.bias: is NaN or infinite"),
        ("of LoKr", r"20 keys are of a kind that is not merged \(first .*lokr_w1"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(how, told, network, tmp_path):
    path = written(tmp_path, spoilt(network, how))
    with pytest.raises(ModelError, match=rf"lora\.safetensors: {told}" if how != "not numbers" else told) as caught:
        merge(network, LoraFile(path), "transformer")
    assert "\n" not in str(caught.value)


def test_what_is_no_safetensors_is_refused(network, tmp_path):
    for name, told in {"a.pt": "no .safetensors file", "none.safetensors": "no such file"}.items():
        with pytest.raises(ModelError, match=told):
            merge(network, LoraFile(tmp_path / name), "transformer")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    with pytest.raises(ModelError, match=r"cut\.safetensors: cannot be read"):
        merge(network, LoraFile(tmp_path / "cut.safetensors"), "transformer")


@pytest.mark.parametrize(
    ("text", "path", "scale"),
    [("a.safetensors", "a.safetensors", 1.0), ("a.safetensors:0.8", "a.safetensors", 0.8), ("a:b.x", "a:b.x", 1.0)],
)
def test_a_scale_follows_the_last_colon(text, path, scale):
    assert LoraFile.parse(text) == LoraFile(Path(path), scale)


# ---------------------------------------------------------------------- package


@pytest.fixture(scope="module")
def two_experts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wan") / "a14b"
    SMALL["wan-2.2-a14b"]().save_pretrained(folder)
    return folder


@pytest.fixture
def package(two_experts, tmp_path, monkeypatch, capsys):
    """`package` of the checkpoint with two experts; gives the status, and the document or the error."""
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "store"))

    def run(*more, checkpoint=two_experts):
        status = main(["package", "--checkpoint", str(checkpoint), "--json", *map(str, more)])
        said = capsys.readouterr()
        return json.loads(said.out) if status == 0 else said.err

    return run


LIGHTNING = ("--steps", "4", "--guidance-scale", "1", "--shift", "5", "--solver", "euler")


def test_a_student_of_four_steps_is_packaged_from_one_file_for_each_expert(package, tmp_path):
    network = SMALL["wan-2.2-a14b"]().transformer
    high = written(tmp_path, lightning(network), "high_noise_model.safetensors")
    low = written(tmp_path, lightx2v(network), "low_noise_model.safetensors")
    packaged = package("--lora", high, "--lora-2", f"{low}:0.5", *LIGHTNING)
    assert (packaged["steps"], packaged["passes"], packaged["shift"]) == (4, 4, 5.0)
    assert [(one["component"], one["file"], one["scale"], one["keys"]) for one in packaged["merged"]] == [
        ("transformer", "high_noise_model.safetensors", 1.0, 20),
        ("transformer_2", "low_noise_model.safetensors", 0.5, 40),
    ]
    info = ModelInfo.read(Path(packaged["path"]))
    # A request cannot choose what a student has in its weights.
    assert (info.guidance_distilled, info.most_steps, "guidance_scale" in info.controls) == (True, None, False)
    assert packaged["max_difference"] == 0


@pytest.mark.parametrize(("given", "missing"), [("--lora", "--lora-2"), ("--lora-2", "--lora")])
def test_one_experts_file_alone_is_refused_with_how_to_give_both(given, missing, package, tmp_path):
    path = written(tmp_path, lightning(SMALL["wan-2.2-a14b"]().transformer))
    error = package(given, path, *LIGHTNING)
    assert f"error: {given}: this checkpoint has two experts" in error
    assert f"add {missing} FILE" in error
    assert error.count("\n") <= 2


def test_files_named_after_the_other_expert_are_said(package, tmp_path):
    network = SMALL["wan-2.2-a14b"]().transformer
    low = written(tmp_path, lightning(network), "wan2.2_low_noise.safetensors")
    other = written(tmp_path, {"diffusion_model.nothing.diff": torch.zeros(1)}, "wan2.2_high_noise.safetensors")
    error = package("--lora", low, "--lora-2", other)
    assert "wan2.2_low_noise.safetensors: named after the other expert, and merged into transformer" in error


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        ("wan-2.1", ["--lora-2", "x.safetensors"], "--lora-2: this checkpoint has one network (transformer)"),
        ("wan-2.1", ["--transformer-2", "x"], "--transformer-2: this checkpoint has one network"),
        ("wan-2.1", ["--transformer", "none"], "none: no config.json"),
        ("svd", ["--transformer", "x"], "--transformer: a checkpoint of the svd family has no transformer"),
        ("svd", ["--shift", "5"], "the svd family has no noise levels of flow matching"),
        ("svd", ["--timesteps", "1000"], "the svd family has no noise levels of flow matching"),
        ("wan-2.1", ["--timesteps", "1000,500", "--shift", "5"], "leave out --shift and --solver"),
        ("wan-2.1", ["--timesteps", "1000,500", "--steps", "4"], "--steps: is not 2"),
        ("wan-2.1", ["--timesteps", "500,1000"], "timesteps: [500.0, 1000.0] do not descend"),
        ("wan-2.1", ["--timesteps", "1001"], "timesteps: [1001.0] are not within 0 (not allowed) to 1000"),
        ("ltx", ["--solver", "euler"], "takes its shift from the size of a clip"),
    ],
)
def test_what_a_checkpoint_does_not_have_is_refused(kind, options, told, package, tmp_path):
    SMALL[kind]().save_pretrained(tmp_path / kind)
    assert told in package(*options, checkpoint=tmp_path / kind)


@pytest.mark.parametrize(
    "option", [["--lora", "x.safetensors:nan"], ["--shift", "0"], ["--shift", "nan"], ["--timesteps", "1,x"]]
)
def test_a_scale_or_a_shift_that_is_no_number_is_wrong_use(option, package, capsys):
    with pytest.raises(SystemExit) as caught:
        package(*option)
    assert caught.value.code == 2
    assert option[0] in capsys.readouterr().err


def test_a_whole_distilled_network_takes_the_place_of_the_checkpoints(package, tmp_path):
    SMALL["wan-2.2-ti2v"]().save_pretrained(tmp_path / "base")
    other = SMALL["wan-2.2-ti2v"]()
    torch.manual_seed(5)
    for parameter in other.transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    other.transformer.save_pretrained(tmp_path / "fast" / "transformer")
    options = ("--guidance-scale", "1", "--timesteps", "1000,757,522")
    packaged = package("--transformer", tmp_path / "fast", *options, checkpoint=tmp_path / "base")
    assert (packaged["steps"], packaged["passes"], packaged["merged"]) == (3, 3, [])
    assert packaged["max_difference"] == 0  # from one seed the noise of each step is the same too
    scheduler = json.loads((Path(packaged["path"]) / "scheduler" / "scheduler_config.json").read_text())
    assert (scheduler["_class_name"], scheduler["timesteps"]) == ("RenoisingScheduler", [1000, 757, 522])
    stored = type(other.transformer).from_pretrained(Path(packaged["path"]) / "transformer")
    for name, tensor in other.transformer.state_dict().items():
        assert torch.equal(stored.state_dict()[name], tensor), name


def test_one_experts_network_alone_and_a_network_of_another_shape_are_refused(package, tmp_path):
    SMALL["wan-2.2-ti2v"]().transformer.save_pretrained(tmp_path / "fast")
    assert "give --transformer-2 FOLDER too" in package("--transformer", tmp_path / "fast")
    error = package("--transformer", tmp_path / "fast", "--transformer-2", tmp_path / "fast")
    assert "transformer: takes 48 channels where image to video has 36" in error


def test_a_student_of_distribution_matching_noises_its_prediction_again():
    scheduler = RenoisingScheduler([1000, 600])
    scheduler.set_timesteps(2)
    x, v = torch.randn(2, 2, 3, 4, 4).unbind()
    stepped = scheduler.step(v, scheduler.timesteps[0], x, generator=torch.Generator().manual_seed(3)).prev_sample
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(stepped, 0.4 * (x - v) + 0.6 * noise)
    torch.testing.assert_close(scheduler.step(v, scheduler.timesteps[1], x).prev_sample, x - 0.6 * v)
    with pytest.raises(ValueError, match="num_inference_steps: 4 is not 2, the steps of this student"):
        scheduler.set_timesteps(4)


def test_the_euler_solver_takes_eulers_steps_on_the_shifted_grid(two_experts):
    from pipeline.packaging.distilled import Distilled, open_distilled

    scheduler = open_distilled(str(two_experts), Distilled(shift=5.0, solver="euler")).pipe.scheduler
    scheduler.set_timesteps(4)
    sigmas = [5 * s / (1 + 4 * s) for s in (1, 0.75, 0.5, 0.25)]
    assert scheduler.timesteps.tolist() == pytest.approx([1000 * s for s in sigmas], rel=2e-3)
    z = torch.randn(1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    mine = z.clone()
    levels = scheduler.sigmas.tolist()
    for number, t in enumerate(scheduler.timesteps):
        velocity = torch.sin(z)
        expected = z + (levels[number + 1] - levels[number]) * velocity
        z = scheduler.step(velocity, t, z).prev_sample
        torch.testing.assert_close(z, expected, rtol=0, atol=1e-5)
    assert not torch.equal(z, mine)
